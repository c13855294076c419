"""The rows are measured, judged and written; how long a step takes is no matter here."""

from pathlib import Path

import pytest

from benchmarks.step_time import rows
from benchmarks.step_time.rows import Result, Times, ratio_of, table


def test_a_ratio_is_of_wall_times_where_most_rounds_were_quiet() -> None:
    quiet, disturbed = [Times(2.0, 2.0)] * 3, [Times(9.0, 4.0)]
    assert ratio_of(quiet + disturbed, [Times(1.0, 1.0)] * 4)[::2] == ((2.0, 2.0, 2.0), True)
    ratio, share, is_wall = ratio_of(quiet[:1] + disturbed * 3, [Times(1.0, 1.0)] * 4)
    assert (ratio[0], share, is_wall) == (4.0, 0.25, False)


def test_a_table_judges_by_the_bound_and_marks_disturbed_rows() -> None:
    row = rows.ROWS[0]
    found = [Result(row, rows.LARGE, (ratio, 1.0, 2.0), 1.0, 0.3, False) for ratio in (1.5, 1.8)]
    _, _, passed, failed = table(found).splitlines()
    assert "1.50* [1.00, 2.00] pass" in passed
    assert "1.80* [1.00, 2.00] **fail**" in failed


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_command_measures_every_row(
    framework: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optax" if framework == "jax" else "torch")
    rows.main(["--framework", framework, "--tensors", "tiny", "--rounds", "2", "--output", str(tmp_path)])
    wanted = rows.ROWS if framework == "torch" else rows.JAX_ROWS
    printed = capsys.readouterr().out
    assert all(f"| {row.title} | {row.dtype} |" in printed for row in wanted)
    assert printed.strip() in (tmp_path / "rows.md").read_text()
