"""Divergence: jumps of the loss, and a rising validation loss, as signs of a failing run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import check_kind
from emo_optax._checks.validation import check_max_steps, check_precision, hyperparameter

OVERFITTING_RISES = 3
"""The number of rises of the validation loss in a row that counts as overfitting."""


class DivergenceState(NamedTuple):
    """The statistics of the losses that an optimizer keeps; every field is an array of shape `[]`.

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

    steps: jax.Array
    felt: jax.Array
    held: jax.Array
    previous: jax.Array
    level: jax.Array
    diverging: jax.Array
    val_felt: jax.Array
    val_previous: jax.Array
    val_rises: jax.Array
    val_improvements: jax.Array
    val_runs: jax.Array
    suppressed: jax.Array
    injects: jax.Array


def init_divergence(dtype: Any) -> DivergenceState:
    """Returns the state before the first step, each field in its own buffer.

    Args:
        dtype: the floating-point dtype of the state, float32 or float64.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> print(emo_optax.init_divergence(jnp.float32).previous)
        0.0

    Source: RefAdamWMiniScheduleFree by muooon.
    """
    kinds = {"previous": dtype, "val_previous": dtype, "suppressed": jnp.bool_, "injects": jnp.bool_}
    return DivergenceState(
        **{name: jnp.zeros([], kinds.get(name, jnp.int32)) for name in DivergenceState._fields}
    )


def check_divergence(state: DivergenceState) -> None:
    """Raises a `ValueError` unless every field has its shape and its kind of numbers."""
    kinds = {"previous": jnp.floating, "val_previous": jnp.floating}
    kinds |= {"suppressed": jnp.bool_, "injects": jnp.bool_}
    for name, field in state._asdict().items():
        check_kind(f"divergence.{name}", field, kinds.get(name, jnp.integer), ())


def update_divergence(
    state: DivergenceState,
    loss: jax.Array | None = None,
    val_loss: jax.Array | None = None,
    *,
    ref_max_steps: Any | None = None,
) -> DivergenceState:
    r"""Updates the state with the losses of one step, and decides whether it injects the parameters.

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
        The state after this step.

    Raises:
        ValueError: for a length that is not a whole number >= 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> state = emo_optax.init_divergence(jnp.float32)
        >>> for loss in (1.0, 1.6, 4.0):
        ...     state = emo_optax.update_divergence(state, jnp.asarray(loss))
        >>> print(state.level, state.diverging, state.injects)
        3 2 True

    Source: RefAdamWMiniScheduleFree by muooon.
    """
    check_max_steps(ref_max_steps)
    check_divergence(state)
    steps = optax.safe_increment(state.steps)
    state = state._replace(steps=steps)
    if val_loss is not None:
        state = _watch_val_loss(state, val_loss, _patience(ref_max_steps))
    is_felt = jnp.zeros([], jnp.bool_)
    if loss is not None:
        is_felt = jnp.isfinite(loss)
        ratio = loss / (state.previous + 1e-8)
        jump = sum((ratio > bound).astype(jnp.int32) for bound in (1.2, 1.5, 2.0))
        jump = jnp.where(state.felt == 0, 0, jump).astype(jnp.int32)
        in_a_row = jnp.where(jump > 0, optax.safe_increment(state.diverging), 0)
        state = state._replace(
            felt=jnp.where(is_felt, optax.safe_increment(state.felt), state.felt),
            held=jnp.where(is_felt, state.held, optax.safe_increment(state.held)),
            previous=jnp.where(is_felt, loss, state.previous),
            level=jnp.where(is_felt, jump, state.level),
            diverging=jnp.where(is_felt, in_a_row, state.diverging),
        )
    return state._replace(injects=is_felt & ~state.suppressed & _is_midway(steps, ref_max_steps))


def _watch_val_loss(state: DivergenceState, val_loss: jax.Array, patience: Any) -> DivergenceState:
    is_felt = jnp.isfinite(val_loss)
    is_first = state.val_felt == 0
    rose = ~is_first & (val_loss > state.val_previous)
    fell = ~is_first & (val_loss < state.val_previous)
    rises = jnp.where(rose, optax.safe_increment(state.val_rises), 0)
    overfits = rises >= OVERFITTING_RISES
    improvements = jnp.where(state.suppressed & fell, state.val_improvements + 1, 0)
    is_run = improvements >= patience
    improvements = jnp.where(is_run, 0, improvements)
    runs = jnp.where(overfits, 0, state.val_runs + is_run.astype(jnp.int32))
    is_over = runs >= patience
    moved = state._replace(
        val_felt=optax.safe_increment(state.val_felt),
        val_previous=val_loss,
        val_rises=rises,
        val_improvements=improvements,
        val_runs=jnp.where(is_over, 0, runs),
        suppressed=(state.suppressed & ~is_over) | overfits,
    )
    kept = state._replace(held=optax.safe_increment(state.held))
    pairs = zip(moved, kept, strict=True)
    return DivergenceState(*(jnp.where(is_felt, new, old) for new, old in pairs))


def _patience(ref_max_steps: Any | None) -> Any:
    """Returns how many improvements make a run, and how many runs end the suppression."""
    length = jnp.asarray(1000 if ref_max_steps is None else ref_max_steps).astype(jnp.int32)
    return jnp.clip(length // 10_000, 10, 20)


def _is_midway(steps: jax.Array, ref_max_steps: Any | None) -> jax.Array:
    """Returns whether a step is at 0.2 to 0.8 of the run, by exact integer arithmetic."""
    if ref_max_steps is None:
        return jnp.ones([], jnp.bool_)
    length = jnp.asarray(ref_max_steps).astype(jnp.int32)
    fifth = length // 5 + (length % 5 > 0)
    return (steps >= fifth) & (steps <= length - fifth)


def injection_strength(state: DivergenceState, ref_alpha: jax.typing.ArrayLike, dtype: Any) -> jax.Array:
    """Returns a, the share of the parameters in an injection, or 0 if the step does not inject.

    It is `ref_alpha` while no loss diverges. A divergence of level 1, 2 or 3, or of 1, 2 or 3 steps in a
    row, makes the share at least 0.6, 0.8 or 1.

    Args:
        state: the state that `update_divergence` returned.
        ref_alpha: the share while no loss diverges, in [0, 1].
        dtype: of the result.

    Returns:
        The share, shape `[]`, in [0, 1].

    Raises:
        TypeError: for a number in a dtype of less than 32 bits, which is too coarse for it.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> state = emo_optax.update_divergence(emo_optax.init_divergence(jnp.float32), jnp.asarray(1.0))
        >>> print(emo_optax.injection_strength(state, 0.5, jnp.float32))
        0.5

    Source: RefAdamWMiniScheduleFree by muooon.
    """
    check_precision("ref_alpha", ref_alpha)
    worst = jnp.maximum(state.level, state.diverging)
    in_trouble = jnp.where(worst >= 3, 1.0, jnp.where(worst == 2, 0.8, 0.6)).astype(dtype)
    strength = jnp.where(worst > 0, in_trouble, jnp.asarray(hyperparameter(ref_alpha, dtype), dtype))
    return jnp.where(state.injects, strength, jnp.zeros([], dtype))
