"""A short soak, and the findings of a long one: a leak, and a drift."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests import soak
from parity_tests.soak_plan import FAULTS, Soak
from parity_tests.soak_sides import OptaxSide, TorchSide

STEPS = 150
SHADOWED = Soak("EmoNeco", "float64", {"use_shadow": True})


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_both_go_on_side_by_side_through_every_fault(dtype: str) -> None:
    result = soak.run(SHADOWED._replace(dtype=dtype), STEPS)
    assert result.failures() == []
    assert all(result.faults[name] for name in FAULTS)
    assert result.gaps.keys() == {"parameters", "moments", "emotion", "shadow"}
    assert result.growth.keys() == {STEPS // 100, STEPS // 10, STEPS}


def test_a_drift_of_a_thousandth_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    step = TorchSide.step

    def drifting(self: TorchSide, grads: Any, loss: Any, lr: float) -> None:
        step(self, grads, loss, lr * 1.001 if isinstance(lr, float) else lr)

    monkeypatch.setattr(TorchSide, "step", drifting)
    [failure] = soak.run(Soak("EmoSens", "float32"), STEPS).failures()
    assert "param/" in failure


@pytest.mark.parametrize(("side", "kind"), [(OptaxSide, "arrays"), (TorchSide, "tensors")])
def test_a_leak_is_found(side: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    leave = side.leave

    def leaking(self: Any) -> Any:
        params, arrays = leave(self)
        kept.append(self.gradients(params))
        return params, arrays

    monkeypatch.setattr(side, "leave", leaking)
    [failure] = soak.run(Soak("EmoSens", "float64"), STEPS).failures()
    assert f"{kind} more than after the warm-up" in failure


def test_a_step_that_takes_what_is_no_loss_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchSide, "step", lambda *_: None)
    with pytest.raises(AssertionError, match="for a loss"):
        soak.run(Soak("EmoSens", "float64"), STEPS)


def test_the_command_ends_with_1_beyond_a_bound_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "soak.md"
    arguments = ["--steps", "100", "--optimizer", "EmoCats", "--dtype", "float64", "--report", str(page)]
    assert soak.main(arguments) == 0
    assert "1 runs of 100 steps; 0 beyond a bound." in page.read_text()
    leave = TorchSide.leave

    def moved(self: TorchSide) -> Any:
        params, arrays = leave(self)
        return params, {**arrays, "emotion/short": np.asarray(arrays["emotion/short"] * 1.001)}

    monkeypatch.setattr(TorchSide, "leave", moved)
    assert soak.main(arguments) == 1
    assert "emotion/short was beyond its bound after step" in page.read_text()
