"""The recorded runs of v3.6.1 and of the third generation are replayed at every step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import emo_optax
import emo_torch
from parity_tests.drive import Arrays, compiled
from parity_tests.recordings_test import FOLDER, LATER, RECORDINGS, of_one_program
from parity_tests.tolerances import RECORDING

CASES = [case for case in RECORDINGS if case["generation"] in LATER]

OPTAX: dict[tuple[str, str], Callable[..., Any]] = {
    ("1g-v3.6.1", "EmoNavi"): emo_optax.emo_navi36,
    ("1g-v3.6.1", "EmoFact"): emo_optax.emo_fact36,
    ("1g-v3.6.1", "EmoLynx"): emo_optax.emo_lynx36,
    ("3g-v3.9.1", "EmoSens"): emo_optax.emo_sens3,
    ("3g-v3.9.1", "EmoAiry"): emo_optax.emo_airy3,
    ("3g-v3.9.1", "EmoCats"): emo_optax.emo_cats3,
    ("3g-v3.9.1", "EmoTion"): emo_optax.emo_tion,
    ("3g-v3.9.1", "EmoVoid"): emo_optax.emo_void,
}


class OptaxReplay:
    """The Optax side: a member that replays a recording."""

    def __init__(self, case: dict[str, Any], params: Arrays) -> None:
        make = OPTAX[case["generation"], case["optimizer"]]
        init, self._step = compiled(make, tuple(sorted(case["kwargs"].items())))
        self._params = {name: jnp.asarray(array) for name, array in params.items()}
        self._state = init(self._params)

    def step(self, grads: Arrays, loss: float) -> None:
        arrays = {name: jnp.asarray(grad) for name, grad in grads.items()}
        self._params, self._state = self._step(self._params, self._state, arrays, loss)

    def params(self) -> Arrays:
        return {name: np.asarray(array) for name, array in self._params.items()}

    def state(self) -> Arrays:
        """Returns the state by the names that the packages share."""
        arrays: Arrays = emo_optax.to_arrays(self._state)
        return arrays

    def drive(self) -> float:
        return float(emo_optax.get_drive(self._state).drive)


TORCH: dict[tuple[str, str], Callable[..., Any]] = {
    ("1g-v3.6.1", "EmoNavi"): emo_torch.EmoNavi36,
    ("1g-v3.6.1", "EmoFact"): emo_torch.EmoFact36,
    ("1g-v3.6.1", "EmoLynx"): emo_torch.EmoLynx36,
    ("3g-v3.9.1", "EmoSens"): emo_torch.EmoSens3,
    ("3g-v3.9.1", "EmoAiry"): emo_torch.EmoAiry3,
    ("3g-v3.9.1", "EmoCats"): emo_torch.EmoCats3,
    ("3g-v3.9.1", "EmoTion"): emo_torch.EmoTion,
    ("3g-v3.9.1", "EmoVoid"): emo_torch.EmoVoid,
}


class TorchReplay:
    """The PyTorch side: a member that replays a recording; one tensor after the other."""

    options: dict[str, Any] = {"foreach": False}  # noqa: RUF012

    def __init__(self, case: dict[str, Any], params: Arrays) -> None:
        make = TORCH[case["generation"], case["optimizer"]]
        self._params = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in params.items()}
        kwargs = dict(case["kwargs"])
        if "learning_rate" in kwargs:
            kwargs["lr"] = kwargs.pop("learning_rate")
        self._optimizer = make(self._params.values(), **kwargs, **self.options)

    def step(self, grads: Arrays, loss: float) -> None:
        for name, param in self._params.items():
            param.grad = torch.tensor(grads[name])
        self._optimizer.step(loss=loss)

    def params(self) -> Arrays:
        return {name: param.detach().numpy() for name, param in self._params.items()}

    def state(self) -> Arrays:
        """Returns the state by the names that the packages share."""
        arrays: Arrays = emo_torch.to_arrays(self._optimizer, self._params.items())
        return arrays

    def drive(self) -> float:
        return float(self._optimizer.drive.drive)


class ForeachReplay(TorchReplay):
    """The PyTorch side, all tensors at once."""

    options: dict[str, Any] = {"foreach": True}  # noqa: RUF012


class FusedReplay(TorchReplay):
    """The PyTorch side in compiled code, where that knows the rule."""

    options: dict[str, Any] = {"fused": True}  # noqa: RUF012


SIDES: dict[str, Callable[..., Any]] = {
    "optax": OptaxReplay,
    "torch": TorchReplay,
    "torch-foreach": ForeachReplay,
    "torch-fused": FusedReplay,
}
"""The packages, and the ways to step of PyTorch, each with the same methods."""


def test_all_recordings_are_here() -> None:
    counts = [sum(case["generation"] == generation for case in CASES) for generation in LATER]
    assert counts == [18, 40]
    assert {(case["generation"], case["optimizer"]) for case in CASES} == set(OPTAX) == set(TORCH)
    assert sum(case["stops"] for case in CASES) == 3 * 33 + 5 * 30


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", [of_one_program(case) for case in CASES])
def test_replays_the_recording(case: dict[str, Any], side: str) -> None:
    recorded = np.load(FOLDER / case["file"])
    tolerance = RECORDING[case["dtype"]]
    memory = "pulse" if case["generation"].startswith("3g") else "emotion"

    def check(ours: Any, theirs: Any, name: str) -> None:
        np.testing.assert_allclose(
            ours, theirs, atol=tolerance.absolute, rtol=tolerance.relative, err_msg=name
        )

    with jax.enable_x64(case["dtype"] == "float64"):
        replay = SIDES[side](case, {name: recorded[f"params/{name}"][0] for name in case["shapes"]})
        for step in range(case["steps"]):
            grads = {name: recorded[f"grads/{name}"][step] for name in case["shapes"]}
            replay.step(grads, float(recorded["losses"][step]))
            for name, param in replay.params().items():
                check(param, recorded[f"params/{name}"][step + 1], f"{name}, {step}")
            state = replay.state()
            averages = recorded["ema_short_medium_long"][step]
            for name, expected in zip(("short", "medium", "long"), averages, strict=True):
                check(state[f"{memory}/{name}"], expected, f"{name}, {step}")
            assert bool(state[f"{memory}/should_stop"]) == bool(recorded["should_stop"][step]), step
            if memory == "pulse":
                # A pulse is about 1e-4: relative to it the bound means something in float32.
                expected = recorded["lr"][step]
                assert abs(float(state["pulse/pulse"]) / expected - 1.0) <= 1e2 * tolerance.absolute, step
                check(state["pulse/pulse"], expected, f"pulse, {step}")
            else:
                check(replay.drive(), recorded["drive"][step], f"drive, {step}")
