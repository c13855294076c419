"""The scalars that the memory of the losses gives to one step."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emo_torch._kernels.describe import Signal
from emo_torch._pieces.emotion import is_on_cpu
from emo_torch._rules.recipe import Group


class Feeling(NamedTuple):
    """The scalars of one step, as tensors of shape `[]`.

    Attributes:
        scalar: the emotion scalar, in [-1, 1].
        shadow_ratio: how far to pull a parameter to its shadow, where that exists, in [0, 1].
        follow: how far the shadow follows, in the rule of v3 (see `blend_by_trust`); `None` for the rule of
            v2.0 and v1.0.
        scale: the factor of the update; `None` for the step scale of a member with a filter.
        rate: the learning rate of the step; `None` for that of the group.
        weights: a factor of the parameters before the step, `None` for none.
        numbers: further numbers that a rule reads, by name.
    """

    scalar: Tensor
    shadow_ratio: Tensor
    follow: Tensor | None = None
    scale: Tensor | None = None
    rate: Tensor | None = None
    weights: Tensor | None = None
    numbers: dict[str, Tensor] = {}  # noqa: RUF012


def for_compiled(params: list[Tensor], feeling: Feeling, group: Group) -> tuple[Feeling, Group] | None:
    """Returns a feeling and options that compiled code knows; or `None`."""
    if feeling.follow is not None and group["use_shadow"]:
        return None
    if feeling.weights is not None or feeling.numbers:
        return None
    if feeling.scale is None:
        return feeling, group
    if params[0].device.type != "cpu" or not is_on_cpu(feeling.scale):
        return None
    # Compiled code has no factor of the update alone: the factor goes into the learning rate, and out of
    # the weight decay that the learning rate multiplies.
    factor = feeling.scale.item()
    if factor == 1.0:
        return feeling._replace(scale=None), group
    if not factor > 1e-3:
        return None
    lr = group["lr"]
    rate = factor * (lr.detach() if isinstance(lr, Tensor) else torch.tensor(lr, dtype=torch.float64))
    weight_decay = group["weight_decay"]
    if group["weight_decay_mode"] == "decoupled":
        weight_decay = weight_decay / factor
    return feeling._replace(scale=None, rate=rate), {**group, "weight_decay": weight_decay}


def numbers_of(feeling: Feeling, group: Group, dtype: torch.dtype) -> Signal:
    """Returns what `signal_of` returns, as Python's numbers: for the CPU, where PyTorch's calls cost more.

    Args:
        feeling: the feeling, on the CPU.
        group: the options.
        dtype: the dtype of the computation, to which the caller rounds the numbers.
    """
    del dtype
    # Every operation is rounded to the dtype of the scalar, as PyTorch's are.
    real = np.float64 if feeling.scalar.dtype == torch.float64 else np.float32
    size = abs(real(feeling.scalar.item()))
    lr = group["lr"] if feeling.rate is None else feeling.rate
    return Signal(
        tolerance=float(real(group.get("theta", 0.0)) * (real(1.0) + size)),
        scale=float(real(1.0) - size) if feeling.scale is None else feeling.scale.item(),
        shadow_ratio=feeling.shadow_ratio.item(),
        lr=float(lr),
    )
