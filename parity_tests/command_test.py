"""The command: each framework in a process of its own, a table, a page, and an honest exit status."""

from pathlib import Path
from typing import Any

import pytest

from parity_tests import __main__ as command
from parity_tests import cases, closed_loop
from parity_tests.processes import find_gpu, trajectories
from parity_tests.tolerances import LOCKSTEP, Tolerance

FEW = ["--optimizer", "EmoCats", "--dtype", "float32", "--steps", "4"]
pytestmark = pytest.mark.xdist_group("the parity command")

_known: dict[tuple[str, str], Any] = {}


def _once(side: str, chosen: Any, place: str, *given: Any) -> Any:
    """Runs a side once for all tests: its process takes longer to start than to step."""
    if (side, place) not in _known:
        _known[side, place] = trajectories(side, chosen, place, *given)
    return _known[side, place]


@pytest.fixture(autouse=True)
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves two runs of each side, and no training."""
    every = cases.cases
    monkeypatch.setattr(command, "trajectories", _once)
    monkeypatch.setattr(command, "cases", lambda *given: every(*given)[:2])
    monkeypatch.setattr(closed_loop, "pairs", lambda _: [])


def test_asked_for_a_gpu_where_none_is_it_says_so_and_compares_on_the_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_gpu", lambda: None)
    page = tmp_path / "new" / "page.md"
    assert command.main([*FEW, "--device", "cuda", "--report", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "NO GPU WAS SEEN" in printed
    assert "2 comparisons of up to 4 steps, 0 beyond a bound" in printed
    assert "No GPU was seen." in page.read_text()
    assert "| EmoCats | float32 | parameters |" in page.read_text()
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_ends_with_one_where_a_bound_is_exceeded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOCKSTEP, "float32", Tolerance(0.0, 0.0))
    page = tmp_path / "page.md"
    assert command.main([*FEW, "--report", str(page)]) == 1
    assert "bound exceeded" in capsys.readouterr().out
    assert "beyond its bound" in page.read_text()


def test_on_a_gpu_each_framework_equals_the_other_and_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    if find_gpu() is None:
        pytest.skip("NO GPU WAS SEEN: JAX and PyTorch were compared on the CPU alone")
    assert command.main([*FEW, "--device", "cuda"]) == 0
    assert "6 comparisons" in capsys.readouterr().out
