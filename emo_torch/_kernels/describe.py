"""The description of a step that compiled code takes, made from the recipe of a member."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emo_torch._pieces.shadow_effect import keeps_all
from emo_torch._rules.family_rules import FIRST_STEP_RULES, KERNELS
from emo_torch._rules.recipe import Recipe

RULES = tuple(rule.name for rule in KERNELS)
"""The rules that it knows, in the order of the `enum` in cpu.c."""
FILTERS = ("all", "elements", "rows_and_columns", "matrices", "scaled")
"""The elements that move: all; those that `keep_elements` or `keep_rows_and_columns` keeps; "matrices"
where the latter keeps all of a matrix; "scaled" for all, with a scaled update."""
FIRST_STEPS = tuple(rule.name for rule in FIRST_STEP_RULES)
"""What a matrix may do before its rule."""


@functools.cache
def _moments_of(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of a rule's moments, for vectors and for matrices."""
    rule = KERNELS[RULES.index(kind)]
    return rule.moments(1), rule.moments(2)


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
        vector, matrix = _moments_of(self.kind)
        return "whole" if vector == matrix else "factors"

    @property
    def moments_each(self) -> int:
        """How many moments a parameter has, without those that are one number."""
        return len(_moments_of(self.kind)[0])

    def moments(self, ndim: int) -> tuple[str, ...]:
        """Returns the names of the moments of a parameter of so many dimensions."""
        names = _moments_of(self.kind)[ndim >= 2]
        return tuple(self.prefix + name for name in names) if self.prefix else names


class FusedStep(NamedTuple):
    """What a member does, as data.

    Attributes:
        rules: one, or up to three among which `chosen` says.
        filter: a name in `FILTERS`.
        chosen: the index of a rule, int64 of shape `[]` on the CPU.
        first_steps: names in `FIRST_STEPS`, among which `chosen_first` says.
        chosen_first: the index of a first step, int64 of shape `[]` on the CPU.
        share: of the rule "ref", how much of the weights goes into the first moment; of the rule
            "fresh_sign", how much of the gradient does: makes a tensor of shape `[]` of a dtype on the CPU.
            The other options of "ref" stand in the group.
        follow: how far shadows follow at each step, by the rule of `blend_by_trust`, a tensor of shape
            `[]`; `None` for the rule of `blend_with_shadow`.
        weights: the factor of the weights before the step, a tensor of shape `[]`; `None` for 1. Only for
            the rules "sign" and "fresh_sign".
    """

    rules: tuple[FusedRule, ...]
    filter: str = "elements"
    chosen: Tensor | None = None
    first_steps: tuple[str, ...] = ()
    chosen_first: Tensor | None = None
    share: Callable[[torch.dtype], Tensor] | None = None
    follow: Tensor | None = None
    weights: Tensor | None = None


class Signal(NamedTuple):
    """The emotion as tensors of the dtype that a step is computed in, each of shape `[]`.

    Compiled code on the CPU takes Python's numbers as well, and rounds them to that dtype.

    Attributes:
        tolerance: theta (1 + |s|).
        scale: 1 - |s|.
        shadow_ratio: r(s).
        lr: the learning rate, a tensor; the ways without compiled code take a number, too.
    """

    tolerance: Any
    scale: Any
    shadow_ratio: Any
    lr: Any


MOST_RULES = 3
"""How many rules the structure in cpu.c has room for."""


@functools.lru_cache(maxsize=256)
def describe(recipe: Recipe, b1: float, b2: float, eps: float, theta: float) -> FusedStep | None:
    """Returns a recipe as compiled code reads it; `None` where compiled code does not know the recipe.

    Args:
        recipe: the recipe.
        b1: the first decay rate of the parameter group, in [0, 1).
        b2: the second decay rate, in [0, 1).
        eps: the epsilon of the parameter group, >= 0.
        theta: the threshold of the filter, >= 0.
    """
    first = recipe.first
    first_steps = () if first is None else tuple(rule.name for rule in first.rules)
    kinds = {rule.kernel: rule.name for rule in KERNELS}
    is_known = all(rule.kernel in kinds for rule in recipe.rules) and len(recipe.rules) <= MOST_RULES
    factored = {rule.moments(1) != rule.moments(2) for rule in recipe.rules}
    if recipe.filter is not None:
        # Compiled code looks at rows and columns with the factors of a matrix, and at elements without.
        is_known &= factored == {recipe.filter == "rows_and_columns"}
    if first is not None:
        is_known &= first.least_ndim == 2 and factored == {True}
        is_known &= set(first_steps) <= set(FIRST_STEPS) and len(first_steps) <= MOST_RULES
    if not is_known:
        return None
    rules = tuple(
        FusedRule(
            kinds[rule.kernel], rule.betas or (b1, b2), eps if "eps" in rule.reads else 0.0, rule.prefix
        )
        for rule in recipe.rules
    )
    kept: str = recipe.filter or "all"
    keep = recipe.keep({"eps": eps})
    if kept == "rows_and_columns" and keeps_all(keep, torch.empty(0, 0), theta):
        kept = "matrices"
    return FusedStep(rules, kept, first_steps=first_steps)
