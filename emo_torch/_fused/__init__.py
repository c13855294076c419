"""The fused way: a step of many tensors in one call of compiled C, which touches memory once.

This file says what a step does, as data. `cpu.py` takes such a step with compiled C, `cuda.py` with Triton,
and `blocked.py` with PyTorch's own operations where there is no C compiler.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from emo_torch._fused.job import library as library

RULES = ("uncorrected_adam", "lion", "cautious_sign", "softsign", "factored_moments", "ref")
"""The rules of `_rules` that it knows."""
FILTERS = ("all", "elements", "rows_and_columns", "matrices")
"""What moves: everything, what `keep_elements` keeps, or what `keep_rows_and_columns` does; the last one
where that keeps all of a matrix anyway."""
FIRST_STEPS = ("none", "softsign", "cautious_sign")
"""What a matrix may do before its rule."""


class FusedRule(NamedTuple):
    """A rule and what it works with.

    Attributes:
        kind: its name in `RULES`.
        betas: its decay rates, each in [0, 1).
        eps: its eps, >= 0.
        prefix: what stands before the names of its moments.
    """

    kind: str
    betas: tuple[float, float]
    eps: float = 0.0
    prefix: str = ""

    @property
    def shape(self) -> str:
        """What its moments are: vectors of the parameter's shape, or factors of a matrix."""
        return "factors" if self.kind == "factored_moments" else "whole"

    @property
    def moments_each(self) -> int:
        """How many moments a parameter has."""
        return 2 if self.kind in ("uncorrected_adam", "factored_moments", "ref") else 1

    def moments(self, ndim: int) -> tuple[str, ...]:
        """Returns the names of the moments of a parameter of so many dimensions."""
        if self.kind == "factored_moments" and ndim >= 2:
            return (f"{self.prefix}row", f"{self.prefix}column")
        if self.moments_each == 2:
            return (f"{self.prefix}exp_avg", f"{self.prefix}exp_avg_sq")
        return (f"{self.prefix}exp_avg",)


class FusedStep(NamedTuple):
    """What a member does, as data.

    Attributes:
        rules: one, or up to three among which `chosen` says.
        filter: a name in `FILTERS`.
        chosen: the index of a rule, int64 of shape `[]` on the CPU.
        first_steps: names in `FIRST_STEPS`, among which `chosen_first` says.
        chosen_first: the index of a first step, likewise.
        share: of the rule "ref", how much of the weights goes into the first moment: makes a tensor of
            shape `[]` of a dtype on the CPU. Its other options stand in the group.
    """

    rules: tuple[FusedRule, ...]
    filter: str = "elements"
    chosen: Tensor | None = None
    first_steps: tuple[str, ...] = ()
    chosen_first: Tensor | None = None
    share: Callable[[torch.dtype], Tensor] | None = None


class Signal(NamedTuple):
    """The emotion as numbers of the parameters' dtype, each of shape `[]` on the CPU.

    Attributes:
        tolerance: theta (1 + |s|).
        scale: 1 - |s|.
        shadow_ratio: r(s).
        lr: the learning rate.
    """

    tolerance: Tensor
    scale: Tensor
    shadow_ratio: Tensor
    lr: Tensor
