from pathlib import Path
from typing import Any

import pytest

from benchmarks.step_time import report, results, tables
from benchmarks.step_time.plan import GROUPS, Cell
from benchmarks.step_time.store import Store

ADAMW = "AdamW(fused=True)"
SECOND = Cell("torch", "cpu", 2, "steps", "gpt2", "second generation", 3)


def found(seconds: dict[str, list[float]], external: list[float | None] | None = None) -> dict[str, Any]:
    rounds = len(next(iter(seconds.values())))
    return {
        "load": 0.1,
        "device": "CPU",
        "seconds": seconds,
        "external": external or [0.0] * rounds,
        "costs": {name: {"temporaries": 4_977_592} for name in seconds if not name.startswith("floor")},
    }


def store_of(path: Path, *pairs: tuple[Cell, dict[str, Any]]) -> tuple[list[Cell], Store]:
    store = Store(path, {"processor": "abacus", "emo_torch": "0"})
    for cell, result in pairs:
        store.put(cell, result)
    return [cell for cell, _ in pairs], store


def row_of(table: str, *names: str) -> list[str]:
    lines = [line for line in table.splitlines() if all(f"| {name} |" in line for name in names)]
    assert len(lines) == 1, (names, lines)
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def test_ratios_are_of_the_same_round() -> None:
    # Of the medians it would be 1.
    result = found({"EmoSens": [1.0, 2.0, 8.0], ADAMW: [2.0, 1.0, 2.0]})
    ratio = results.ratio(result, "EmoSens", ADAMW, 3)
    assert (ratio.median, ratio.lower, ratio.upper) == (2.0, 1.25, 3.0)
    assert (ratio.rounds, ratio.is_quiet, str(ratio)) == (3, True, "2 [1.25, 3]")


def test_busy_rounds_count_only_where_quiet_ones_are_too_few() -> None:
    result = found({"EmoSens": [1.0, 9.0, 1.0], ADAMW: [1.0, 1.0, 1.0]}, [0.0, 0.5, None])
    assert results.ratio(result, "EmoSens", ADAMW, 2).upper == 1.0
    busy = results.ratio(result, "EmoSens", ADAMW, 3)
    assert (busy.rounds, busy.is_quiet, str(busy)) == (3, False, "1* [1, 5]")


def test_bounds_say_what_holds(tmp_path: Path) -> None:
    seconds = {ADAMW: [1.0] * 3, "EmoSens": [1.1] * 3, "EmoCats": [0.81] * 3, "EmoAiry": [0.8] * 3}
    done, store = store_of(tmp_path / "results.json", (SECOND, found(seconds)))
    table = report.bounds(done, store)
    assert "1.1 [1.1, 1.1] pass" in row_of(table, "EmoSens", "PyTorch, cpu", "GPT-2")
    assert "0.81 [0.81, 0.81] **fail**" in row_of(table, "EmoCats", "PyTorch, cpu", "GPT-2")
    assert row_of(table, "EmoCats", "PyTorch, cpu", "GPT-2")[4:6] == ["0.8", "0.71"]
    assert row_of(table, "EmoSens", "PyTorch, cpu", "LoRA")[-2:] == ["not measured", tables.NOTHING]
    assert row_of(table, "EmoSens", "PyTorch, cuda")[-2] == "open: no GPU was seen"
    temporaries = row_of(table, "the family's largest temporaries", "GPT-2")
    assert temporaries[-2] == "0.010 (EmoSens) pass"
    # 10 CPU rows of PyTorch, 8 of JAX, 6 on a GPU, and temporaries on both problems.
    assert len(table.splitlines()) == 2 + 10 + 8 + 6 + 2


def test_nothing_is_judged_on_a_busy_machine(tmp_path: Path) -> None:
    seconds = {ADAMW: [1.0] * 3, "EmoSens": [0.1] * 3, "EmoCats": [0.1] * 3}
    done, store = store_of(tmp_path / "results.json", (SECOND, found(seconds, [1.0, 0.0, 0.0])))
    verdict = row_of(report.bounds(done, store), "EmoSens", "PyTorch, cpu", "GPT-2")[-2]
    assert verdict == "0.1* [0.1, 0.1] open: the machine was busy"


def test_tables_say_how_near_the_floor_is(tmp_path: Path) -> None:
    floors = {"floor: 4 read, 3 written": [0.6] * 3, "floor: 3 read, 2 written": [0.5] * 3}
    seconds = {ADAMW: [1.0] * 3, "EmoSens": [0.8] * 3, "EmoCats": [1.0] * 3, **floors}
    done, store = store_of(tmp_path / "results.json", (SECOND, found(seconds)))
    table = tables.steps_table(results.Results(done, store), "torch", "cpu", "gpt2")
    sens = row_of(table, r"**EmoSens**")
    assert sens == ["**EmoSens**", "0.02", "0.8 [0.8, 0.8]", "800", "0.75", "0.010", "3"]
    assert row_of(table, r"**EmoCats**")[4] == "0.50"
    assert row_of(report.bounds(done, store), "EmoSens", "PyTorch, cpu", "GPT-2")[-1] == "0.75"


def test_the_family_is_held_to_its_cousins(tmp_path: Path) -> None:
    others = SECOND._replace(group="switched rules")
    clan = {"EmoClan at 0.02": [1.0] * 3, "EmoClan at 0.4": [3.0] * 3, "EmoClan at 0.8": [2.0] * 3}
    done, store = store_of(
        tmp_path / "results.json",
        (SECOND, found({ADAMW: [1.0] * 3, "EmoSens": [0.5] * 3})),
        # Twice as slow a machine by then: only ratios compare.
        (others, found({ADAMW: [2.0] * 3, **clan})),
    )
    text = report.write(tmp_path / "tables.md", done, store)
    assert row_of(text, "EmoClan", "EmoSens")[-1] == "3.00 at 0.4 **fail**"
    assert row_of(text, "EmoNeco", "EmoCats")[-1] == "not measured"
    assert (tmp_path / "tables.md").read_text() == text
    assert "processor abacus" in text


def test_compilation_and_traces_are_judged(tmp_path: Path) -> None:
    compilation = Cell("jax", "cpu", 2, "compilation", "100", "", 3)
    seconds = {
        "adamw": [1.0, 2.0, 4.0],
        "emo_sens": [1.2, 2.4, 4.8],
        "emo_cats": [1.3, 2.6, 5.2],
        "emo_airy": [1.0, 2.0, 4.0],
    }
    traces = Cell("jax", "cpu", 2, "traces", "tiny", "emo_sens", 1)
    once, twice = ({"load": 0.0, "device": "CPU", "traces": 1, "programs": each} for each in (1, 2))
    done, store = store_of(
        tmp_path / "results.json",
        (compilation, {"load": 0.0, "device": "CPU", "seconds": seconds}),
        (traces, once),
        (traces._replace(group="emo_neco"), twice),
    )
    text = report.write(tmp_path / "tables.md", done, store)
    assert row_of(text, "100")[2:] == [
        *("20.00", "24.00", "1.20", "pass", "26.00", "1.30", "**fail**", "20.00", "1.00", "pass"),
    ]
    assert "More than one each: emo_neco." in " ".join(text.split())


@pytest.mark.parametrize("framework", GROUPS)
def test_every_row_stands_in_a_table_once(framework: str) -> None:
    keys = [line.key for line in results.lines(framework)]
    assert len(keys) == len(set(keys))
    everyone = {
        key for group in GROUPS[framework].values() for each in group.variants for key, _ in each.rows()
    }
    assert set(keys) == everyone
