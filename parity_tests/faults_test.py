"""The harness finds every fault that is planted; a healthy package shows none."""

from typing import Any

import pytest

from parity_tests.fault import SHOWN_WITH, Fault
from parity_tests.faults import CASES, every_fault, find
from parity_tests.lockstep import Case, run


def _beside_its_references(fault: Fault) -> Any:
    """Sends the faults of one package in one member to one process, which runs the healthy twin once."""
    group = f"faults-{fault.package}-{fault.by}-{fault.is_coded}"
    return pytest.param(fault, id=f"{fault.package}-{fault.what}", marks=pytest.mark.xdist_group(group))


@pytest.mark.parametrize("fault", [_beside_its_references(fault) for fault in every_fault()])
def test_a_planted_fault_is_found(fault: Fault) -> None:
    assert find(fault) is not None


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_where_no_fault_is_planted_none_is_found(case: Case) -> None:
    assert run(case).first_excess is None


def test_the_faults_that_few_cases_show_exist() -> None:
    assert SHOWN_WITH.keys() <= {fault.what for fault in every_fault()}


def test_a_fault_that_cannot_be_planted_is_an_error() -> None:
    with pytest.raises(AssertionError, match="stands 0 times"):
        find(Fault("emo_torch", "emotion", "no such words", "", "nothing"))
