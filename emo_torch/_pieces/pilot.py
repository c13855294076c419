"""The scalars that steer EmoPilot: gate, emotion, agreement and courage, once a step for all parameters."""

from typing import NamedTuple

import torch
from torch import Tensor

from emo_torch._pieces.courage import CourageState, init_courage, move_courage
from emo_torch._pieces.gate import gate
from emo_torch._pieces.relative_emotion import RelativeEmotionState, feel_relative, init_relative_emotion


class PilotState(NamedTuple):
    """The scalars of EmoPilot; every field is a tensor of shape `[]`.

    Attributes:
        step: steps taken so far, int32.
        skipped: steps that were skipped, because the loss or a gradient was not finite, int32.
        previous: the loss of the last step, in the unit of the loss.
        short: the short average of the loss, in the unit of the loss.
        long: the long average of the loss, in the unit of the loss.
        square: the average of half the squared differences between the losses of neighbouring steps.
        weight: the sum of the weights in `square`, in [0, 1).
        scalar: the emotion scalar s, in [-1, 1].
        norm: the running average of the gradient's norm.
        gate: the factor that the last gradient was multiplied by, in [0, 1].
        agreement: the cosine of the last gradient and the direction before it (see `with_agreement`), in
            [-1, 1]; it moves the courage of the next step.
        agreement_square: the average of its square.
        courage: the factor on the step.
        longest: the longest step of any parameter in the last step.
        bound: the share of the parameters whose last step the ceiling bounded, in [0, 1].
    """

    step: Tensor
    skipped: Tensor
    previous: Tensor
    short: Tensor
    long: Tensor
    square: Tensor
    weight: Tensor
    scalar: Tensor
    norm: Tensor
    gate: Tensor
    agreement: Tensor
    agreement_square: Tensor
    courage: Tensor
    longest: Tensor
    bound: Tensor

    @property
    def emotion(self) -> RelativeEmotionState:
        """The averages and the noise of the loss."""
        return RelativeEmotionState(*self[2:8])

    @property
    def courage_state(self) -> CourageState:
        """The agreement of the last step, and the courage."""
        return CourageState(*self[10:13])


class Pilot(NamedTuple):
    """The values of EmoPilot, to be read; every field is a tensor of shape `[]`.

    Attributes:
        short: the short average of the loss, in the unit of the loss.
        long: the long average of the loss, in the unit of the loss.
        noise: the standard deviation of the loss around its trend, in the unit of the loss.
        scalar: the emotion scalar s, in [-1, 1]; above 0 the loss is above its trend.
        agreement: the cosine of the last gradient and the first moments before it, in [-1, 1]; in
            `Autopilot` the last change is in the place of the first moments.
        courage: the factor on the learning rate.
        gate: the factor that the last gradient was multiplied by, in [0, 1].
        ceiling_bound: the share of the parameters whose last step the ceiling bounded, in [0, 1].
        learning_rate: the longest step of any parameter in the last step.
        steps: steps taken so far, int32.
        skipped: steps that were skipped, because the loss or a gradient was not finite, int32.
    """

    short: Tensor
    long: Tensor
    noise: Tensor
    scalar: Tensor
    agreement: Tensor
    courage: Tensor
    gate: Tensor
    ceiling_bound: Tensor
    learning_rate: Tensor
    steps: Tensor
    skipped: Tensor


def init_pilot(dtype: torch.dtype, device: torch.device | str = "cpu") -> PilotState:
    """Returns the scalars before any step, each in its own tensor."""

    def count() -> Tensor:
        return torch.zeros((), dtype=torch.int32, device=device)

    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=dtype, device=device)

    emotion, courage = init_relative_emotion(dtype, device), init_courage(dtype, device)
    return PilotState(
        count(), count(), *emotion, number(0.0), number(1.0), *courage, number(0.0), number(0.0)
    )


def steer(
    state: PilotState,
    loss: Tensor,
    square: Tensor,
    *,
    limit: float,
    min_courage: float,
    max_courage: float,
    learning_rate: float | Tensor,
) -> tuple[PilotState, Tensor]:
    """Moves the scalars by the loss and the norm of the gradient of one step.

    The agreement of the step before moves the courage. `with_agreement` stores the agreement of this step.

    Args:
        state: the scalars before this step.
        loss: the loss of this step, shape `[]`.
        square: <g, g> of the gradient g, over all parameters together, shape `[]`.
        limit: how many times its running average the norm of a gradient may be.
        min_courage: the least courage.
        max_courage: the largest courage, >= `min_courage`.
        learning_rate: the largest learning rate so far, for the warm-up.

    Returns:
        The scalars after this step, and whether the step can be taken (bool of shape `[]`): only if the
        loss, the difference of its averages and the norm of the gradient are finite. Otherwise the scalars
        must not be used.
    """
    norm = square.sqrt()
    step = state.step + 1
    factor, average = gate(norm, state.norm, step, limit)
    emotion = feel_relative(state.emotion, loss, step)
    # Two finite losses can be further apart than the largest number.
    is_finite = loss.isfinite() & norm.isfinite() & (emotion.short - emotion.long).isfinite()
    bounds = (min_courage, max_courage, learning_rate)
    courage = move_courage(state.courage_state, state.agreement, emotion.scalar, step, *bounds)
    moved = (step, state.skipped, *emotion, average, factor, *courage, state.longest, state.bound)
    return PilotState(*moved), is_finite


def with_agreement(state: PilotState, products: Tensor) -> PilotState:
    """Returns the scalars after a step with the agreement of this step, for the next step.

    Args:
        state: the scalars after this step.
        products: over all parameters together <g, g>, <g, d> and <d, d> of the gradient g and the direction
            d before it, shape `[3]`; d is the first moments of EmoPilot, or the last update of `Autopilot`.
            At the first step there is no direction: the agreement stays 0.
    """
    tiny = torch.finfo(products.dtype).tiny
    agreement = (products[1] / (products[0].sqrt() * products[2].sqrt() + tiny)).clamp(-1.0, 1.0)
    agreement = torch.where(state.step > 1, agreement, torch.zeros_like(agreement))
    return state._replace(agreement=agreement)


def describe(state: PilotState) -> Pilot:
    """Returns the values of the scalars, in new tensors."""
    weight = torch.where(state.weight > 0.0, state.weight, torch.ones_like(state.weight))
    return Pilot(
        short=state.short.clone(),
        long=state.long.clone(),
        noise=(state.square / weight).sqrt(),
        scalar=state.scalar.clone(),
        agreement=state.agreement.clone(),
        courage=state.courage.clone(),
        gate=state.gate.clone(),
        ceiling_bound=state.bound.clone(),
        learning_rate=state.longest.clone(),
        steps=state.step.clone(),
        skipped=state.skipped.clone(),
    )
