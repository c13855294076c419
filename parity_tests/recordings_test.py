"""Both packages replay the recorded runs of the published code."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from parity_tests.drive import SIDES, Arrays, Drive
from parity_tests.family import FAMILY
from parity_tests.tolerances import RECORDING, Tolerance, recording

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


def load(case: dict[str, Any]) -> Arrays:
    """Returns all arrays of a recording, each read once."""
    with np.load(FOLDER / case["file"]) as recorded:
        return {name: recorded[name] for name in recorded.files}


def replayed(drive: Drive, case: dict[str, Any], recorded: Arrays) -> Arrays:
    """Takes all steps of a recording; returns the parameters and states, with the steps as first axis."""
    for step in range(case["steps"]):
        drive.step(
            {name: recorded[f"grads/{name}"][step] for name in case["shapes"]},
            float(recorded["losses"][step]),
        )
        drive.keep()
    return drive.history()


def assert_within(ours: Any, theirs: Any, tolerance: Tolerance, name: str) -> None:
    """Asserts that the values of all steps are within a bound."""
    np.testing.assert_allclose(ours, theirs, atol=tolerance.absolute, rtol=tolerance.relative, err_msg=name)


def assert_rows(rows: Arrays, case: dict[str, Any], recorded: Arrays, tolerance: Tolerance) -> None:
    """Asserts that the parameters after each step are the recorded ones."""
    for name in case["shapes"]:
        assert_within(rows[f"param/{name}"], recorded[f"params/{name}"][1:], tolerance, name)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", [of_one_program(case) for case in CASES])
def test_replays_the_recording(case: dict[str, Any], side: str) -> None:
    recorded = load(case)
    member = FAMILY[case["optimizer"]]
    tolerance, of_averages = recording(case["optimizer"], case["dtype"]), RECORDING[case["dtype"]]
    with jax.enable_x64(case["dtype"] == "float64"):
        first = {name: recorded[f"params/{name}"][0] for name in case["shapes"]}
        rows = replayed(SIDES[side](member, first, _options(case)), case, recorded)
    assert_rows(rows, case, recorded, tolerance)
    if member.memory != "emotion":
        np.testing.assert_array_equal(rows[f"{member.memory}/steps"], 1 + np.arange(case["steps"]))
        return
    for name, column in (("short", 0), ("long", 2)):
        averages = recorded["ema_short_medium_long"][:, column]
        assert_within(rows[f"emotion/{name}"], averages, of_averages, name)
    if case["loss_kind"] == "quiet":
        np.testing.assert_array_equal(rows["emotion/should_stop"], recorded["should_stop"])
