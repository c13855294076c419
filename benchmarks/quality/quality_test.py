import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.quality import __main__ as command
from benchmarks.quality import plan
from benchmarks.quality.contenders import ALL, DEFAULTS, FIRST
from benchmarks.quality.first_rule import first_rule
from benchmarks.quality.plan import Cell
from benchmarks.quality.ratios import DIVERGED, Losses, mean_over_tasks, over_adamw
from benchmarks.quality.report import write
from benchmarks.quality.tasks import tasks
from benchmarks.quality.training import Trouble, train
from examples.yardstick.store import Store

REFERENCE = [-0.10455894, 0.42043627, 0.07120512, 0.30928396, 11.99833165, 1.46142064]
"""Weights, averaged weights, courage and norm after 30 steps of a plain program of the first version."""

SMALL = (Cell("rates", "factors", "emo_pilot"), Cell("rates", "factors", "adamw"))


def test_runs_with_several_rates_seeds_and_troubles_are_one_program() -> None:
    troubles = [Trouble(), Trouble(unit=100.0), Trouble(missing=1.0)]
    found = train(tasks()["factors"], ALL["emo_pilot"], (1e-2, 1e-1), (0, 1), 20, troubles=troubles)
    losses = found["EmoPilot"]
    assert losses.shape == (3, 2, 2)
    # A loss in another unit is measured in the usual one, and takes the same steps.
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    # Where every loss is missing, no step is taken: all learning rates end alike.
    assert (losses[2, 0] == losses[2, 1]).all()
    assert (losses[0] < losses[2]).all()
    assert losses[0, 0, 0] != losses[0, 0, 1]


def _result(runs: list[str]) -> Any:
    def run(cell: Cell) -> Any:
        if len(runs) == 1:
            runs.append("stopped")
            raise KeyboardInterrupt
        runs.append(cell.contender)
        row = {"emo_pilot": "EmoPilot", "adamw": "AdamW"}[cell.contender]
        return {row: [[[0.5, 0.5, None] if rate == 1.0 else [0.5, 1.0, 1.5] for rate in cell.rates]]}

    return run


def test_a_call_that_is_stopped_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    monkeypatch.setattr(command, "cells", lambda **_: SMALL)
    monkeypatch.setattr(command, "run", _result(runs))
    given = ["--folder", str(tmp_path), "--picture", str(tmp_path / "rates.png")]
    with pytest.raises(KeyboardInterrupt):
        command.main(given)
    assert command.main(given) == 0
    assert runs == ["emo_pilot", "stopped", "adamw"]
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "tables.md").read_text()
    assert "| EmoPilot | 1 |" in text
    assert "| 1 | diverged | 1 | 1 |" in text


def test_tables_show_more_seeds_and_rules_without_a_piece_in_spikes(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.json")
    for cell in plan.cells(held_back=True):
        if cell.study == "seeds":
            losses = [1.0 if seed % 2 else 3.0 for seed in cell.seeds]
            store.put(cell.key, {cell.contender: [[losses for _ in cell.rates]]})
        elif cell.study == "left out, spikes":
            size = 1.0 if cell.contender == "whole" else 2.0
            spikes = [
                [[size * (1 + index)] * 3 for _ in cell.rates] for index, _ in enumerate(cell.troubles)
            ]
            store.put(cell.key, {cell.contender: spikes})
    store.put(
        Cell("left out", "mlp", "whole", (1e-4,), (0, 1)).key,
        {"whole": [[[1.0, 1.0]] * 4]},
    )
    store.put(Cell("rates", "mlp", "adamw").key, {"AdamW": [[[1.0] * 3] * 11]})
    write(store, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert "12 seeds" in text
    assert "| emo_pilot | 2.000 ± 0.302 |" in text
    assert "| whole | 1 | 1 | 2 | 2 | 3 | 3 | 4 | 4 |" in text
    assert "| without gate | 2 | 2 | 4 | 4 | 6 | 6 | 8 | 8 |" in text


def test_tables_compare_the_first_version_of_the_rule(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.json")
    for cell in plan.cells(held_back=True):
        size = {FIRST: 3.0, "emo_pilot": 1.5, "adamw": 2.0}.get(cell.contender)
        if size and cell.study in {"rates", "first version"}:
            row = {"emo_pilot": "EmoPilot", "adamw": "AdamW"}.get(cell.contender, FIRST)
            store.put(cell.key, {row: [[[size] * 3] * len(cell.rates)]})
    write(store, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert f"| {FIRST}: 11 tasks, held back | 1.5 | 1.5 | 1.5 | 1.5 |" in text
    assert "| EmoPilot: 11 tasks, tuning | 0.75 | 0.75 | 0.75 | 0.75 |" in text


def test_the_first_version_takes_the_steps_of_its_reference() -> None:
    # The courage and a weight after some steps, from a plain program in double precision.
    def loss_of(weight: jax.Array, step: int) -> jax.Array:
        return jnp.sum((weight - 0.1 * (step % 3)) ** 2)

    optimizer, weight = first_rule(0.01), jnp.array([1.0, -0.5])
    state = optimizer.init(weight)
    for step in range(30):
        loss, grads = jax.value_and_grad(loss_of)(weight, step)
        grads = grads * (50.0 if step == 20 else 1.0)
        changes, state = optimizer.update(grads, state, weight, value=loss)
        weight = optax.apply_updates(weight, changes)
    found = [*weight.tolist(), *state.average.tolist(), float(state.courage), float(state.norm)]
    assert found == pytest.approx(REFERENCE, rel=1e-4)


def test_ratios_are_those_over_adamw_at_its_best_rate() -> None:
    losses: Losses = {
        ("mlp", "AdamW"): np.array([2.0, 0.5]),
        ("mlp", "EmoPilot"): np.array([1.0, math.inf]),
        ("cnn", "AdamW"): np.array([1.0, 4.0]),
        ("cnn", "EmoPilot"): np.array([0.5, 1.0]),
    }
    ratios = over_adamw(losses)
    assert ratios["mlp", "AdamW"].tolist() == [4.0, 1.0]
    assert ratios["mlp", "EmoPilot"].tolist() == [2.0, DIVERGED]
    mean = mean_over_tasks(ratios, "EmoPilot", ["mlp", "cnn"])
    assert mean is not None
    assert mean.tolist() == pytest.approx([1.0, DIVERGED**0.5])
    assert mean_over_tasks(ratios, "Muon", ["mlp"]) is None


def test_the_plan_names_what_is_known() -> None:
    found = plan.cells(held_back=True)
    assert len({cell.key for cell in found}) == len(found)
    assert {cell.task for cell in found} == set(tasks())
    assert {cell.contender for cell in found} == set(ALL)
    held_back = {name for name, task in tasks().items() if task.kind in plan.HELD_BACK}
    assert not held_back & {cell.task for cell in plan.cells()}
    assert set(DEFAULTS.values()) <= set(plan.RATES)
