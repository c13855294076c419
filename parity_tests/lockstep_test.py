"""Both packages, step for step, under the bounds of `tolerances`."""

from typing import Any

import pytest

from parity_tests.family import FAMILY, OPTIONS
from parity_tests.lockstep import Case, run
from parity_tests.sequences import LOSSES
from parity_tests.tolerances import LOCKSTEP


def _assert_close(case: Case) -> None:
    result = run(case)
    assert result.first_excess is None, result.first_excess
    assert {name.split("/")[0] for name in result.leaves} >= {"param", FAMILY[case.optimizer].memory}
    assert result.over("param/").values > 0


def _steps(name: str) -> int:
    """Returns how long to drive: half as long where a cousin shows the same rule."""
    return 300 if FAMILY[name].cousin is None else 150


def _loss_cases() -> list[tuple[str, str, str]]:
    """Returns every kind of losses in float64, and in the others, and for cousins, those that say most."""
    most = {
        "float32": ("spiky", "not_finite", "fading", "huge", "tiny"),
        "bfloat16": ("spiky", "not_finite"),
    }
    of_cousins = ("spiky", "not_finite", "fading")
    return [
        (member.name, losses, dtype)
        for member in FAMILY.values()
        for dtype in LOCKSTEP
        for losses in most.get(dtype, LOSSES)
        if member.cousin is None or losses in of_cousins
    ]


def _option_cases() -> list[tuple[str, str, str]]:
    """Returns every set of options in float64, and in the other dtypes those whose rounding differs."""
    rounding = {"float32": ("l2", "numbers"), "bfloat16": ("absolute", "l2")}
    return [
        (member.name, options, dtype)
        for member in FAMILY.values()
        for dtype in LOCKSTEP
        for options in rounding.get(dtype, OPTIONS)
        if member.is_tested_with(options, dtype)
    ]


@pytest.mark.parametrize(("name", "losses", "dtype"), _loss_cases())
def test_stays_in_step_whatever_the_losses(name: str, losses: str, dtype: str) -> None:
    _assert_close(Case(name, {"use_shadow": True}, dtype, losses, _steps(name)))


@pytest.mark.parametrize(("name", "options", "dtype"), _option_cases())
def test_stays_in_step_whatever_the_options(name: str, options: str, dtype: str) -> None:
    steps = min(FAMILY[name].steps.get(options, 300), _steps(name))
    _assert_close(Case(name, OPTIONS[options], dtype, steps=steps))


@pytest.mark.parametrize(
    ("name", "options"), [(m.name, o) for m in FAMILY.values() for o in m.more_options]
)
def test_stays_in_step_with_what_only_some_members_have(name: str, options: dict[str, Any]) -> None:
    _assert_close(Case(name, options, "float64"))


@pytest.mark.parametrize("dtype", LOCKSTEP)
@pytest.mark.parametrize("name", FAMILY)
def test_stays_in_step_with_all_tensors_at_once(name: str, dtype: str) -> None:
    _assert_close(Case(name, {"use_shadow": True, "foreach": True}, dtype, steps=120))
