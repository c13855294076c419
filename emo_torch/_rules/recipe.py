"""The members of the family as data: rules, and recipes made of rules.

Nothing here steps. `_step/ways.py` reads a recipe and takes the step, for one tensor, for many, or in
compiled code.
"""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from emo_torch._pieces.shadow_effect import Keep, keep_elements, keep_rows_and_columns

Group = dict[str, Any]
State = dict[str, Tensor]
Betas = tuple[float, float]
Choose = Callable[[Tensor], Tensor]
"""From the emotion scalar, shape `[]`, to the index of a rule, a whole number of shape `[]`."""
Filter = Literal["elements", "rows_and_columns"]


def init_zeros(*names: str) -> Callable[[Tensor, torch.dtype], State]:
    """Returns a function that makes moments of zeros, in the shape of the parameter."""
    return lambda param, dtype: {name: torch.zeros_like(param, dtype=dtype) for name in names}


# Compared by identity: two rules with the same formulas are still two rules.
@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """The way from a gradient to a direction.

    Attributes:
        name: the name of the rule. `emo_torch.to_arrays` writes the name into the arrays.
        moments: from the number of dimensions of a parameter to the names of its moments.
        init: from a parameter and a dtype to the moments before the first gradient.
        single: the formula for one tensor: from a gradient, the moments by name, which the formula moves
            in place, and the numbers in `reads`, to the update.
        multi: the same formula for many tensors of one device and dtype: from a list of gradients and a
            list of moments to a list of updates.
        reads: the numbers that the formula takes, among "b1", "b2" and "eps", and the `numbers` that the
            member makes of the losses (see `Feeling` in `_step/feeling.py`).
        kernel: the name of the compiled formula, in the `enum` of `_kernels/cpu.c`; `None` where there is
            none: then the other two ways step.
        on_cuda: whether `_kernels/cuda_kernels.py` has the formula, too.
        scalars: the names of further moments that are one number for each parameter.
        may_be_8bit: whether the moments may be stored in 8 bits: all have the shape of the parameter.
        turn: the formula of a rule under EmoPilot's scalars, in place of `single` and `multi`; see
            `directions.py`.
        betas: the decay rates of the rule; `None` for the decay rates of the parameter group.
        prefix: the text before the names of the moments in the optimizer's state.
    """

    name: str
    moments: Callable[[int], tuple[str, ...]]
    init: Callable[[Tensor, torch.dtype], State]
    single: Callable[..., Tensor]
    multi: Callable[..., list[Tensor]]
    reads: tuple[str, ...] = ("b1", "b2", "eps")
    kernel: str | None = None
    on_cuda: bool = True
    scalars: tuple[str, ...] = ()
    may_be_8bit: bool = False
    turn: Callable[..., tuple[list[Tensor], list[State]]] | None = None
    betas: Betas | None = None
    prefix: str = ""

    def named(self, prefix: str, betas: Betas | None = None) -> Rule:
        """Returns the rule with its own moments, whose names begin with a prefix."""
        return dataclasses.replace(self, prefix=prefix, betas=betas or self.betas)

    def moment_names(self, ndim: int) -> tuple[str, ...]:
        """Returns the names of the moments in the state of a parameter with `ndim` dimensions."""
        return tuple(self.prefix + name for name in (*self.moments(ndim), *self.scalars))

    def own_moments(self, moments: State) -> State:
        """Returns the moments of this rule among the moments of a parameter, without the prefix."""
        if not self.prefix:
            return moments
        start = len(self.prefix)
        return {name[start:]: moment for name, moment in moments.items() if name.startswith(self.prefix)}

    def numbers(self, group: Group, more: State | None = None) -> dict[str, Any]:
        """Returns the numbers that the formula takes, from the options of a parameter group and `more`."""
        b1, b2 = self.betas or group["betas"]
        numbers = {"b1": b1, "b2": b2, "eps": group["eps"], **(more or {})}
        return {name: numbers[name] for name in self.reads}


@dataclasses.dataclass(frozen=True, eq=False)
class FirstStep:
    """A step before weight decay and before the rules, by formulas that have no moments.

    Attributes:
        rules: the rules; each is called with no moments.
        choose: from the emotion scalar to the index of a rule.
        least_ndim: parameters with fewer dimensions have no first step.
    """

    rules: tuple[Rule, ...]
    choose: Choose
    least_ndim: int = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A member as data.

    Attributes:
        rules: one rule, or several among which `choose` chooses.
        choose: from the emotion scalar to the index of a rule; `None` for one rule.
        filter: which elements of an update move: the elements that `keep_elements` or
            `keep_rows_and_columns(eps)` keeps; `None` where the update is neither filtered nor scaled.
        first: a step before weight decay, if there is one.
        title: the name of the recipe in arrays; empty for the name of its only rule.
    """

    rules: tuple[Rule, ...]
    choose: Choose | None = None
    filter: Filter | None = "elements"
    first: FirstStep | None = None
    title: str = ""
    _names: dict[int, tuple[str, ...]] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.rules or (self.choose is None) != (len(self.rules) == 1):
            raise ValueError(
                "A recipe has one rule, or several rules and a function `choose`; this recipe has "
                f"{len(self.rules)} rules and choose={self.choose!r}"
            )
        if not self.title and (len(self.rules) > 1 or self.first is not None):
            raise ValueError("A recipe of several rules needs a title, by which arrays are told apart")

    @property
    def name(self) -> str:
        """The name of the recipe: members with the same name can exchange arrays."""
        return self.title or self.rules[0].name

    @property
    def has_kernel(self) -> bool:
        """Whether all rules have a compiled formula."""
        return all(rule.kernel is not None for rule in self.rules)

    @property
    def on_cuda(self) -> bool:
        """Whether all rules have a kernel for CUDA."""
        return self.has_kernel and all(rule.on_cuda for rule in self.rules)

    @property
    def may_be_8bit(self) -> bool:
        """Whether the moments of all rules may be stored in 8 bits."""
        return all(rule.may_be_8bit for rule in self.rules)

    def moment_names(self, ndim: int) -> tuple[str, ...]:
        """Returns the names of the moments of a parameter with `ndim` dimensions; shared names once."""
        names = self._names.get(ndim)
        if names is None:
            every = (name for rule in self.rules for name in rule.moment_names(ndim))
            names = self._names[ndim] = tuple(dict.fromkeys(every))
        return names

    def init(self, param: Tensor, dtype: torch.dtype) -> State:
        """Returns the moments of a parameter that has seen no gradient."""
        return {
            rule.prefix + name: moment
            for rule in self.rules
            for name, moment in rule.init(param, dtype).items()
        }

    def keep(self, group: Group) -> Keep:
        """Returns the function that says which elements of an update move."""
        return keep_rows_and_columns(group["eps"]) if self.filter == "rows_and_columns" else keep_elements
