"""The yardstick as a command: cells that are run, resumed, searched for and written."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from examples.yardstick import plan, standings, tables, tasks
from examples.yardstick.__main__ import main, parse, run_missing
from examples.yardstick.optimizers import (
    contenders,
)
from examples.yardstick.plan import Cell, Settings, missing_cells, run_cell
from examples.yardstick.store import Store
from examples.yardstick.surfaces import SURFACES
from examples.yardstick_test import FEW, NAMES, PNG, TINY, surfaces_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tasks, "PRETRAINING_STEPS", 2)
    tasks._pretrained.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    tasks._pretrained.cache_clear()


def run_quickly(cell: Cell) -> dict[str, Any]:
    """Runs a cell, except cells that have to be compiled."""
    return {"made": "up"} if cell.kind == "surfaces" else run_cell(cell)


def finish(store: Store, names: list[str], settings: Settings = TINY) -> int:
    return run_missing(settings, names, store, 0, Console(quiet=True), run_quickly)


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    count = 0

    def stop_after_five(cell: Cell) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count > 5:
            raise KeyboardInterrupt
        return run_quickly(cell)

    with pytest.raises(KeyboardInterrupt):
        run_missing(TINY, FEW, Store(path), 0, Console(quiet=True), stop_after_five)
    first = json.loads(path.read_text())["cells"]
    assert len(first) == 5
    store = Store(path)
    rest = finish(store, FEW)
    assert rest > 5
    again = json.loads(path.read_text())["cells"]
    assert first.items() <= again.items()
    assert len(again) == rest + 5
    text = path.read_text()
    assert finish(Store(path), FEW) == 0
    assert path.read_text() == text
    # Other settings are other cells.
    assert missing_cells(TINY, FEW, Store(path)) == []
    assert missing_cells(plan.fast(), FEW, Store(path)) != []


def test_a_failure_says_in_which_cell(tmp_path: Path) -> None:
    def fail(_: Cell) -> dict[str, Any]:
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck") as failed:
        run_missing(TINY, FEW, Store(tmp_path / "results.json"), 0, Console(quiet=True), fail)
    assert "lora" in failed.value.__notes__[0]


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"version": 7}')
    with pytest.raises(ValueError, match="--fresh"):
        Store(path)
    assert path.read_text() == '{"version": 7}'


def made_up(tmp_path: Path, losses: dict[float, float | None]) -> Store:
    """Returns results of one search: EmoCats on the perceptron, by learning rate."""
    store = Store(tmp_path / "results.json")
    for rate, loss in losses.items():
        store.put(Cell("training", "emo_cats", 3, "mlp", rate, 0).key, {"loss": loss, "accuracy": 0.5})
    return store


@pytest.mark.parametrize(
    ("losses", "rates", "best", "is_edge"),
    [
        ({1e-3: 0.5, 3e-3: 0.4}, [1e-3, 3e-3, 1e-2], None, None),
        ({1e-3: 0.5, 3e-3: 0.4, 1e-2: None}, [1e-3, 3e-3, 1e-2], 3e-3, False),
        ({1e-3: 0.5, 3e-3: 0.4, 1e-2: 0.3, 3e-2: 0.2}, [1e-3, 3e-3, 1e-2, 3e-2], 3e-2, True),
    ],
)
def test_the_search_goes_on_while_the_best_is_at_the_edge(
    losses: dict[float, float | None],
    rates: list[float],
    best: float | None,
    is_edge: bool | None,
    tmp_path: Path,
) -> None:
    store = made_up(tmp_path, losses)
    contender = contenders()["emo_cats"]
    assert plan.searched_rates(TINY, contender, "mlp", 3, store) == rates
    if best is not None:
        assert plan.best_rate(TINY, contender, "mlp", 3, store) == best
        assert plan.is_at_the_edge(TINY, contender, "mlp", 3, store) is is_edge


def test_everything_is_written_and_fits_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("examples.yardstick.__main__.fast", lambda: TINY)
    name = "ref_adamw_mini_schedule_free"
    store = Store(tmp_path / "results.json")
    store.put(Cell("surfaces", name, TINY.surface_steps).key, surfaces_of(name))
    store.save()
    arguments = ["--only", name, "--workers", "0", "--output", str(tmp_path)]
    assert main(arguments) == 0
    assert "loses" in capsys.readouterr().out
    text = (tmp_path / "tables.md").read_text()
    assert max(len(line) for line in text.splitlines()) <= 100
    for title in (
        "RefAdamWMiniScheduleFree",
        "AdamW",
        "Memory",
        "Robustness",
        "Where the family loses and wins",
    ):
        assert title in text
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert len(pictures) == 9
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(PNG)
        assert (tmp_path / picture).stat().st_size < 500_000


def test_the_tables_say_what_the_results_say(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.json")
    settings = Settings(3, (("mlp", 3),), 0, (0,), (0, 1), (0,), ("spike", "labels"))
    base = {"emo_sens": 0.3, "emo_cats": 0.18, "adamw": 0.2}
    for name, loss in base.items():
        store.put(Cell("memory", name).key, {"transformer": 4.0 if name == "emo_cats" else 8.0})
        for rate in (contenders()[name].default, *(plan.rung(index) for index in range(-8, 0))):
            for seed in (0, 1):
                best = math.isclose(rate, 3e-3)
                result = {"loss": loss + 0.01 * seed if best else 2.0, "accuracy": 0.9 if best else 0.8}
                store.put(Cell("training", name, 3, "mlp", rate, seed).key, result)
                # A spike harms one everywhere; labels harm the reference at its best only.
                spiked = {"loss": 1.0, "accuracy": result["accuracy"] - 0.4 * (name == "emo_sens")}
                store.put(Cell("training", name, 3, "mlp", rate, seed, "spike").key, spiked)
                harm = 0.7 if best and name == "adamw" else 0.1 if name == "emo_cats" else 0.0
                labels = {"loss": 1.0, "accuracy": result["accuracy"] - harm}
                store.put(Cell("training", name, 3, "mlp", rate, seed, "labels").key, labels)
    found = standings.standings_on(settings, list(base), store, "mlp")
    assert list(found) == ["emo_cats", "adamw", "emo_sens"]
    assert [standing.rank for standing in found.values()] == [1, 2, 3]
    assert found["emo_sens"].best.rate == 3e-3
    assert found["emo_sens"].ratio == pytest.approx(0.305 / 0.205)
    assert found["emo_sens"].best.spread == pytest.approx(0.01)
    assert found["emo_sens"].default.loss == 2.0
    assert found["emo_sens"].default_ratio == pytest.approx(2.0 / 0.205)
    assert found["emo_sens"].default_rank == 1
    text = tables.standings(settings, list(base), store)
    for verdict in ("loses 1.49 (3)", "wins 0.90 (1)", "level 1.00 (1)"):
        assert verdict in text
    plain = " ".join(text.split())
    assert (
        "loses at the best only: EmoSens. level at the default only: EmoSens; EmoCats. "
        "wins at the best only: EmoCats."
    ) in plain
    assert "over AdamW's: EmoSens 1.00, EmoCats 0.50." in plain
    more, less, more_at_best, less_at_best = plain.split(" - ")[2:6]
    assert "spike (0.00): EmoSens 0.40; labels (0.00): EmoCats 0.10 (at the default only)." in more
    assert f"over {tables.NOTABLE}: nowhere." in less
    assert more_at_best.endswith(": nowhere.")
    assert less_at_best.endswith(": labels (0.70): EmoSens 0.00, EmoCats 0.10.")
    text = tables.robustness_table(settings, list(base), store)
    assert text.index("At the default learning rate:") < text.index("At the best learning rate:")
    text = tables.quality_table(settings, list(base), store, "mlp")
    assert " 9.76|" in text
    assert " 1.49|" in text


def test_the_widest_tables_fit_a_terminal(tmp_path: Path) -> None:
    settings = Settings(3, (("mlp", 3), ("lora", 2), ("cnn", 3), ("transformer", 3)), 2, (0,), (0, 1), (0,))
    store = Store(tmp_path / "results.json")
    surface = {"width": 1.25, "best": 1e-12}
    while cells := missing_cells(settings, NAMES, store):
        for cell in cells:
            diverges = cell.rate == contenders()[cell.contender].default and "adamw" in cell.contender
            loss = None if diverges else 12345.6 - cell.rate - cell.seed
            result = {"loss": loss, "accuracy": 0.5, "forgotten": -12.5}
            kinds: dict[str, Any] = {
                "training": result,
                "memory": {"transformer": 4.0, "adapters": 16.0},
            }
            store.put(cell.key, kinds.get(cell.kind, dict.fromkeys(SURFACES, surface)))
    text = tables.write_all(settings, NAMES, store, tmp_path / "tables.md")
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "as ref_max_steps: RefAdamWMiniScheduleFree" in " ".join(text.split())
    assert "nan" not in text


@pytest.mark.parametrize("arguments", [["--only", "nobody"], ["--workers", "-1"], ["--workers", "x"]])
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_reference_is_always_measured() -> None:
    assert parse(["--only", "sgd"]).only == ["sgd", "adamw"]
