"""The rows are measured, judged and written; how long a step takes is no matter here."""

from pathlib import Path

import pytest

from benchmarks.step_time import memory_floor, row_steps, rows, why
from benchmarks.step_time.row_steps import GPT2, JAX_ROWS, LARGE, ROWS, TINY, Result, Row, Times, ratio_of
from benchmarks.step_time.rows import table
from emo_torch import _kernels


def test_a_ratio_is_of_wall_times_where_most_rounds_were_quiet() -> None:
    quiet, disturbed = [Times(2.0, 2.0)] * 3, [Times(9.0, 4.0)]
    assert ratio_of(quiet + disturbed, [Times(1.0, 1.0)] * 4)[::2] == ((2.0, 2.0, 2.0), True)
    ratio, share, is_wall = ratio_of(quiet[:1] + disturbed * 3, [Times(1.0, 1.0)] * 4)
    assert (ratio[0], share, is_wall) == (4.0, 0.25, False)


def test_a_table_judges_by_the_bound_and_marks_disturbed_rows() -> None:
    row = ROWS[0]
    found = [Result(row, LARGE, (ratio, 1.0, 2.0), 1.0, 0.3, False) for ratio in (1.5, 1.8)]
    _, _, passed, failed = table(found).splitlines()
    assert "1.50* [1.00, 2.00] pass" in passed
    assert "1.80* [1.00, 2.00] **fail**" in failed
    busy = Result(ROWS[-1], GPT2, (0.1, 0.1, 0.2), 1.0, 0.3, is_wall=False)
    assert "0.10* [0.10, 0.20] open: the machine was busy" in table([busy])


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_command_measures_every_row(
    framework: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optax" if framework == "jax" else "torch")
    rows.main(["--framework", framework, "--tensors", "tiny", "--rounds", "1", "--output", str(tmp_path)])
    wanted = ROWS if framework == "torch" else JAX_ROWS
    printed = capsys.readouterr().out
    assert all(f"| {row.title} | {row.dtype} |" in printed for row in wanted)
    assert printed.split("\n\n")[0] in (tmp_path / "rows.md").read_text()


def test_a_run_of_a_part_keeps_the_other_rows(tmp_path: Path) -> None:
    row = ROWS[0]
    key = (row.title, row.dtype, LARGE)
    kept = {key: Result(row, LARGE, (1.5, 1.4, 1.6), 2.5, 0.75, is_wall=True)}
    rows.write(tmp_path / rows.KEPT, kept)
    assert rows.read(tmp_path / rows.KEPT) == kept
    given = ["--framework", "torch", "--tensors", "tiny", "--rounds", "2", "--output", str(tmp_path)]
    rows.main([*given, "--resume"])
    found = rows.read(tmp_path / rows.KEPT)
    assert found[key] == kept[key]
    assert len(found) == 1 + len(rows.keys_of("torch", [TINY]))


@pytest.mark.skipif(_kernels.library() is None, reason="NO C COMPILER WAS FOUND")
@pytest.mark.parametrize("row", [*ROWS[-3:-1], *JAX_ROWS[:2]], ids=lambda row: row.title)
def test_a_missed_row_has_a_floor(row: Row) -> None:
    if row.against:
        pytest.importorskip("optax")
    missing = Result(row._replace(bounds={TINY: 0.1}), TINY, (2.0, 2.0, 2.0), 1.0, 1.0, is_wall=True)
    found = why.why(missing, rounds=2)
    assert found is not None
    text = why.section([found], [missing])
    assert "Ratio 2.00, at most 0.1, floor" in text
    assert found.sentence in text
    assert all(part.ratio > 0 for part in found.parts)
    assert "Every row is within its bound" in why.section([], [])
    assert row_steps.baseline_of(row).make == ""


def test_a_floor_has_the_largest_of_the_parts_that_run_side_by_side() -> None:
    marks = {"bytes": memory_floor.EITHER, "arithmetic": memory_floor.EITHER, "loss": 1, "whole": 0}
    ratios = {"bytes": 0.5, "arithmetic": 0.75, "loss": 0.25, "whole": 2.0}
    parts = [why.Part(name, ratios[name], 1.0, mark) for name, mark in marks.items()]
    assert why.floor_of(parts) == 1.0
    assert why.floor_of(parts[2:]) == 0.25


@pytest.mark.skipif(_kernels.library() is None, reason="NO C COMPILER WAS FOUND")
@pytest.mark.parametrize("options", [{"moment_dtype": "8bit"}, {"moment_dtype": "bfloat16"}])
def test_the_floor_of_narrow_moments_has_bytes_and_arithmetic(options: dict[str, str]) -> None:
    found = memory_floor.memory(Row("EmoSens", "emo_sens", {}, options=options), TINY)
    assert found is not None
    steps, in_floor, _ = found
    assert set(in_floor) < set(steps)
    assert memory_floor.ARITHMETIC in in_floor
    for step in steps.values():
        step()
