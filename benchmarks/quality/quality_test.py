import math
from pathlib import Path

import pytest

from benchmarks.quality import __main__ as command
from benchmarks.quality.plan import Cell, Plan, plan_of
from benchmarks.quality.report import DIVERGED, ratios, table
from benchmarks.quality.tasks import tasks
from benchmarks.quality.training import CONTENDERS, train

SMALL = Plan(("teacher",), (1e-3, 1e-2), (0,), 3, is_fast=True)


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_run_lowers_the_loss_and_is_the_same_again(name: str) -> None:
    task = tasks()["teacher"]
    first = train(task, CONTENDERS[name], 1e-2, 0, 1)["loss"]
    last = train(task, CONTENDERS[name], 1e-2, 0, 60)["loss"]
    assert last < first
    assert train(task, CONTENDERS[name], 1e-2, 0, 60)["loss"] == last


def test_a_call_that_is_stopped_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[float] = []

    def stopping(*given: object) -> dict[str, float]:
        del given
        if len(runs) == 5:
            raise KeyboardInterrupt
        runs.append(1.0)
        return {"loss": float(len(runs))}

    monkeypatch.setattr(command, "plan_of", lambda *, fast: SMALL)  # noqa: ARG005
    monkeypatch.setattr(command, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        command.main(["--output", str(tmp_path)])

    def going_on(*_: object) -> dict[str, float]:
        runs.append(1.0)
        return {"loss": 2.0}

    monkeypatch.setattr(command, "train", going_on)
    assert command.main(["--output", str(tmp_path)]) == 0
    assert len(runs) == len(SMALL.cells()) == 12
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert "| EmoPilot |" in (tmp_path / "quality.md").read_text()


def test_ratios_are_those_over_adamw_at_its_best_rate() -> None:
    losses: dict[Cell, float | None] = dict.fromkeys(SMALL.cells(), 2.0)
    losses[Cell("teacher", "adamw", 1e-2, 0, 3)] = 0.5
    losses[Cell("teacher", "emo_pilot", 1e-2, 0, 3)] = None
    found = ratios(losses, SMALL)
    assert found["teacher", "adamw", 1e-2] == 1.0
    assert found["teacher", "emo_sens", 1e-3] == 4.0
    assert found["teacher", "emo_pilot", 1e-2] == DIVERGED
    assert "| AdamW | 4 | 1 | 1 | 4 |" in table(losses, SMALL)


def test_the_defaults_are_among_the_rates_and_the_tasks_are_known() -> None:
    for fast in (False, True):
        plan = plan_of(fast=fast)
        assert set(plan.tasks) <= set(tasks())
        assert all(contender.default in plan.rates for contender in CONTENDERS.values())
        assert all(math.isfinite(rate) for rate in plan.rates)
