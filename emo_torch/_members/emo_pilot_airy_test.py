"""EmoPilotAiry: its rule against plain NumPy, its state, and what its factors must survive."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import emo_torch
from emo_torch._members.emo_pilot_test import LOSSES, Arrays, assert_close, drive, problem, reference, start
from emo_torch._testing import same_state


def factors(v: Any, g: Arrays, m: Arrays, t: int) -> Arrays:
    """Moves the factors and the momentum; returns the direction."""
    for n, each in g.items():
        square, rest = each**2, tuple(range(1, each.ndim))
        if each.ndim < 2:
            estimate = v[n] = 0.999 * v.get(n, 0.0) + 0.001 * square
        else:
            row, column = v.get(n, (0.0, 0.0))
            row = 0.999 * row + 0.001 * square.mean(rest, keepdims=True)
            column = 0.999 * column + 0.001 * square.mean(0, keepdims=True)
            v[n], estimate = (row, column), row * column / row.mean()
        u = each / (np.sqrt(estimate / (1 - 0.999**t)) + 1e-8)
        size = math.sqrt(float((u**2).mean()))
        v["clipped"] = v.get("clipped", 0) + (size > 1.0)
        m[n] = 0.9 * m[n] + 0.1 * u / max(1.0, size)
    return {n: m[n] / (1 - 0.9**t) for n in g}


def with_a_cube(steps: int = 40) -> tuple[Arrays, list[Arrays], list[float]]:
    """The problem of EmoPilot, with a parameter of three dimensions."""
    params, grads, losses = problem(steps=steps)
    rng = np.random.default_rng(7)
    params["cube"] = rng.normal(size=(2, 3, 4)) * 0.3
    for step, each in enumerate(grads):
        noise = 0.1 * rng.normal(size=(2, 3, 4))
        each["cube"] = (0.3 * params["cube"] + noise) * (50.0 if step == 20 else 1.0)
    return params, grads, losses


def run(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Any]:
    params, grads, losses = with_a_cube()
    own = start(params, dtype)
    return own, drive(emo_torch.EmoPilotAiry(own, **options), grads, losses)


@pytest.mark.parametrize("foreach", [False, True])
def test_the_rule_is_that_of_plain_numpy(foreach: bool) -> None:
    clipped = []

    def turn(v: Any, *given: Any) -> Arrays:
        direction = factors(v, *given)
        clipped.append(v["clipped"])
        return direction

    params, optimizer = run(foreach=foreach)
    wanted, average, courage = reference(*with_a_cube(), turn=turn)
    assert clipped[-1] > 20
    assert_close(params, wanted.values(), 1e-12)
    assert_close([optimizer.state[param]["average"] for param in params], average.values(), 1e-12)
    assert float(optimizer.pilot.courage) == pytest.approx(courage, rel=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_to_step_are_equal_to_the_last_bit(dtype: torch.dtype) -> None:
    ours, other = run(dtype, foreach=False)
    theirs, twin = run(dtype, foreach=True)
    assert all(map(torch.equal, ours, theirs))
    assert same_state(other.state_dict()["state"], twin.state_dict()["state"])


def test_the_state_of_a_matrix_is_two_thirds_of_emo_pilots() -> None:
    sizes = {}
    for name in ("emo_pilot", "emo_pilot_airy"):
        weight = torch.nn.Parameter(torch.ones(128, 128))
        weight.grad = torch.ones_like(weight)
        optimizer = emo_torch.create_optimizer(name, [weight])
        optimizer.step(loss=1.0)
        sizes[name] = sum(kept.numel() for kept in optimizer.state[weight].values())
    assert sizes["emo_pilot_airy"] / sizes["emo_pilot"] == pytest.approx(2 / 3, abs=0.01)


def test_a_step_that_is_not_finite_changes_no_factor() -> None:
    params, optimizer = run(torch.float32)
    before = {name: kept.clone() for name, kept in optimizer.state[params[0]].items()}
    grads = {name: np.full_like(value, math.inf) for name, value in with_a_cube()[0].items()}
    drive(optimizer, [grads], [1.0])
    assert {"row", "column", "exp_avg"} < before.keys()
    assert all(torch.equal(optimizer.state[params[0]][name], kept) for name, kept in before.items())


def test_empty_and_one_element_tensors_and_rows_of_0() -> None:
    params = {"none": np.zeros((0, 3)), "none too": np.zeros((3, 0)), "one": np.ones((1, 1))}
    params |= {"number": np.asarray(2.0), "still": np.ones((3, 2)), "rows": np.ones((3, 2))}
    grads = {name: value.copy() for name, value in params.items()}
    grads["still"][:] = 0.0
    grads["rows"][1] = 0.0
    own = start(params, torch.float32)
    options: dict[str, Any] = {"eps": 0.0, "weight_decay": 0.0}
    optimizer = drive(emo_torch.EmoPilotAiry(own, **options), [grads] * 8, list(LOSSES[:8]))
    assert all(bool(kept.isfinite().all()) for state in optimizer.state.values() for kept in state.values())
    moved = dict(zip(params, own, strict=True))
    assert torch.equal(moved["still"], torch.ones(3, 2))
    assert [bool((row < 1.0).all()) for row in moved["rows"]] == [True, False, True]
    assert float(moved["one"].detach()) < 1.0


@pytest.mark.parametrize("unit", [1e-11, 1e12])
def test_gradients_of_any_size_take_the_same_steps(unit: float) -> None:
    params, grads, losses = with_a_cube()
    own = start(params, torch.float32)
    scaled = [{name: unit * value for name, value in each.items()} for each in grads]
    drive(emo_torch.EmoPilotAiry(own, eps=0.0), scaled, losses)
    wanted, _ = run(eps=0.0)
    assert_close(own, [param.detach().numpy() for param in wanted], 1e-4)


@pytest.mark.parametrize("way", [{}, {"foreach": True}, {"foreach": False}], ids=str)
def test_the_gate_cuts_an_enormous_gradient_to_its_limit_in_the_factors_too(way: dict[str, Any]) -> None:
    usual = torch.tensor([[1e-9, -2e-9, 3e-9], [2e-9, 1e-9, -1e-9]])
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = emo_torch.EmoPilotAiry([weight], **way)
    for unit in (1.0, 1e24):  # The square of the gate is below all numbers of float32.
        weight.grad = unit * usual
        optimizer.step(loss=1.0)
    share = 0.001 * 0.999 + 0.001 * 2.5**2
    wanted = share * usual.square().mean(1, keepdim=True)
    torch.testing.assert_close(optimizer.state[weight]["row"], wanted, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("kept", [torch.float16, torch.bfloat16])
def test_factors_in_two_bytes_follow_the_rule(kept: torch.dtype) -> None:
    params, optimizer = run(torch.float32, moment_dtype=kept)
    assert optimizer.state[params[0]]["row"].dtype == kept
    assert_close(params, reference(*with_a_cube(), turn=factors)[0].values(), 0.05)


@pytest.mark.parametrize("other", ["emo_pilot", "emo_airy"])
def test_the_state_of_a_member_with_another_rule_is_refused(other: str) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 3))
    weight.grad = torch.ones_like(weight)
    theirs = emo_torch.create_optimizer(other, [weight])
    theirs.step(loss=1.0)
    with pytest.raises(ValueError, match="EmoPilotAiry"):
        emo_torch.EmoPilotAiry([weight]).load_state_dict(theirs.state_dict())
