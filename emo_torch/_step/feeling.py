"""The scalars that the memory of the losses gives to one step."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emo_torch._kernels.describe import FusedStep, Scalars, Signal
from emo_torch._rules.recipe import Group
from emo_torch._rules.sign_rules import fresh_share

CompiledWay = Literal["cpu", "cuda", "blocks"]
"""Compiled C, Triton, or blocks of memory without compiled code."""


class Feeling(NamedTuple):
    """The scalars of one step, as tensors of shape `[]`.

    Attributes:
        scalar: the emotion scalar, in [-1, 1].
        shadow_ratio: how far to pull a parameter to its shadow, if the shadow exists, in [0, 1].
        follow: how far the shadow follows, in the rule of v3 (see `blend_by_trust`); `None` for the rule of
            v2.0 and v1.0.
        scale: the factor of the update; `None` for the step scale of a member with a filter.
        rate: the learning rate of the step; `None` for the learning rate of the group.
        weights: a factor of the parameters before the step; `None` for no factor.
        numbers: further numbers that a rule reads, by name.
    """

    scalar: Tensor
    shadow_ratio: Tensor
    follow: Tensor | None = None
    scale: Tensor | None = None
    rate: Tensor | None = None
    weights: Tensor | None = None
    numbers: dict[str, Tensor] = {}  # noqa: RUF012


def for_compiled(spec: FusedStep, feeling: Feeling, group: Group, way: CompiledWay) -> FusedStep | None:
    """Returns a step for compiled code, with the additional scalars of a member of v3.6.1 or v3.9.1.

    Args:
        spec: the step, from the recipe of the member.
        feeling: the feeling.
        group: the options.
        way: the way of `_kernels` that takes the step.

    Returns:
        The step; `None` if only the ways without compiled code can take the step.
    """
    if feeling.scale is not None and spec.filter == "all":
        spec = spec._replace(filter="scaled")
    follow = feeling.follow if group["use_shadow"] else None
    if follow is None and feeling.weights is None and not feeling.numbers:
        return spec
    kinds = {rule.kind for rule in spec.rules}
    if way == "blocks" or not (feeling.weights is None or kinds <= {"sign", "fresh_sign"}):
        return None
    if way == "cuda" and kinds & {"softsign", "factored_moments"}:
        return None  # The kernels of the sums over a tensor pull by the rule of v2.0 and v1.0.
    change = feeling.numbers.get("change")
    if change is not None:
        share = fresh_share(change, spec.rules[0].betas[0])
        spec = spec._replace(share=share.to)
    return spec._replace(follow=follow, weights=feeling.weights)


def numbers_of(feeling: Feeling, group: Group, dtype: torch.dtype) -> Signal:
    """Returns the signal of `signal_of` as Python's numbers: on the CPU, calls of PyTorch take longer.

    Args:
        feeling: the feeling, on the CPU.
        group: the options.
        dtype: the dtype of the computation, to which the caller rounds the numbers.
    """
    del dtype
    # Every operation is rounded to the dtype of the scalar, as in PyTorch.
    real: Any = np.float64 if feeling.scalar.dtype == torch.float64 else np.float32
    size = abs(real(feeling.scalar.item()))
    lr = group["lr"] if feeling.rate is None else feeling.rate
    return Signal(
        tolerance=float(real(group.get("theta", 0.0)) * (real(1.0) + size)),
        scale=float(real(1.0) - size) if feeling.scale is None else feeling.scale.item(),
        shadow_ratio=feeling.shadow_ratio.item(),
        lr=float(lr),
    )


def scalars_of(feeling: Feeling, group: Group) -> Scalars:
    """Returns the further numbers of a member of v3.6.1 or v3.9.1 for compiled code on the CPU.

    Args:
        feeling: the feeling, on the CPU.
        group: the options.
    """
    change = feeling.numbers.get("change")
    return Scalars(
        share=None if change is None else fresh_share(change, float(group["betas"][0])).item(),
        follow=feeling.follow.item() if feeling.follow is not None and group["use_shadow"] else None,
        weights=1.0 if feeling.weights is None else feeling.weights.item(),
    )
