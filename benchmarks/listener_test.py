"""The cost of the listener: the page, and a number of calls that does not grow with the tensors."""

from pathlib import Path

import pytest

from benchmarks import listener
from benchmarks.listener import CASES, Case


def test_the_page_has_a_row_for_each_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listener.main(["--tensors", "200", "--rounds", "1", "--output", str(tmp_path)])
    assert "The cost of the listener" in capsys.readouterr().out
    page = (tmp_path / "listener.md").read_text()
    rows = [
        line
        for line in page.splitlines()
        if line.startswith(("| one", "| two", "| four", "| ten", "| a h"))
    ]
    assert len(rows) == len(CASES)


@pytest.mark.parametrize("case", [CASES[1], CASES[3]], ids=["four", "two"])
def test_the_listener_makes_few_calls_whatever_the_number_of_tensors(case: Case) -> None:
    few, many = (listener.measure(case, tensors, rounds=1).calls for tensors in (200, 400))
    optimizers = case.owners + case.others
    assert 0 < few < 100 + 60 * optimizers
    assert many <= few + 8 * optimizers + 8
