"""The members of the family as they are measured, from the registry and the recipes of `emo_torch`."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch

from emo_torch._members.by_name import MEMBERS as REGISTRY
from emo_torch._members.by_name import Member as Registered
from emo_torch._rules.recipe import Rule
from emo_torch._step.emo_optimizer import EmoOptimizer
from emo_torch._step.later_optimizers import DriveOptimizer, NormOptimizer
from emo_torch._step.steered import SteeredOptimizer

QUIET, MIDDLING, STRONG = 0.02, 0.4, 0.8
"""Sizes |s| of the emotion scalar. EmoClan, EmoNeco and EmoZeal take another rule at each; the shadow rests
at the first and blends at the others."""


class Member(NamedTuple):
    """A member of the family.

    Attributes:
        title: its name in PyTorch.
        cousin: the member of the second generation that has its rule, or the nearest to it; `None`
            for that generation itself.
        sizes: the sizes of the emotion scalar at which its steps do not cost the same.
        shadow: whether its shadow is on by default.
    """

    title: str
    cousin: str | None
    sizes: tuple[float | None, ...] = (QUIET,)
    shadow: bool = False


EVERY_RULE = (QUIET, MIDDLING, STRONG)


def _rule_at(member: Registered, size: float | None) -> Rule:
    """Returns the rule by which a member steps at a size of the emotion scalar."""
    recipe = member.make.recipe
    if recipe.choose is None or size is None:
        return recipe.rules[0]
    return recipe.rules[int(recipe.choose(torch.tensor(size)))]


def _cousin(member: Registered) -> str | None:
    """Returns the member of the second generation with the nearest moments in peace; `None` for itself."""
    if member.generation == 2:
        return None
    own = set(member.make.recipe.rules[0].moments(2))

    def distance(other: Registered) -> int:
        return len(own ^ set(other.make.recipe.rules[0].moments(2)))

    return min((other for other in REGISTRY.values() if other.generation == 2), key=distance).name


def _measured(member: Registered) -> Member:
    shadow = inspect.signature(member.make).parameters.get("use_shadow")
    is_on = shadow is not None and bool(shadow.default)
    recipe = member.make.recipe
    sizes: tuple[float | None, ...] = (QUIET, MIDDLING) if is_on else (QUIET,)
    if recipe.choose is not None or recipe.first is not None:
        sizes = EVERY_RULE
    if not issubclass(member.make, EmoOptimizer) or issubclass(member.make, DriveOptimizer):
        sizes = (None,)  # Another memory of the losses, in which no loss sets the size.
    return Member(member.make.__name__, _cousin(member), sizes, is_on)


MEMBERS = {name: _measured(member) for name, member in REGISTRY.items()}

_WRITTEN = {"AdamW": 3, "adamw": 3, "lion": 2, "Adafactor": 1, "adafactor": 1, "sgd": 1}
"""How many streams of the parameters' size the rivals read and write, beside the gradient."""


def written(make: str, size: float | None) -> int:
    """Returns the same for anybody: of a member, the parameters and the moments that are as large."""
    if make not in REGISTRY:
        return _WRITTEN[make]
    rule = _rule_at(REGISTRY[make], size)
    return 1 + len(set(rule.moments(1)) & set(rule.moments(2)))


def read_before(make: str) -> int:
    """Returns how many streams a pass before the step reads, for sums that the step needs.

    Args:
        make: the name of a member.
    """
    kind = REGISTRY[make].make if make in REGISTRY else None
    # The sum of the norms of the parameters; or the norm of the gradients.
    return int(kind is not None and issubclass(kind, (NormOptimizer, SteeredOptimizer)))


def _names(belongs: Callable[[Registered], bool]) -> tuple[str, ...]:
    return tuple(name for name, member in REGISTRY.items() if belongs(member))


def _is_switched(member: Registered) -> bool:
    return member.make.recipe.choose is not None or member.make.recipe.first is not None


SECOND = _names(lambda member: member.generation == 2)
FACTORED = tuple(name for name in SECOND if written(name, QUIET) == 1)
WHOLE = tuple(name for name in SECOND if name not in FACTORED)
THIRD = _names(lambda member: member.generation == 3)
STEERED = _names(lambda member: issubclass(member.make, SteeredOptimizer))
NO_EMOTION = tuple(
    name
    for name in _names(lambda member: not issubclass(member.make, EmoOptimizer))
    if name not in (*THIRD, *STEERED)
)
SWITCHED = _names(_is_switched)
# EmoNavi is measured beside EmoSens with a shadow.
SHADOW_GROUP = ("emo_navi",)
OTHERS = tuple(
    name
    for name in REGISTRY
    if name not in (*SECOND, *THIRD, *STEERED, *NO_EMOTION, *SWITCHED, *SHADOW_GROUP)
)
