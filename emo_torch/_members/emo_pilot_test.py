"""EmoPilot: its rule against plain NumPy, averaged weights, and its use in training loops."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import emo_torch
from emo_torch._testing import mean_squared_error, same_state

Arrays = dict[str, NDArray[Any]]
LOSSES = (
    3.0,
    2.5,
    2.6,
    2.2,
    2.4,
    2.0,
    1.9,
    2.3,
    1.7,
    1.6,
    9.0,
    1.5,
    1.4,
    1.2,
    1.3,
    1.1,
    1.0,
    0.9,
    1.0,
    0.8,
)


def problem(seed: int = 0, steps: int = 40) -> tuple[Arrays, list[Arrays], list[float]]:
    """Parameters, and gradients and losses of each step; the gradient of one step is 50 times as large."""
    rng = np.random.default_rng(seed)
    params = {"a": rng.normal(size=(4, 3)) * 0.2, "b": rng.normal(size=(3,)), "c": np.array([[0.01]])}
    grads = [
        {
            name: (0.3 * value + 0.1 * rng.normal(size=value.shape)) * (50.0 if step == 20 else 1.0)
            for name, value in params.items()
        }
        for step in range(steps)
    ]
    losses = [LOSSES[step % len(LOSSES)] * 0.9 ** (step // len(LOSSES)) for step in range(steps)]
    return params, grads, losses


def adam(v: Arrays, g: Arrays, m: Arrays, t: int) -> Arrays:
    """Moves Adam's moments; returns his direction."""
    for n in g:
        m[n] = 0.9 * m[n] + 0.1 * g[n]
        v[n] = 0.999 * v.get(n, 0.0) + 0.001 * g[n] ** 2
    return {n: (m[n] / (1 - 0.9**t)) / (np.sqrt(v[n] / (1 - 0.999**t)) + 1e-8) for n in g}


def reference(
    params: Arrays, grads: list[Arrays], losses: list[float], lr: float = 1e-2, turn: Any = adam
) -> tuple[Arrays, Arrays, float]:
    """The rule in plain NumPy: parameters, averaged weights and courage at the end."""
    p = {name: value.copy() for name, value in params.items()}
    v: Arrays = {}
    m = {name: np.zeros_like(value) for name, value in p.items()}
    average = {name: value.copy() for name, value in p.items()}
    t, k, q, c, a, a2 = 0, 1.0, 0.0, 0.0, 0.0, 0.0
    short = long = previous = usual = 0.0

    def dot(left: Arrays, right: Arrays) -> float:
        return sum(float((left[n] * right[n]).sum()) for n in p)

    for g, loss in zip(grads, losses, strict=True):
        norm = math.sqrt(dot(g, g))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            continue
        t += 1
        if t == 1:
            short = long = previous = loss
            usual = norm
        sigma = math.sqrt(q / c) if c else 0.0
        d, previous = abs(loss - previous), loss
        if t > 5:
            d, loss = min(d, 4 * sigma), min(loss, short + 8 * sigma)
        short += 0.3 * (loss - short)
        long += max(0.05, 1 / (t + 1)) * (loss - long)
        q, c = 0.95 * q + 0.025 * d * d, 0.95 * c + 0.05
        s = math.tanh((short - long) / (2 * math.sqrt(q / c) + 1e-7 * abs(long))) if t > 5 else 0.0
        factor = min(1.0, 2.5 * usual / norm) if t > 1 else 1.0
        g = {n: factor * x for n, x in g.items()}
        if t > 1:
            usual += max(0.05, 1 / t) * (factor * norm - usual)
            # The agreement of this step is for the next step.
            last, a = a, dot(g, m) / (factor * norm * math.sqrt(dot(m, m)))
            if t > 2:
                a2 += 0.05 * (last * last - a2)
            rise, fall = max(0.0, (s - 0.5) / 0.5), max(0.0, (-s - 0.5) / 0.5)
            if t > 5:
                growth = 0.05 * (1 + 40 / (t + 10)) * (math.tanh(last / math.sqrt(a2)) + 0.4 * fall)
                growth += 6.0 / (t + 20) * max(0.0, math.log(0.008 / (k * lr)))
                k = min(1000.0, max(0.03, k * math.exp(-0.2 * rise if s > 0.5 else growth)))
        u = turn(v, g, m, t)
        for n in p:
            step = k * min(lr, 0.08 * min(0.1, max(0.02, math.sqrt(float((p[n] ** 2).mean())))))
            p[n] = p[n] - step * (u[n] + 0.01 * p[n])
            average[n] = average[n] + min(1.0, 9 / (t + 8)) * (p[n] - average[n])
    return p, average, k


