"""The recorded runs of v3.6.1 and of the third generation are replayed at every step."""

from typing import Any

import jax
import numpy as np
import pytest

import emo_optax
from parity_tests.drive import Arrays, OptaxDrive, TorchDrive
from parity_tests.family import FAMILY
from parity_tests.recordings_test import (
    LATER,
    RECORDINGS,
    assert_rows,
    assert_within,
    load,
    of_one_program,
    replayed,
)
from parity_tests.tolerances import RECORDING

CASES = [case for case in RECORDINGS if case["generation"] in LATER]

MEMBERS = {
    ("1g-v3.6.1", "EmoNavi"): FAMILY["EmoNavi36"],
    ("1g-v3.6.1", "EmoFact"): FAMILY["EmoFact36"],
    ("1g-v3.6.1", "EmoLynx"): FAMILY["EmoLynx36"],
    ("3g-v3.9.1", "EmoSens"): FAMILY["EmoSens3"],
    ("3g-v3.9.1", "EmoAiry"): FAMILY["EmoAiry3"],
    ("3g-v3.9.1", "EmoCats"): FAMILY["EmoCats3"],
    ("3g-v3.9.1", "EmoTion"): FAMILY["EmoTion"],
    ("3g-v3.9.1", "EmoVoid"): FAMILY["EmoVoid"],
}


class OptaxReplay(OptaxDrive):
    """The Optax side, which also shows emoDrive."""

    def drives(self) -> Any:
        """Returns emoDrive of all kept steps."""
        states = jax.tree.map(lambda *leaves: np.stack(leaves), *(state for _, state in self._kept))
        return jax.vmap(lambda state: emo_optax.get_drive(state).drive)(states)


class TorchReplay(TorchDrive):
    """The PyTorch side, which also shows emoDrive."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._drives: list[float] = []

    def step(self, grads: Arrays, loss: float) -> None:
        """Takes one step with given gradients and loss."""
        super().step(grads, loss)
        if hasattr(self.optimizer, "drive"):
            self._drives.append(float(self.optimizer.drive.drive))

    def drives(self) -> Any:
        """Returns emoDrive of all steps."""
        return np.array(self._drives)


SIDES: dict[str, tuple[Any, dict[str, Any]]] = {
    "optax": (OptaxReplay, {}),
    "torch": (TorchReplay, {}),
    "torch-foreach": (TorchReplay, {"foreach": True}),
    "torch-fused": (TorchReplay, {"fused": True}),
}
"""The packages, and the ways to step of PyTorch, each with its options; without, one tensor at a time."""


def test_all_recordings_are_here() -> None:
    counts = [sum(case["generation"] == generation for case in CASES) for generation in LATER]
    assert counts == [18, 40]
    assert {(case["generation"], case["optimizer"]) for case in CASES} == set(MEMBERS)
    assert sum(case["stops"] for case in CASES) == 3 * 33 + 5 * 30


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", [of_one_program(case) for case in CASES])
def test_replays_the_recording(case: dict[str, Any], side: str) -> None:
    recorded, tolerance = load(case), RECORDING[case["dtype"]]
    memory = "pulse" if case["generation"].startswith("3g") else "emotion"
    make, way = SIDES[side]
    kwargs = dict(case["kwargs"])
    if "learning_rate" in kwargs:
        kwargs["lr"] = kwargs.pop("learning_rate")
    with jax.enable_x64(case["dtype"] == "float64"):
        first = {name: recorded[f"params/{name}"][0] for name in case["shapes"]}
        replay = make(MEMBERS[case["generation"], case["optimizer"]], first, kwargs | way)
        rows = replayed(replay, case, recorded)
        if memory == "emotion":
            assert_within(replay.drives(), recorded["drive"], tolerance, "drive")
    assert_rows(rows, case, recorded, tolerance)
    for column, name in enumerate(("short", "medium", "long")):
        averages = recorded["ema_short_medium_long"][:, column]
        assert_within(rows[f"{memory}/{name}"], averages, tolerance, name)
    np.testing.assert_array_equal(rows[f"{memory}/should_stop"], recorded["should_stop"])
    if memory == "pulse":
        # A pulse is about 1e-4: relative to it the bound means something in float32.
        ours, theirs = np.asarray(rows["pulse/pulse"], np.float64), recorded["lr"]
        assert (np.abs(ours / theirs - 1.0) <= 1e2 * tolerance.absolute).all()
        assert_within(ours, theirs, tolerance, "pulse")
