import math

import pytest
import torch

import emo_torch
from benchmarks.step_time import rounds
from benchmarks.step_time.rounds import Row, check_emotion, loss_for, measure, warm_up


class Fake:
    def __init__(self, log: list[tuple[str, float | None]]) -> None:
        self._log = log

    def prepare(self, size: float | None) -> None:
        self._log.append(("prepare", size))

    def run(self) -> None:
        self._log.append(("run", None))

    def check(self, size: float | None) -> None:
        self._log.append(("check", size))

    def move(self) -> None:
        self._log.append(("move", None))


def rows(log: list[tuple[str, float | None]]) -> list[Row]:
    runner = Fake(log)
    return [Row(f"row {index}", runner, float(index)) for index in range(4)]


def test_every_row_runs_once_a_round_in_another_order() -> None:
    log: list[tuple[str, float | None]] = []
    timing = measure(rows(log), 5, seed=0)
    moves = [place for place, (what, _) in enumerate(log) if what == "move"]
    assert moves[0] == 3 * 4
    assert len(moves) == len(timing["external"]) - 1
    log = [entry for entry in log if entry[0] != "move"]
    assert {key: len(times) for key, times in timing["seconds"].items()} == {
        f"row {index}": len(timing["external"]) for index in range(4)
    }
    assert [what for what, _ in log] == ["prepare", "run", "check"] * (len(log) // 3)
    orders = [tuple(size for _, size in log[start : start + 12 : 3]) for start in range(0, len(log), 12)]
    assert all(sorted(map(float, order)) == [0.0, 1.0, 2.0, 3.0] for order in orders)  # type: ignore[arg-type]
    assert len(set(orders)) > 1


def test_busy_rounds_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "WINDOW", 0.0)
    told = iter([0.5, 0.0, 0.16, 0.15, 0.0, 9.0])
    monkeypatch.setattr(rounds.Watch, "tell", lambda _: next(told))
    count: list[int] = []
    timing = measure(rows([]), 3, seed=0, advance=lambda: count.append(1))
    assert timing["external"] == [0.5, 0.0, 0.16, 0.15, 0.0]
    assert len(count) == 5


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "WINDOW", 0.0)
    monkeypatch.setattr(rounds.Watch, "tell", lambda _: 1.0)
    assert measure(rows([]), 3, seed=0)["external"] == [1.0] * 6


def test_a_shadow_that_is_only_being_made_is_warmed_up() -> None:
    log: list[tuple[str, float | None]] = []
    warm_up(rows(log))
    assert log[0] == ("prepare", None)
    assert [entry for entry in log if entry[0] != "run"][1:4] == [
        ("prepare", 0.0),
        ("prepare", 0.0),
        ("check", 0.0),
    ]


def test_losses_bring_the_scalar_where_it_shall_be() -> None:
    state = emo_torch.feel(emo_torch.init_emotion(torch.float32), torch.tensor(3.0))
    for step in range(200):
        size = (0.02, 0.4, 0.8)[step % 3]
        loss = loss_for(float(state.short), float(state.long), size)
        assert 1.0 < loss < 4.0
        state = emo_torch.feel(state, torch.tensor(loss))
        assert math.isclose(float(state.scalar), -size, abs_tol=1e-3)


@pytest.mark.parametrize(
    ("scalar", "ratio", "size", "shadow", "message"),
    [
        (0.1, 0.0, 0.02, False, "scalar of 0.100"),
        (-0.4, 0.0, 0.4, True, "ratio of 0.000"),
        (-0.4, 0.4, 0.4, False, "ratio of 0.400"),
        (-0.02, 0.02, 0.02, True, "ratio of 0.020"),
    ],
)
def test_a_step_of_another_kind_is_an_error(
    scalar: float, ratio: float, size: float, shadow: bool, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        check_emotion("EmoSens", scalar, ratio, size, shadow=shadow)


def test_a_step_of_the_right_kind_is_none() -> None:
    check_emotion("EmoSens", -0.4, 0.4, 0.4, shadow=True)
    check_emotion("EmoSens", -0.02, 0.0, 0.02, shadow=True)
    check_emotion("EmoSens", -0.4, 0.0, 0.4, shadow=False)