def start(params: Arrays, dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(value).to(dtype)) for value in params.values()]


def drive(optimizer: Any, grads: list[Arrays], losses: list[float]) -> Any:
    """Steps with given gradients and losses."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for values, loss in zip(grads, losses, strict=True):
        for param, value in zip(params, values.values(), strict=True):
            param.grad = torch.tensor(value).to(param.dtype)
        optimizer.step(loss=torch.tensor(loss, dtype=torch.float64))
    return optimizer


def run(dtype: torch.dtype = torch.float64, steps: int = 40, **options: Any) -> tuple[Any, Any]:
    params, grads, losses = problem(steps=steps)
    own = start(params, dtype)
    return own, drive(emo_torch.EmoPilot(own, **{"lr": 1e-2, **options}), grads, losses)


def whole_state(optimizer: Any) -> Any:
    """Everything that an optimizer has, as copies."""
    return copy.deepcopy([optimizer.state_dict(), [group["params"] for group in optimizer.param_groups]])


def assert_close(params: Any, wanted: Any, bound: float) -> None:
    for param, value in zip(params, wanted, strict=True):
        np.testing.assert_allclose(param.detach().double().numpy(), value, rtol=bound, atol=bound)


def train(model: torch.nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = mean_squared_error(model, step)
        loss.backward()
        optimizer.step(loss=loss)


# The rule.


@pytest.mark.parametrize("lr", [1e-4, 1e-2])
@pytest.mark.parametrize("foreach", [False, True])
def test_the_rule_is_that_of_plain_numpy(foreach: bool, lr: float) -> None:
    params, optimizer = run(foreach=foreach, lr=lr)
    wanted, average, courage = reference(*problem(), lr=lr)
    assert_close(params, wanted.values(), 1e-12)
    assert_close([optimizer.state[param]["average"] for param in params], average.values(), 1e-12)
    assert float(optimizer.pilot.courage) == pytest.approx(courage, rel=1e-11)


def test_float32_follows_float64() -> None:
    params, _ = run(torch.float32)
    assert_close(params, reference(*problem())[0].values(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_to_step_are_equal_to_the_last_bit(dtype: torch.dtype) -> None:
    ours, other = run(dtype, foreach=False)
    theirs, twin = run(dtype, foreach=True)
    assert all(map(torch.equal, ours, theirs))
    assert same_state(other.state_dict()["state"], twin.state_dict()["state"])


@pytest.mark.parametrize("spike", [1e20, 3e38])
def test_the_noise_falls_again_after_an_early_loss_with_a_square_above_float32(spike: float) -> None:
    state = emo_torch.init_relative_emotion(torch.float32)
    for step in range(1, 3000):
        loss = torch.tensor(spike if step == 3 else 1.0 + 0.1 * (step % 2))
        state = emo_torch.feel_relative(state, loss, torch.tensor(step))
        assert all(bool(part.isfinite()) for part in state)
    assert float(state.square) < 1.0


@pytest.mark.parametrize("make", [emo_torch.EmoPilot, emo_torch.EmoPilotAiry])
@pytest.mark.parametrize("foreach", [None, True])
@pytest.mark.parametrize("quiet", [1, 2, 30])
def test_finite_losses_that_are_too_far_apart_are_skipped(make: Any, foreach: Any, quiet: int) -> None:
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = make([param], foreach=foreach)
    for loss in (*(1.8e38,) * quiet, -1.8e38, 1.8e38, 1.0, 1.0, -3.4e38, 1.0, 1.0, 1.0):
        param.grad = param.detach().clone()
        optimizer.step(loss=loss)
        assert all(bool(each.isfinite().all()) for each in (param, *optimizer._pilot))
    assert 1 <= int(optimizer.pilot.skipped) <= 2


@pytest.mark.parametrize("place", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_its_count(place: str, bad: float) -> None:
    params, grads, losses = problem()
    own = start(params, torch.float32)
    optimizer = emo_torch.EmoPilot(own, lr=1e-2)
    spoilt = {**grads[0], "a": np.full_like(grads[0]["a"], bad)} if place == "gradient" else grads[0]
    lost = bad if place == "loss" else 1.0
    drive(optimizer, [spoilt], [lost])  # The very first step, too.
    drive(optimizer, grads[:7], losses[:7])
    before = whole_state(optimizer)
    drive(optimizer, [spoilt], [lost])
    after = whole_state(optimizer)
    for state in (before, after):
        for group in state[0]["param_groups"]:
            assert int(group.pop("pilot_skipped")) in (1, 2)
    assert same_state(before, after)
    drive(optimizer, grads[7:], losses[7:])
    wanted, twin = run(torch.float32)
    assert all(map(torch.equal, own, wanted))
    assert int(optimizer.pilot.skipped) == 2
    assert int(optimizer.pilot.steps) == int(twin.pilot.steps) == 40


@pytest.mark.parametrize("unit", [1e-3, 10.0, 100.0])
def test_a_loss_in_another_unit_takes_the_same_steps(unit: float) -> None:
    params, grads, losses = problem()
    own = start(params)
    scaled = [{name: unit * value for name, value in each.items()} for each in grads]
    drive(emo_torch.EmoPilot(own, lr=1e-2, eps=0.0), scaled, [unit * loss for loss in losses])
    wanted, _ = run(eps=0.0)
    assert_close(own, [param.detach().numpy() for param in wanted], 1e-10)


def test_courage_of_at_most_1_never_steps_longer_than_the_learning_rate() -> None:
    params, grads, losses = problem()
    losses = [loss * 0.9**step for step, loss in enumerate(losses)]
    longest = {}
    for most in (1.0, 100.0):
        optimizer = emo_torch.EmoPilot(start(params), lr=1e-3, max_courage=most)
        steps = []
        for values, loss in zip(grads, losses, strict=True):
            drive(optimizer, [values], [loss])
            steps.append(float(optimizer.pilot.learning_rate))
        longest[most] = max(steps)
    assert longest[1.0] <= 1e-3 * (1 + 1e-6) < longest[100.0]


def test_a_scheduler_multiplies_the_step_also_where_the_ceiling_bounds_it() -> None:
    params, grads, losses = problem(steps=4)
    lengths = {}
    for factor in (1.0, 0.5):
        optimizer = emo_torch.EmoPilot(start(params), lr=0.5)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3], gamma=factor)
        for values, loss in zip(grads, losses, strict=True):
            drive(optimizer, [values], [loss])
            scheduler.step()
        lengths[factor] = float(optimizer.pilot.learning_rate)
        assert float(optimizer.pilot.ceiling_bound) == 1.0
    assert lengths[0.5] == pytest.approx(lengths[1.0] / 2)


def test_a_learning_rate_in_a_tensor_is_that_number() -> None:
    ours, _ = run(lr=torch.tensor(1e-2, dtype=torch.float64))
    theirs, _ = run(lr=1e-2)
    assert_close(ours, [param.detach().numpy() for param in theirs], 1e-14)


def test_a_learning_rate_of_0_moves_nothing() -> None:
    params, _ = run(lr=0.0)
    assert_close(params, problem()[0].values(), 0.0)


def test_without_averaging_the_state_holds_no_average_and_the_steps_are_the_same() -> None:
    ours, optimizer = run(average=False)
    theirs, _ = run()
    assert all(map(torch.equal, ours, theirs))
    assert all("average" not in optimizer.state[param] for param in ours)
    optimizer.eval()
    optimizer.train()
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("mode", ["decoupled", "absolute", "l2"])
def test_weight_decay_shrinks_a_parameter_whose_gradient_is_0(mode: str) -> None:
    still = {name: np.zeros_like(value) for name, value in problem()[0].items()}
    params = start(problem()[0])
    optimizer = emo_torch.EmoPilot(params, weight_decay=0.1, weight_decay_mode=mode, max_courage=1.0)  # type: ignore[arg-type]
    drive(optimizer, [still], [1.0])
    pairs = zip(params, problem()[0].values(), strict=True)
    kept = [float(param.detach().norm()) / float(np.linalg.norm(value)) for param, value in pairs]
    assert all(ratio < 1.0 for ratio in kept)
    if mode == "absolute":
        assert kept == pytest.approx([0.9] * 3)
    if mode == "decoupled":
        ceilings = [
            0.08 * min(0.1, max(0.02, float(np.sqrt((value**2).mean())))) for value in problem()[0].values()
        ]
        assert kept == pytest.approx([1 - 0.1 * ceiling for ceiling in ceilings])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rounding", ["nearest", "kahan", "stochastic"])
def test_low_precision_follows_the_rule(dtype: torch.dtype, rounding: str) -> None:
    params, optimizer = run(dtype, steps=12, rounding=rounding)
    assert all(param.dtype == dtype for param in params)
    assert all(optimizer.state[param]["average"].dtype == torch.float32 for param in params)
    assert_close(params, reference(*problem(steps=12))[0].values(), 12 * 2.0**-8)


def test_maximize_goes_up_where_the_other_goes_down() -> None:
    params, grads, losses = problem()
    own = start(params)
    turned = [{name: -value for name, value in each.items()} for each in grads]
    drive(emo_torch.EmoPilot(own, lr=1e-2, maximize=True), turned, [-loss for loss in losses])
    assert all(map(torch.equal, own, run()[0]))


def test_empty_and_one_element_tensors_and_gradients_of_0() -> None:
    params = {"none": np.zeros((0, 3)), "one": np.asarray(2.0), "zero": np.zeros(2)}
    grads = [{"none": np.zeros((0, 3)), "one": np.asarray(1.0), "zero": np.zeros(2)}] * 8
    own = start(params, torch.float32)
    optimizer = drive(emo_torch.EmoPilot(own), grads, list(LOSSES[:8]))
    assert 1.0 < float(own[1].detach()) < 2.0
    assert torch.equal(own[2], torch.zeros(2))
    assert math.isfinite(float(optimizer.pilot.courage))


def test_gradients_of_0_at_first_do_not_close_the_gate() -> None:
    params, grads, losses = problem()
    still = [{name: np.zeros_like(value) for name, value in params.items()}] * 3
    own = start(params)
    drive(emo_torch.EmoPilot(own, weight_decay=0.0), still, [1.0] * 3)
    assert_close(own, params.values(), 0.0)
    optimizer = emo_torch.EmoPilot(own)
    drive(optimizer, still + grads, [1.0] * 3 + losses)
    assert float(optimizer.pilot.gate) > 0.0
    assert all(
        bool((p.detach() != torch.tensor(w)).any()) for p, w in zip(own, params.values(), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"lr": -1.0}, "learning rate"),
        ({"betas": (1.0, 0.9)}, "beta"),
        ({"eps": -1.0}, "epsilon"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"min_courage": 2.0, "max_courage": 1.0}, "min_courage"),
        ({"max_courage": math.inf}, "max_courage"),
        ({"gate_limit": -2.0}, "gate_limit"),
        ({"weight_decay_mode": "none"}, "weight_decay_mode"),
        ({"average": 1}, "average"),
        ({"foreach": 1}, "foreach"),
        ({"rounding": "up"}, "rounding"),
        ({"fused": 1}, "fused"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        emo_torch.EmoPilot([torch.nn.Parameter(torch.ones(2))], **options)


def test_a_missing_loss_is_an_error_and_changes_nothing() -> None:
    params, optimizer = run(steps=6)
    before = whole_state(optimizer)
    with pytest.raises(emo_torch.LossMissingError):
        optimizer.step()
    assert same_state(before, whole_state(optimizer))
    del params


def test_a_look_shows_the_scalars_and_shares_no_memory() -> None:
    _, optimizer = run()
    pilot = optimizer.pilot
    assert int(pilot.steps) == 40
    assert float(pilot.noise) > 0.0
    pilot.courage.fill_(7.0)
    assert float(optimizer.pilot.courage) != 7.0
