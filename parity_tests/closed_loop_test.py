"""A Flax model and its PyTorch copy, each on its own gradients, stay together for 300 steps."""

import numpy as np
import pytest

from parity_tests import closed_loop
from parity_tests.family import FAMILY
from parity_tests.tolerances import CLOSED_LOOP, Tolerance


@pytest.mark.parametrize(("optimizer", "dtype"), closed_loop.pairs())
def test_the_loss_curves_overlap(optimizer: str, dtype: str) -> None:
    loop = closed_loop.run(optimizer, dtype)
    assert len(loop.torch_loss) == 7 * closed_loop.STEPS_PER_EPOCH
    assert loop.first_excess is None
    assert loop.of_band <= 1.0
    assert np.mean(loop.torch_loss[-44:]) < 0.8 * np.mean(loop.torch_loss[:44])
    assert loop.weights.max() > 0.0  # Two frameworks that never differ would be one.


def test_every_member_with_an_emotion_is_trained() -> None:
    emotional = {member.optax.__name__ for member in FAMILY.values() if member.memory == "emotion"}
    assert {optimizer for optimizer, _ in closed_loop.pairs()} == emotional


def test_what_leaves_the_band_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLOSED_LOOP, "float32", Tolerance(1e-12, 0.0))
    loop = closed_loop.run("emo_sens", epochs=1)
    assert loop.first_excess is not None
    assert loop.of_band > 1.0
