"""Both packages replay the recorded runs of the published code."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from parity_tests.drive import SIDES
from parity_tests.family import FAMILY
from parity_tests.tolerances import RECORDING, recording

FOLDER = Path(__file__).parent / "recordings"
RECORDINGS = json.loads((FOLDER / "index.json").read_text())
LATER = ("1g-v3.6.1", "3g-v3.9.1")
"""The generations of the members in `later_recordings_test.py`."""
CASES = [case for case in RECORDINGS if case["generation"] not in LATER]


def _options(case: dict[str, Any]) -> dict[str, Any]:
    ratio = {"1g-v1.0": {"shadow_ratio": "v1.0"}}.get(case["generation"], {})
    return {**case["kwargs"], **ratio, **FAMILY[case["optimizer"]].recorded}


def of_one_program(case: dict[str, Any]) -> Any:
    """Sends recordings that Optax replays in one program to one process, which compiles it once."""
    program = f"{case['generation']}-{case['optimizer']}-{case['dtype']}-{sorted(case['kwargs'].items())}"
    return pytest.param(case, id=case["file"].removesuffix(".npz"), marks=pytest.mark.xdist_group(program))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", [of_one_program(case) for case in CASES])
def test_replays_the_recording(case: dict[str, Any], side: str) -> None:
    recorded = np.load(FOLDER / case["file"])
    member = FAMILY[case["optimizer"]]
    tolerance, of_averages = recording(case["optimizer"], case["dtype"]), RECORDING[case["dtype"]]
    with jax.enable_x64(case["dtype"] == "float64"):
        first = {name: recorded[f"params/{name}"][0] for name in case["shapes"]}
        drive = SIDES[side](member, first, _options(case))
        for step in range(case["steps"]):
            grads = {name: recorded[f"grads/{name}"][step] for name in case["shapes"]}
            drive.step(grads, float(recorded["losses"][step]))
            for name, param in drive.params().items():
                expected = recorded[f"params/{name}"][step + 1]
                np.testing.assert_allclose(
                    param,
                    expected,
                    atol=tolerance.absolute,
                    rtol=tolerance.relative,
                    err_msg=f"{name}, {step}",
                )
            state = drive.state()
            if member.memory != "emotion":
                assert int(state[f"{member.memory}/steps"]) == step + 1
                continue
            averages = recorded["ema_short_medium_long"][step]
            for name, expected in (("short", averages[0]), ("long", averages[2])):
                np.testing.assert_allclose(
                    state[f"emotion/{name}"],
                    expected,
                    atol=of_averages.absolute,
                    rtol=of_averages.relative,
                )
            if case["loss_kind"] == "quiet":
                assert bool(state["emotion/should_stop"]) == bool(recorded["should_stop"][step])
