from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorboard", reason="tensorboard is not installed: `pip install tensorboard`")

from examples import tensorboard_logging

NAMES = [
    *("short", "long", "scalar", "step_scale", "shadow_ratio", "learning_rate", "masked_share"),
    *("should_stop", "is_quiet", "felt", "held"),
]


def read(folder: Path) -> dict[str, Any]:
    """Returns the events in a folder: steps and values by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_both_trainings_write_what_tensorboard_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tensorboard_logging.main(["--steps", "40", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"tensorboard --logdir {tmp_path}" in printed
    for name in ("torch", "flax"):
        assert str(tmp_path / name) in printed
        logged = read(tmp_path / name)
        assert logged.keys() == {"loss", *(f"emotion/{each}" for each in NAMES)}
        assert [step for step, _ in logged["loss"]] == [0, 10, 20, 30]
        assert [value for _, value in logged["emotion/felt"]] == [1.0, 11.0, 21.0, 31.0]
        rates, scales = logged["emotion/learning_rate"], logged["emotion/step_scale"]
        for (_, rate), (_, scale) in zip(rates, scales, strict=True):
            assert rate == pytest.approx(1e-2 * scale)
        assert logged["loss"][-1][1] < logged["loss"][0][1]


def test_wrong_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tensorboard_logging.main(["--steps", "0"])
    assert "must be at least 1" in capsys.readouterr().err
