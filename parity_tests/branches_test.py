"""The sequences that both packages are driven with reach every branch of every optimizer."""

from typing import Any

import numpy as np
import pytest

from parity_tests import sequences
from parity_tests.drive import Arrays, TorchDrive
from parity_tests.family import FAMILY

BRANCHES = {
    "a first loss that is finite",
    "a first loss that is not",
    "a loss held",
    "above the trend",
    "below the trend",
    "at the trend",
    "quiet",
    "not quiet",
    "shadow made",
    "shadow pulls",
    "shadow rests",
    "v1.0, s > 0.6",
    "v1.0, s < -0.6",
    "v1.0, |s| > 0.3",
    "v1.0, else",
    "a matrix",
    "a vector",
    "an empty tensor",
}
OF_THE_FILTER = {"an element stopped", "an element let through"}
OF_ONE = {
    "EmoClan": {"navi", "fact", "lynx"},
    "EmoNeco": {"cautious sign, |s| <= 0.2", "softsign", "cautious sign, |s| > 0.5"},
    "EmoZeal": {"no first step", "softsign first", "sign first"},
}
"""Branches that only one member has."""


RICH = ("not_finite_first", "fading")
"""The kinds of losses that reach most branches: the search begins with these kinds."""


def _of_one(name: str, state: Arrays, before: Arrays) -> set[str]:
    """Returns the branch of a member's own that a step took: for EmoClan, whose moments moved."""
    size = abs(float(state["emotion/scalar"]))
    if name == "EmoClan":
        moved = {key.split("_")[0] for key in before if not np.array_equal(before[key], state[key])}
        rules = moved & OF_ONE[name]
        assert len(rules) <= 1, rules
        return rules
    if name == "EmoNeco":
        parts = [(size > 0.5, "cautious sign, |s| > 0.5"), (size > 0.2, "softsign")]
        return {next((part for holds, part in parts if holds), "cautious sign, |s| <= 0.2")}
    if name == "EmoZeal":
        parts = [(size > 0.6, "sign first"), (size > 0.1, "softsign first")]
        return {next((part for holds, part in parts if holds), "no first step")}
    return set()


def _reached(name: str, losses: str, options: dict[str, Any]) -> set[str]:
    shapes = {shape: sequences.SHAPES[shape] for shape in ("vector", "matrix", "empty")}
    start = sequences.params("float64", shapes=shapes)
    drive = TorchDrive(FAMILY[name], start, {"use_shadow": True, **options})
    reached = {"a matrix", "a vector"} | ({"an empty tensor"} if start["empty"].size == 0 else set())
    existed = False
    has_filter = "theta" not in FAMILY[name].lacks
    last: Arrays = {}
    for step, loss in enumerate(sequences.losses(losses, 300)):
        before: Arrays = drive.params()
        drive.step(sequences.gradients(start, step), float(loss))
        state = drive.state()
        reached |= _of_one(name, state, last)
        last = state
        scalar, felt, held = (float(state[f"emotion/{key}"]) for key in ("scalar", "felt", "held"))
        if step == 0:
            reached.add("a first loss that is finite" if felt else "a first loss that is not")
        if held:
            reached.add("a loss held")
        reached.add(
            "above the trend" if scalar > 0 else "below the trend" if scalar < 0 else "at the trend"
        )
        reached.add("quiet" if state["emotion/should_stop"] else "not quiet")
        exists = bool(state["emotion/shadow_exists"])
        if exists and not existed:
            reached.add("shadow made")
        elif existed:
            reached.add("shadow pulls" if state["emotion/shadow_ratio"] > 0 else "shadow rests")
        existed = exists
        bounds = {"s > 0.6": scalar > 0.6, "s < -0.6": scalar < -0.6, "|s| > 0.3": abs(scalar) > 0.3}
        reached.add("v1.0, " + next((branch for branch, holds in bounds.items() if holds), "else"))
        if has_filter and state["emotion/shadow_ratio"] == 0:
            moved = drive.params()["vector"] != before["vector"] * (1.0 - 1e-5)
            reached |= {"an element let through" if element else "an element stopped" for element in moved}
    return reached


@pytest.mark.parametrize("name", [name for name, member in FAMILY.items() if member.memory == "emotion"])
def test_every_branch_is_taken(name: str) -> None:
    branches = BRANCHES | OF_ONE.get(name, set())
    runs: list[tuple[str, dict[str, Any]]] = [(losses, {}) for losses in RICH]
    if "theta" not in FAMILY[name].lacks:
        runs.append(("spiky", {"theta": 0.3}))
        branches |= OF_THE_FILTER
    runs += [(losses, {}) for losses in sequences.LOSSES if losses not in RICH]
    reached: set[str] = set()
    for losses, options in runs:
        reached |= _reached(name, losses, options)
        if reached >= branches:
            return
    raise AssertionError(f"no sequence reaches {branches - reached}")


def test_the_gradients_lie_on_both_sides_of_the_thresholds() -> None:
    start = sequences.params("float64")
    sizes = np.abs(np.concatenate([sequences.gradients(start, step)["vector"] for step in range(300)]))
    for threshold in (1e-12, 1e-6):
        near = sizes[(sizes > threshold / 1e3) & (sizes < threshold * 1e3)]
        assert np.any(near < threshold)
        assert np.any(near > threshold)
    assert np.any(sizes == 0.0)
