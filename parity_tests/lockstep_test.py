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


@pytest.mark.parametrize("dtype", LOCKSTEP)
@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("name", FAMILY)
def test_stays_in_step_whatever_the_losses(name: str, losses: str, dtype: str) -> None:
    _assert_close(Case(name, {"use_shadow": True}, dtype, losses))


@pytest.mark.parametrize("dtype", LOCKSTEP)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", FAMILY)
def test_stays_in_step_whatever_the_options(name: str, options: str, dtype: str) -> None:
    steps = FAMILY[name].steps.get(options, 300)
    _assert_close(Case(name, OPTIONS[options], dtype, steps=steps))


@pytest.mark.parametrize("dtype", LOCKSTEP)
@pytest.mark.parametrize(
    ("name", "options"), [(m.name, o) for m in FAMILY.values() for o in m.more_options]
)
def test_stays_in_step_with_what_only_one_member_has(
    name: str, options: dict[str, Any], dtype: str
) -> None:
    _assert_close(Case(name, options, dtype))


@pytest.mark.parametrize("dtype", LOCKSTEP)
@pytest.mark.parametrize("name", FAMILY)
def test_stays_in_step_with_all_tensors_at_once(name: str, dtype: str) -> None:
    _assert_close(Case(name, {"use_shadow": True, "foreach": True}, dtype))
