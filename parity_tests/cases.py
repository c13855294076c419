"""The cases of the tests and of the command: the same comparisons."""

from collections.abc import Collection, Mapping
from typing import Any

from parity_tests.family import FAMILY, OPTIONS, ROUNDED, WAYS, Member, optax_options
from parity_tests.lockstep import Case
from parity_tests.sequences import LOSSES
from parity_tests.tolerances import LOCKSTEP as LOCKSTEP
from parity_tests.tolerances import STEPS as STEPS

# float64 shows the most; in the other dtypes, the cases with most rounding.
_LOSSES = {
    "float32": ("spiky", "not_finite", "fading", "huge", "tiny"),
    "bfloat16": ("spiky", "not_finite"),
}
_LOSSES_OF_COUSINS = ("spiky", "not_finite", "fading")
_OPTIONS = {"float32": ("l2", "numbers"), "bfloat16": ("absolute", "l2")}


def program(optimizer: str, options: Mapping[str, Any], dtype: str, few: bool = False) -> str:
    """Returns a name for the program that Optax compiles: tests of one program run in one process."""
    known = optax_options(FAMILY[optimizer].known(options))
    return f"{optimizer}-{dtype}-{few}-{sorted(known.items())}"


def with_few_shapes(case: Case) -> Case:
    """Returns a case with few parameters, unless its shapes are the point.

    The shadow, a whole run and PyTorch's other ways to step are for all shapes, moments in 8 bits for large
    ones. Options and losses do the same to parameters of all shapes. What is held for fewer steps than the
    others depends on the numbers, and keeps them.
    """
    is_whole = case.steps in (STEPS, (STEPS + 1) // 2)
    is_of_all = case.losses == "spiky" and {"use_shadow"} <= case.options.keys() <= {"use_shadow", *WAYS}
    return case._replace(few=is_whole and not is_of_all)


EIGHT_BIT = ("EmoSens", "EmoCats", "EmoNeco", "EmoTion")
"""Members driven with moments in 8 bits, one of each rule."""


def cases(
    optimizers: Collection[str] = tuple(FAMILY),
    dtypes: Collection[str] = tuple(LOCKSTEP),
    steps: int = STEPS,
) -> list[Case]:
    """Returns the cases of some members and dtypes, with every kind of losses and every set of options.

    A member whose rule a cousin shows, too, is driven half as long, with less. A direction under EmoPilot's
    scalars is driven as long as EmoPilot: it has formulas of its own.

    Args:
        optimizers: the members' names in PyTorch.
        dtypes: of `tolerances.LOCKSTEP`.
        steps: how long the longest runs are.
    """
    found: list[Case] = []
    for name in optimizers:
        for dtype in dtypes:
            # The shadow is the option of each kind of losses, and one of `OPTIONS`, too.
            own = _of_member(FAMILY[name], dtype, steps)
            found += [case for index, case in enumerate(own) if case not in own[:index]]
    return found


def _of_member(member: Member, dtype: str, steps: int) -> list[Case]:
    whole = steps if member.cousin in (None, "EmoPilot") else (steps + 1) // 2

    def short(title: str) -> int:
        return min(whole, member.steps.get((title, dtype), whole))

    found = [
        Case(member.name, {"use_shadow": True}, dtype, losses, short(losses))
        for losses in _LOSSES.get(dtype, LOSSES)
        if member.cousin is None or losses in _LOSSES_OF_COUSINS
    ]
    found += [
        Case(member.name, OPTIONS[title], dtype, steps=short(title))
        for title in _OPTIONS.get(dtype, OPTIONS)
        if member.is_tested_with(title, dtype)
    ]
    if dtype == "float64":
        found += [Case(member.name, options, dtype, steps=short("more")) for options in member.more_options]
    # In float32 a difference of a rounding may choose another code: eight_bit_test.py compares each step.
    if dtype == "float64" and member.name in EIGHT_BIT:
        found.append(Case(member.name, {"use_shadow": True, "moment_dtype": "8bit"}, dtype, steps=40))
    if dtype == "bfloat16":
        rounded = ROUNDED.get(member.name, ())
        found += [Case(member.name, options, dtype, "not_finite", whole) for options in rounded]
    found += [
        Case(member.name, {"use_shadow": True, way: True}, dtype, steps=min(whole, 120))
        for way in WAYS
        if not (way == "fused" and (dtype == "bfloat16" or way in member.lacks))
    ]
    return found
