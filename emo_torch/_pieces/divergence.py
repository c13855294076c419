"""Divergence: jumps of the loss, and a rising validation loss, as signs of a failing run."""

from typing import NamedTuple

import torch
from torch import Tensor

from emo_torch._checks.validation import check_max_steps

OVERFITTING_RISES = 3
"""The number of rises of the validation loss in a row that counts as overfitting."""


class DivergenceState(NamedTuple):
    """The statistics of the losses that an optimizer keeps; every field is a tensor of shape `[]`.

    Attributes:
        steps: steps so far, with a loss or without, int32.
        felt: finite losses so far, int32.
        held: losses and validation losses skipped because they were not finite, int32.
        previous: the last finite loss, in the loss's unit.
        level: how far the last finite loss jumped, 0 (not at all) to 3, int32.
        diverging: steps in a row with a jump, int32.
        val_felt: finite validation losses so far, int32.
        val_previous: the last finite validation loss, in its unit.
        val_rises: rises of the validation loss in a row, int32.
        val_improvements: improvements in a row while suppressed, since the last full run, int32.
        val_runs: full runs of improvements while suppressed, int32.
        suppressed: whether overfitting suppresses the injection, bool.
        injects: whether the last step injected the parameters, bool.
    """

    steps: Tensor
    felt: Tensor
    held: Tensor
    previous: Tensor
    level: Tensor
    diverging: Tensor
    val_felt: Tensor
    val_previous: Tensor
    val_rises: Tensor
    val_improvements: Tensor
    val_runs: Tensor
    suppressed: Tensor
    injects: Tensor


def init_divergence(dtype: torch.dtype, device: torch.device | str = "cpu") -> DivergenceState:
    """Returns the state before the first step, each field in its own tensor.

    Args:
        dtype: the floating-point dtype of the state, float32 or float64.
        device: the device of the tensors.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> print(emo_torch.init_divergence(torch.float32).previous)
        tensor(0.)

    Source: RefAdamWMiniScheduleFree by muooon.
    """
    kinds = {"previous": dtype, "val_previous": dtype, "suppressed": torch.bool, "injects": torch.bool}
    return DivergenceState(
        **{
            name: torch.zeros((), dtype=kinds.get(name, torch.int32), device=device)
            for name in DivergenceState._fields
        }
    )


def update_divergence(
    state: DivergenceState,
    loss: Tensor | None = None,
    val_loss: Tensor | None = None,
    *,
    ref_max_steps: int | None = None,
) -> DivergenceState:
    r"""Updates the statistics with the losses of a step, and decides whether it injects; no host sync.

    .. math::
        level = [\tfrac{L}{L' + 10^{-8}} > 1.2] + [\dots > 1.5] + [\dots > 2], \qquad
        diverging \leftarrow [level > 0]\,(diverging + 1)

    with the loss before, :math:`L'`. A validation loss that rose three times in a row suppresses the
    injection, until it has fallen :math:`n = \min(20, \max(10, \lfloor 10^{-4} T \rfloor))` times in a
    row, n times over; three rises in a row start the wait again. A step injects if it has a finite
    loss, is not suppressed, and is at 0.2 to 0.8 of the T steps (at 0.5 if T is not known).

    Args:
        state: the state before this step.
        loss: the loss, shape `[]`, in the state's dtype; or `None`. A loss that is not finite counts as
            missing, and as held.
        val_loss: the loss on validation data, of the same shape and dtype as the loss; or `None`.
        ref_max_steps: T, the length of the run in steps, >= 1, or `None`.

    Returns:
        The state after this step, in new tensors.

    Raises:
        ValueError: for a length that is not a whole number >= 1.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> state = emo_torch.init_divergence(torch.float32)
        >>> for loss in (1.0, 1.6, 4.0):
        ...     state = emo_torch.update_divergence(state, torch.tensor(loss))
        >>> print(state.level, state.diverging, state.injects)
        tensor(3, dtype=torch.int32) tensor(2, dtype=torch.int32) tensor(True)

    Source: RefAdamWMiniScheduleFree by muooon.
    """
    check_max_steps(ref_max_steps)
    steps = state.steps + 1
    state = state._replace(steps=steps)
    if val_loss is not None:
        state = _watch_val_loss(state, val_loss, _patience(ref_max_steps))
    is_felt = torch.zeros_like(state.injects)
    if loss is not None:
        is_felt = torch.isfinite(loss)
        ratio = loss / (state.previous + 1e-8)
        jump = (ratio > 1.2).int() + (ratio > 1.5).int() + (ratio > 2.0).int()
        jump = jump * (state.felt > 0)
        in_a_row = (state.diverging + 1) * (jump > 0)
        state = state._replace(
            felt=state.felt + is_felt,
            held=state.held + ~is_felt,
            previous=torch.where(is_felt, loss, state.previous),
            level=torch.where(is_felt, jump, state.level),
            diverging=torch.where(is_felt, in_a_row, state.diverging),
        )
    return state._replace(injects=is_felt & ~state.suppressed & _is_midway(steps, ref_max_steps))


