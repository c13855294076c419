"""The description of a step for compiled code, made from the recipe of a member."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emo_torch._pieces.shadow_effect import keeps_all
from emo_torch._rules.family_rules import FIRST_STEP_RULES, KERNELS
from emo_torch._rules.recipe import Recipe

RULES = tuple(rule.name for rule in KERNELS)
"""The rules that compiled code has, in the order of the `enum` in cpu.c."""
STEERED = tuple(rule.name for rule in KERNELS if rule.turn is not None)
"""The rules among them that are under EmoPilot's scalars."""
FILTERS = ("all", "elements", "rows_and_columns", "matrices", "scaled")
"""The filters of a step, in the order of the `enum` in cpu.c.

"all" moves all elements. "elements" moves the elements that `keep_elements` keeps, "rows_and_columns" the
elements that `keep_rows_and_columns` keeps. "matrices" is the same, if `keep_rows_and_columns` keeps all
elements of every matrix. "scaled" moves all elements and scales the update."""
FIRST_STEPS = tuple(rule.name for rule in FIRST_STEP_RULES)
"""The rules by which a matrix can take a first step, before the rule of the step itself."""


@functools.cache
def _moments_of(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of a rule's moments, for vectors and for matrices."""
    rule = KERNELS[RULES.index(kind)]
    return rule.moments(1), rule.moments(2)


class FusedRule(NamedTuple):
    """A rule with its numbers.

    Attributes:
        kind: the name of the rule in `RULES`.
        betas: the decay rates of the rule, each in [0, 1).
        eps: the eps of the rule, >= 0.
        prefix: the prefix of the names of the rule's moments in a state.
    """

    kind: str
    betas: tuple[float, float]
    eps: float = 0.0
    prefix: str = ""

    @property
    def shape(self) -> str:
        """The shape of the moments: "whole" for the parameter's shape, "factors" for a matrix's factors."""
        vector, matrix = _moments_of(self.kind)
        return "whole" if vector == matrix else "factors"

    @property
    def is_steered(self) -> bool:
        """Whether the rule is under EmoPilot's scalars: `pilot.py` takes its step."""
        return self.kind in STEERED

    def moments(self, ndim: int) -> tuple[str, ...]:
        """Returns the names of the moments of a parameter with `ndim` dimensions."""
        names = _moments_of(self.kind)[ndim >= 2]
        return tuple(self.prefix + name for name in names) if self.prefix else names

    def streams(self) -> tuple[tuple[tuple[str, str, str], int], ...]:
        """Returns for each stream of moments its key in a layout and the index of its name in `moments`.

        A stream has a tensor for each parameter. A rule with more moments for a matrix than for a vector
        has a momentum first. For a vector, both streams of factors are the last moment.
        """
        vector, matrix = _moments_of(self.kind)
        shape = self.shape
        if len(vector) == len(matrix):
            return tuple(((self.prefix, shape, str(place)), place) for place in range(len(vector)))
        factors = (((self.prefix, shape, str(place)), place + 1) for place in range(2))
        return ((self.prefix, "whole", "0"), 0), *factors


class FusedStep(NamedTuple):
    """The step of a member, as data.

    Attributes:
        rules: one rule, or up to three rules of which `chosen` selects one.
        filter: a name in `FILTERS`.
        chosen: the index of the selected rule, int64 of shape `[]`; on the CPU for compiled C.
        first_steps: names in `FIRST_STEPS`, of which `chosen_first` selects one.
        chosen_first: the index of the selected first step, int64 of shape `[]`; on the CPU for compiled C.
        share: a function from a dtype to a tensor of shape `[]`, on the CPU for compiled C. For the rule
            "ref", the tensor is the share of the weights in the new first moment; the group has the other
            options of "ref". For the rule "fresh_sign", the tensor is the share of the gradient in the new
            first moment.
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
    """The emotion as tensors of shape `[]`, in the dtype of the computation.

    Compiled code on the CPU also takes Python's numbers, and rounds them to the dtype of the computation.

    Attributes:
        tolerance: theta (1 + |s|).
        scale: 1 - |s|.
        shadow_ratio: r(s).
        lr: the learning rate, a tensor. The ways without compiled code also take a number.
    """

    tolerance: Any
    scale: Any
    shadow_ratio: Any
    lr: Any


class Scalars(NamedTuple):
    """Further numbers of a step in compiled code on the CPU; see `FusedStep` for their meaning.

    Attributes:
        share: the share of the gradient in the new first moment; `None` for a rule without it.
        follow: how far shadows follow by the rule of `blend_by_trust`; `None` for another rule.
        weights: the factor of the weights before the step.
    """

    share: float | None = None
    follow: float | None = None
    weights: float = 1.0


NO_SCALARS = Scalars()


MOST_RULES = 3
"""The largest number of rules in a `Job` of cpu.c."""


@functools.lru_cache(maxsize=256)
def describe(recipe: Recipe, b1: float, b2: float, eps: float, theta: float) -> FusedStep | None:
    """Returns a recipe as data for compiled code; `None` if compiled code does not have the recipe.

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
        # In compiled code, rules with factors filter rows and columns, and rules without factors elements.
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
