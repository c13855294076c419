"""The harness finds every fault that is planted; a healthy package shows none."""

import pytest

from parity_tests.fault import Fault
from parity_tests.faults import CASES, every_fault, find
from parity_tests.lockstep import Case, run


@pytest.mark.parametrize("fault", every_fault(), ids=lambda fault: f"{fault.package}-{fault.what}")
def test_a_planted_fault_is_found(fault: Fault) -> None:
    assert find(fault) is not None


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_where_no_fault_is_planted_none_is_found(case: Case) -> None:
    assert run(case).first_excess is None


def test_a_fault_that_cannot_be_planted_is_an_error() -> None:
    with pytest.raises(AssertionError, match="stands 0 times"):
        find(Fault("emo_torch", "emotion", "no such words", "", "nothing"))
