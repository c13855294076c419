"""Moments in 8 bits, on both sides: the same codes, and a state that moves without loss.

`lockstep_test.py` drives both sides in float64, where moments differ in the 16th digit, and are rounded to
float32 before they are encoded. This file compares the codes themselves. In float32 it starts each step
from equal states, because a code that differs once is a difference of a percent in later steps.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import emo_optax
import emo_torch
from emo_optax._checks.states import nodes_of
from emo_torch._members.by_name import MEMBERS
from parity_tests import sequences
from parity_tests.cases import EIGHT_BIT
from parity_tests.drive import Arrays, OptaxDrive, TorchDrive, to_torch
from parity_tests.family import FAMILY
from parity_tests.lockstep import LARGE
from parity_tests.tolerances import LOCKSTEP

CODED = [member.make.__name__ for member in MEMBERS.values() if member.make.recipe.may_be_8bit]
OPTIONS = {"moment_dtype": "8bit"}

MOST_OTHERS = 1e-3
"""The share of codes that may differ after one step in float32.

Both sides round a moment up to four times, each by 2^-24 of its size or of the terms of the sum. A code
differs where a midpoint lies between the two results. Midpoints are at least 0.7 % apart: of moments of
many sizes 2 * 4 * 2^-24 / 0.007 = 7e-5 meet a midpoint, and some more where the terms of a sum cancel.
"""


def _codes(drive: OptaxDrive | TorchDrive) -> dict[str, np.ndarray]:
    """Returns codes and scales by the names of moments and parameters."""
    found: dict[str, np.ndarray] = {}
    if isinstance(drive, TorchDrive):
        for name, param in drive._params.items():
            for moment, tensor in drive.optimizer.state[param].items():
                if moment + "_scale" in drive.optimizer.state[param] or moment.endswith("_scale"):
                    found[f"{moment}/{name}"] = tensor.numpy()
        return found
    titles = {"mu": "exp_avg", "nu": "exp_avg_sq"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(drive._state):
        keys = [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]
        if keys[-1] in ("codes", "scales"):
            end = "_scale" if keys[-1] == "scales" else ""
            found[f"{titles[keys[-3]]}{end}/{keys[-2]}"] = np.asarray(leaf)
    return found


def _both(name: str, dtype: str, options: dict[str, Any]) -> tuple[Arrays, OptaxDrive, TorchDrive]:
    start = sequences.params(dtype, shapes=LARGE)
    return start, OptaxDrive(FAMILY[name], start, options), TorchDrive(FAMILY[name], start, options)


@pytest.mark.parametrize("name", CODED)
def test_codes_are_equal_in_float64(name: str) -> None:
    with jax.enable_x64(True):
        start, ours, theirs = _both(name, "float64", OPTIONS)
        for step, loss in enumerate(sequences.losses("spiky", 6)):
            for drive in (ours, theirs):
                drive.step(sequences.gradients(start, step), float(loss))
        one, other = _codes(ours), _codes(theirs)
    assert one.keys() == other.keys()
    assert len(one) in (4, 8)  # Codes and scales of two parameters, of one or two moments.
    for key, codes in one.items():
        assert codes.dtype == other[key].dtype
        assert np.array_equal(codes, other[key]), key


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_each_step_from_equal_states_gives_neighbouring_codes_in_float32(name: str) -> None:
    start, ours, theirs = _both(name, "float32", OPTIONS)
    tolerance = LOCKSTEP["float32"]
    different = count = 0
    for step, loss in enumerate(sequences.losses("spiky", 12)):
        for drive in (ours, theirs):
            drive.step(sequences.gradients(start, step), float(loss))
        one, other = _codes(ours), _codes(theirs)
        for key, codes in one.items():
            if "_scale/" in key:
                np.testing.assert_allclose(codes, other[key], rtol=1e-6)
            else:
                far = np.abs(codes.astype(int) - other[key].astype(int))
                assert far.max() <= 1, (key, step)
                different, count = different + int((far > 0).sum()), count + far.size
        for key, param in ours.params().items():
            np.testing.assert_allclose(
                theirs.params()[key], param, rtol=tolerance.relative, atol=tolerance.absolute
            )
            theirs._params[key].data.copy_(to_torch(param))
        emo_torch.from_arrays(ours.state(), theirs.optimizer, theirs._params.items())
    assert different / count <= MOST_OTHERS


@pytest.mark.parametrize("name", CODED)
def test_the_bridge_carries_codes_to_the_bit(name: str, tmp_path: Path) -> None:
    start, ours, theirs = _both(name, "float32", OPTIONS)
    for step, loss in enumerate(sequences.losses("spiky", 3)):
        theirs.step(sequences.gradients(start, step), float(loss))
    before, codes = theirs.state(), _codes(theirs)
    emo_torch.save_arrays(tmp_path / "run", before)
    ours._state = emo_optax.from_arrays(emo_optax.load_arrays(tmp_path / "run"), ours._state)
    for arrays in (ours.state(), _codes(ours)):
        expected = before if "version" in arrays else codes
        assert arrays.keys() == expected.keys()
        for key, array in arrays.items():
            assert np.array_equal(array, expected[key]), key
    other = TorchDrive(FAMILY[name], start, OPTIONS)
    emo_torch.from_arrays(ours.state(), other.optimizer, other._params.items())
    for key, array in _codes(other).items():
        assert np.array_equal(array, codes[key]), key


def test_arrays_go_from_float32_moments_to_codes_and_back() -> None:
    start, ours, _ = _both("EmoSens", "float32", {})
    coded = TorchDrive(FAMILY["EmoSens"], start, OPTIONS)
    for step in range(3):
        ours.step(sequences.gradients(start, step), 1.0)
    arrays = ours.state()
    emo_torch.from_arrays(arrays, coded.optimizer, coded._params.items())
    for key, array in coded.state().items():
        if key.startswith("exp_avg/") and array.size >= 4096:
            largest = np.abs(arrays[key]).max()
            assert 0.0 < np.abs(array - arrays[key]).max() <= 0.01 * largest


@pytest.mark.parametrize("size", [1e18, 1e20, 1e25, 3e38])
def test_a_gradient_with_a_square_above_float32_never_makes_a_step_too_large(size: float) -> None:
    """A step of EmoSens is at most 6.6 times the learning rate, whatever the gradient."""
    start = np.zeros(4096, np.float32)
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = emo_torch.EmoSens([weight], lr=1e-3, moment_dtype="8bit")
    ours = emo_optax.emo_sens(1e-3, moment_dtype="8bit")
    params = jnp.asarray(start)
    state = ours.init(params)
    for number in range(6):
        before = weight.detach().clone()
        grad = np.full(4096, 0.1, np.float32)
        grad[0] = size if number == 0 else 0.1
        weight.grad = torch.from_numpy(grad)
        theirs.step(loss=1.0)
        updates, state = ours.update(jnp.asarray(grad), state, params, value=1.0)
        params = optax.apply_updates(params, updates)
        assert float((weight.detach() - before).abs().max()) < 6.6e-3
        np.testing.assert_allclose(np.asarray(params), weight.detach().numpy(), rtol=1e-5, atol=1e-9)


def test_both_sides_give_codes_to_the_same_members() -> None:
    for name, member in FAMILY.items():
        refusals = []
        for side in (OptaxDrive, TorchDrive):
            try:
                side(member, sequences.params("float32"), OPTIONS)
            except (TypeError, ValueError) as error:  # A TypeError where there is no such option.
                refusals.append(type(error))
        assert len(refusals) == (0 if name in CODED else 2), name
        assert len(set(refusals)) <= 1, name
    state = FAMILY["EmoSens"].optax(**OPTIONS).init(sequences.params("float32", shapes=LARGE))
    assert len(nodes_of(state, emo_optax.CodedMoment)) == 4
