"""A Flax model and its PyTorch copy, each on its own gradients, stay together for 300 steps."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from parity_tests import closed_loop, roundings
from parity_tests.family import FAMILY
from parity_tests.tolerances import CLOSED_LOOP, Tolerance


@pytest.mark.parametrize(("optimizer", "dtype"), closed_loop.pairs())
def test_the_loss_curves_overlap(optimizer: str, dtype: str) -> None:
    loop = closed_loop.run(optimizer, dtype)
    steps = closed_loop.epochs(optimizer, dtype) * closed_loop.STEPS_PER_EPOCH
    assert len(loop.torch_loss) == steps
    assert loop.first_excess is None
    assert loop.of_band <= 1.0
    part = min(44, steps // 4)
    assert np.mean(loop.torch_loss[-part:]) < 0.8 * np.mean(loop.torch_loss[:part])
    assert loop.weights.max() > 0.0  # Two frameworks that never differ would be one.


MOST_EPOCHS = 3
"""The epochs that the later generations are trained for here; `python -m parity_tests` trains longer."""


@pytest.mark.parametrize(("optimizer", "dtype"), closed_loop.pairs(closed_loop.LATER))
def test_the_later_generations_and_emo_pilot_stay_in_the_band(optimizer: str, dtype: str) -> None:
    loop = closed_loop.run(optimizer, dtype, min(MOST_EPOCHS, closed_loop.epochs(optimizer, dtype)))
    assert loop.first_excess is None
    assert loop.weights.max() > 0.0


# EmoTion has a decision in float64, too.
HELD_FOR_LESS = [
    *((optimizer, "float32") for optimizer in closed_loop.FLOAT32_EPOCHS),
    *((optimizer, "float64") for optimizer in closed_loop.FLOAT64_EPOCHS),
]
EVERY = (*closed_loop.WITH_EMOTION, *closed_loop.LATER)
FLOAT32 = [(optimizer, dtype) for optimizer, dtype in closed_loop.pairs(EVERY) if dtype == "float32"]
HELD = dict.fromkeys((*FLOAT32, *(pair for pair in HELD_FOR_LESS if closed_loop.epochs(*pair))))


def _beside_its_cache(pairs: Iterable[tuple[str, str]]) -> list[Any]:
    """Sends the trainings of one member to one process, which keeps its losses without noise."""
    return [pytest.param(*pair, marks=pytest.mark.xdist_group(f"noise-{pair[0]}")) for pair in pairs]


@pytest.mark.parametrize(("optimizer", "dtype"), _beside_its_cache(HELD))
def test_no_rounding_decides_while_a_member_is_held_to_the_band(optimizer: str, dtype: str) -> None:
    share = roundings.share_of_band(optimizer, dtype=dtype)
    assert 0.0 < share < 0.5


@pytest.mark.parametrize(("optimizer", "dtype"), _beside_its_cache(HELD_FOR_LESS))
def test_a_rounding_decides_later_in_the_members_that_are_held_for_less(optimizer: str, dtype: str) -> None:
    # PyTorch against itself: no difference of the packages can be the reason.
    shares = (
        roundings.share_of_band(optimizer, closed_loop.EPOCHS, seed=seed, dtype=dtype) for seed in range(2)
    )
    assert any(share > 1.0 for share in shares)


def test_every_member_with_an_emotion_is_trained() -> None:
    emotional = {
        member.optax.__name__
        for member in FAMILY.values()
        if member.memory == "emotion" and not member.name.endswith("36")
    }
    assert {optimizer for optimizer, _ in closed_loop.pairs()} == emotional
    later = {optimizer for optimizer, _ in closed_loop.pairs(closed_loop.LATER)}
    names = {member.optax.__name__ for member in FAMILY.values()}
    assert emotional | later == names - {"ref_adamw_mini_schedule_free"}


def test_what_leaves_the_band_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLOSED_LOOP, "float32", Tolerance(1e-12, 0.0))
    loop = closed_loop.run("emo_sens", length=1)
    assert loop.first_excess is not None
    assert loop.of_band > 1.0
