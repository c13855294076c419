"""Both packages, step for step, under the bounds of `tolerances`."""

from typing import Any

import pytest

from parity_tests.cases import STEPS, cases, program, with_few_shapes
from parity_tests.family import FAMILY
from parity_tests.lockstep import Case, compare, run, trajectory
from parity_tests.sequences import LOSSES
from parity_tests.tolerances import LOCKSTEP


def _name(case: Case) -> str:
    options = ",".join(f"{name}={value}" for name, value in case.options.items())
    return f"{case.optimizer}-{case.dtype}-{case.losses}-{options}"


def _of_one_program(case: Case) -> Any:
    """Sends cases that Optax compiles to one program to one process, which compiles it once."""
    group = program(case.optimizer, case.options, case.dtype, case.few)
    return pytest.param(case, id=_name(case), marks=pytest.mark.xdist_group(group))


@pytest.mark.parametrize("case", [_of_one_program(with_few_shapes(case)) for case in cases()])
def test_stays_in_step(case: Case) -> None:
    result = run(case)
    assert result.first_excess is None, result.first_excess
    assert {name.split("/")[0] for name in result.leaves} >= {"param", FAMILY[case.optimizer].memory}
    assert result.over("param/").values > 0


def test_nothing_is_left_out() -> None:
    driven = cases()
    assert {case.optimizer for case in driven} == set(FAMILY)
    for name in ("EmoSens", "EmoAiry", "EmoCats"):
        own = [case for case in driven if case.optimizer == name]
        assert {case.dtype for case in own if case.steps == STEPS} == set(LOCKSTEP)
        assert {case.losses for case in own} == set(LOSSES)


# The runs of EmoTion that have less than 300 steps, at the number at which the order of a sum has decided.
OF_EMO_TION: tuple[tuple[str, str, dict[str, Any], int], ...] = (
    ("float64", "negative", {"use_shadow": True}, 250),
    ("float64", "spiky", FAMILY["EmoTion"].more_options[0], 140),
    ("float64", "spiky", FAMILY["EmoTion"].more_options[1], 140),
    ("float32", "not_finite", {"use_shadow": True}, 185),
    ("float32", "spiky", {"use_shadow": True}, 185),
)


@pytest.mark.parametrize(("dtype", "losses", "options", "steps"), OF_EMO_TION)
def test_emo_tion_diverges_from_itself_when_a_sum_is_reversed(
    dtype: str, losses: str, options: dict[str, Any], steps: int
) -> None:
    case = Case("EmoTion", options, dtype, losses, steps)
    found = compare(
        trajectory("torch", case, is_reversed=True), trajectory("torch", case), case
    ).first_excess
    held = [
        case.steps
        for case in cases(["EmoTion"], [dtype])
        if (case.losses, case.options) == (losses, options)
    ]
    # Not in the steps, counted from 0, in which the twins are held to each other.
    assert found is not None
    assert found[0] >= min(held)
