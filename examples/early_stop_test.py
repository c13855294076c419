import re
from pathlib import Path

import numpy as np
import pytest

from examples import early_stop
from examples.digits import data

PNG = b"\x89PNG\r\n\x1a\n"


def test_both_trainings_end_when_they_are_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "early_stop.png"
    assert early_stop.main(["--output", str(picture)]) == 0
    printed, warned = capsys.readouterr()
    assert warned == ""
    assert printed.splitlines()[-1] == str(picture)
    assert picture.read_bytes().startswith(PNG)
    steps = [int(step) for step in re.findall(r"quiet\s+at\s+step\s+(\d+)", printed)]
    assert len(steps) == 2
    assert abs(steps[0] - steps[1]) <= 5  # float32 may tip it a step earlier or later.
    assert 300 < steps[0] < 900
    accuracies = [float(share) for share in re.findall(r"accuracy\s+of\s+([\d.]+)%", printed)]
    assert min(accuracies) > 95.0


@pytest.mark.parametrize("train", [early_stop.train_with_optax, early_stop.train_with_torch])
def test_a_short_training_is_never_quiet_and_says_so(train: early_stop.Train) -> None:
    moved: list[int] = []
    training = train(data.load("float32"), 40, 0, False, lambda: moved.append(1))
    assert len(moved) == len(training.loss) == 40
    assert training.stopped is None
    assert not training.is_quiet.any()
    assert training.loss[-1] < training.loss[0]
    assert training.accuracy == training.last_accuracy
    assert early_stop.conclude("It", training, 40).startswith("It: never quiet in 40 steps")


def test_both_trainings_see_the_same_losses() -> None:
    digits = data.load("float32")
    ours, theirs = (
        train(digits, 60, 3, False, lambda: None)
        for train in (early_stop.train_with_optax, early_stop.train_with_torch)
    )
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-3)
    np.testing.assert_allclose(ours.scalar, theirs.scalar, atol=1e-3)


def test_going_on_shows_what_more_steps_bring() -> None:
    training = early_stop.train_with_torch(data.load("float32"), 700, 0, True, lambda: None)
    assert training.stopped is not None
    assert len(training.loss) == 700
    assert training.is_quiet[training.stopped - 1]
    assert not training.is_quiet[: training.stopped - 1].any()
    assert "at the end" in early_stop.conclude("It", training, 700)


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--seed", "-1"]])
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        early_stop.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err