def _watch_val_loss(state: DivergenceState, val_loss: Tensor, patience: int) -> DivergenceState:
    is_felt = torch.isfinite(val_loss)
    is_first = state.val_felt == 0
    rose = ~is_first & (val_loss > state.val_previous)
    fell = ~is_first & (val_loss < state.val_previous)
    rises = (state.val_rises + 1) * rose
    overfits = rises >= OVERFITTING_RISES
    improvements = (state.val_improvements + 1) * (state.suppressed & fell)
    is_run = improvements >= patience
    improvements = improvements * ~is_run
    runs = (state.val_runs + is_run) * ~overfits
    is_over = runs >= patience
    moved = state._replace(
        val_felt=state.val_felt + 1,
        val_previous=val_loss,
        val_rises=rises,
        val_improvements=improvements,
        val_runs=runs * ~is_over,
        suppressed=(state.suppressed & ~is_over) | overfits,
    )
    kept = state._replace(held=state.held + 1)
    return DivergenceState(*(torch.where(is_felt, new, old) for new, old in zip(moved, kept, strict=True)))


def _patience(ref_max_steps: int | None) -> int:
    """Returns how many improvements make a run, and how many runs end the suppression."""
    length = 1000 if ref_max_steps is None else int(ref_max_steps)
    return min(20, max(10, length // 10_000))


def _is_midway(steps: Tensor, ref_max_steps: int | None) -> Tensor:
    """Returns whether a step is at 0.2 to 0.8 of the run, by exact integer arithmetic."""
    if ref_max_steps is None:
        return torch.ones_like(steps, dtype=torch.bool)
    length = int(ref_max_steps)
    fifth = length // 5 + (length % 5 > 0)
    return (steps >= fifth) & (steps <= length - fifth)


def injection_strength(state: DivergenceState, ref_alpha: float, dtype: torch.dtype) -> Tensor:
    """Returns a, the share of the parameters in an injection, or 0 if the step does not inject.

    It is `ref_alpha` while no loss diverges. A divergence of level 1, 2 or 3, or of 1, 2 or 3 steps in a
    row, makes the share at least 0.6, 0.8 or 1.

    Args:
        state: the state that `update_divergence` returned.
        ref_alpha: the share while no loss diverges, in [0, 1].
        dtype: of the result.

    Returns:
        The share, shape `[]`, in [0, 1].

    Example:
        >>> import torch
        >>> import emo_torch
        >>> state = emo_torch.update_divergence(emo_torch.init_divergence(torch.float32), torch.tensor(1.0))
        >>> print(emo_torch.injection_strength(state, 0.5, torch.float32))
        tensor(0.5000)

    Source: RefAdamWMiniScheduleFree by muooon.
    """
    worst = torch.maximum(state.level, state.diverging)

    def share(value: float) -> Tensor:
        return torch.full((), value, dtype=dtype, device=worst.device)

    strength = torch.where(worst > 0, share(0.6), share(float(ref_alpha)))
    strength = torch.where(worst == 2, share(0.8), strength)
    strength = torch.where(worst >= 3, share(1.0), strength)
    return torch.where(state.injects, strength, share(0.0))
