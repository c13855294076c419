"""EmoPilot: its rule against plain NumPy, averaged weights, and what a training loop does to it."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import emo_torch
from emo_torch._testing import mean_squared_error, same_state, small_model

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


def reference(
    params: Arrays, grads: list[Arrays], losses: list[float], lr: float = 1e-2
) -> tuple[Arrays, Arrays, float]:
    """The rule in plain NumPy: parameters, averaged weights and courage at the end."""
    p = {name: value.copy() for name, value in params.items()}
    m, v = ({name: np.zeros_like(value) for name, value in p.items()} for _ in range(2))
    average = {name: value.copy() for name, value in p.items()}
    t, k, q, c, a2 = 0, 1.0, 0.0, 0.0, 0.0
    short = long = previous = usual = 0.0

    def direction(t: int) -> Arrays:
        return {n: (m[n] / (1 - 0.9**t)) / (np.sqrt(v[n] / (1 - 0.999**t)) + 1e-8) for n in p}

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
            u = direction(t - 1)
            a = dot(g, u) / (factor * norm * math.sqrt(dot(u, u)))
            a2 = a * a if t == 2 else a2 + 0.05 * (a * a - a2)
            rise, fall = max(0.0, (s - 0.5) / 0.5), max(0.0, (-s - 0.5) / 0.5)
            if t > 5:
                growth = 0.05 * (1 + 40 / (t + 10)) * (math.tanh(a / math.sqrt(a2)) + 0.4 * fall)
                growth += 6.0 / (t + 20) * max(0.0, math.log(0.008 / (k * lr)))
                k = min(1000.0, max(0.03, k * math.exp(-0.2 * rise if s > 0.5 else growth)))
        for n in p:
            m[n] = 0.9 * m[n] + 0.1 * g[n]
            v[n] = 0.999 * v[n] + 0.001 * g[n] ** 2
        u = direction(t)
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


# Averaged weights.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_eval_shows_the_average_and_train_brings_back_every_bit(dtype: torch.dtype) -> None:
    params, optimizer = run(dtype)
    trained = [param.detach().clone() for param in params]
    averages = [optimizer.state[param]["average"].clone() for param in params]
    optimizer.eval()
    optimizer.eval()  # A second call changes nothing.
    assert all(torch.equal(p, a.to(dtype)) for p, a in zip(params, averages, strict=True))
    optimizer.train()
    optimizer.train()
    assert all(map(torch.equal, params, trained))
    assert all(torch.equal(optimizer.state[p]["average"], a) for p, a in zip(params, averages, strict=True))
    assert all("trained" not in optimizer.state[param] for param in params)


def test_a_step_in_eval_mode_is_refused_before_anything_has_changed() -> None:
    _, optimizer = run(steps=6)
    optimizer.eval()
    before = whole_state(optimizer)
    called = []
    with pytest.raises(RuntimeError, match=r"optimizer\.train\(\)"):
        optimizer.step(lambda: called.append(1), loss=1.0)
    assert not called
    assert same_state(before, whole_state(optimizer))
    with pytest.raises(ValueError, match=r"optimizer\.train\(\)"):
        emo_torch.to_arrays(
            optimizer, [(str(i), p) for i, p in enumerate(optimizer.param_groups[0]["params"])]
        )


def as_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_checkpoint_in_either_mode_resumes_as_if_nothing_had_happened(
    mode: str, dtype: torch.dtype
) -> None:
    model, whole = small_model().to(dtype), small_model().to(dtype)
    optimizer, twin = emo_torch.EmoPilot(model.parameters()), emo_torch.EmoPilot(whole.parameters())

    def go_on(net: torch.nn.Module, own: Any, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for param in net.parameters():
                param.grad = torch.randn(param.shape, generator=generator).to(dtype)
            own.step(loss=2.0 + math.sin(step))

    go_on(model, optimizer, range(8))
    go_on(whole, twin, range(14))
    getattr(optimizer, mode)()
    saved = as_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    resumed = small_model(1).to(dtype)
    other = emo_torch.EmoPilot(resumed.parameters())
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert other.param_groups[0]["train_mode"] is (mode == "train")
    other.train()
    go_on(resumed, other, range(8, 14))
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))
    assert same_state(other.state_dict(), twin.state_dict())


@pytest.mark.parametrize("way", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_goes_on_alike_and_apart(way: Callable[[Any], Any]) -> None:
    _, optimizer = run(steps=8)
    other = way(optimizer)
    before = whole_state(optimizer)
    _, grads, losses = problem()
    drive(other, grads[8:], losses[8:])
    assert same_state(before, whole_state(optimizer))
    drive(optimizer, grads[8:], losses[8:])
    assert same_state(whole_state(other), whole_state(optimizer))


def test_a_damaged_average_is_refused() -> None:
    _, optimizer = run(steps=2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["average"] = torch.zeros(2)
    with pytest.raises(ValueError, match="average"):
        optimizer.load_state_dict(saved)


def test_the_state_of_adamw_can_be_loaded() -> None:
    model = small_model()
    adamw = torch.optim.AdamW(model.parameters())
    mean_squared_error(model, 0).backward()
    adamw.step()
    optimizer = emo_torch.EmoPilot(model.parameters())
    optimizer.load_state_dict(adamw.state_dict())
    first = next(model.parameters())
    assert torch.equal(optimizer.state[first]["exp_avg"], adamw.state[first]["exp_avg"])
    train(model, optimizer, range(1, 4))
    assert int(optimizer.state[first]["step"]) == 4


# In a training loop.


def test_a_scaler_that_finds_an_overflow_skips_and_a_scaled_step_is_an_unscaled_one() -> None:
    model, plain = small_model(), small_model()
    optimizer, twin = emo_torch.EmoPilot(model.parameters()), emo_torch.EmoPilot(plain.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(6):
        optimizer.zero_grad()
        loss = mean_squared_error(model, step)
        scaler.scale(loss).backward()
        if step == 3:
            next(model.parameters()).grad.fill_(math.inf)  # type: ignore[union-attr]
        else:
            train(plain, twin, range(step, step + 1))
        scaler.step(optimizer, loss=loss)
        scaler.update()
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    assert same_state(optimizer.state_dict(), twin.state_dict())


def test_micro_batches_take_the_step_of_their_mean() -> None:
    model, plain = small_model().double(), small_model().double()
    optimizer, twin = emo_torch.EmoPilot(model.parameters()), emo_torch.EmoPilot(plain.parameters())

    def loss_of(net: torch.nn.Module, step: int) -> torch.Tensor:
        inputs = torch.randn(4, 4, generator=torch.Generator().manual_seed(step)).double()
        loss: torch.Tensor = (net(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        return loss

    for step in range(8):
        optimizer.zero_grad()
        for part in (0, 1):
            loss = optimizer.watch(loss_of(model, 2 * step + part))
            (loss / 2).backward()
        optimizer.step()
        twin.zero_grad()
        mean = (loss_of(plain, 2 * step) + loss_of(plain, 2 * step + 1)) / 2
        mean.backward()
        twin.step(loss=mean)
    assert_close(model.parameters(), [param.detach().numpy() for param in plain.parameters()], 1e-12)


def test_frozen_and_late_parameters_keep_counts_of_their_own() -> None:
    model = small_model()
    late = next(model.parameters())
    late.requires_grad_(False)
    optimizer = emo_torch.EmoPilot(model.parameters())
    before = late.detach().clone()
    train(model, optimizer, range(4))
    assert torch.equal(late, before)
    assert late not in optimizer.state
    late.requires_grad_(True)
    train(model, optimizer, range(4, 7))
    assert int(optimizer.state[late]["step"]) == 3
    assert int(optimizer.pilot.steps) == 7
    assert torch.isfinite(late).all()
    optimizer.eval()
    optimizer.train()
    assert torch.isfinite(late).all()


def test_groups_have_learning_rates_of_their_own_and_one_courage() -> None:
    params, grads, losses = problem()
    own = start(params)
    optimizer = emo_torch.EmoPilot([{"params": own[:1], "lr": 0.0}, {"params": own[1:]}], lr=1e-3)  # type: ignore[arg-type]
    drive(optimizer, grads, losses)
    assert np.array_equal(own[0].detach().numpy(), params["a"])
    assert all(
        not np.array_equal(o.detach().numpy(), w)
        for o, w in zip(own[1:], [params["b"], params["c"]], strict=True)
    )
    first, second = (group["pilot_courage"] for group in optimizer.param_groups)
    assert first is second
    with pytest.raises(ValueError, match="max_courage"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "max_courage": 2.0})


def test_clipping_before_the_step_is_a_smaller_gradient() -> None:
    model, plain = small_model(), small_model()
    optimizer, twin = emo_torch.EmoPilot(model.parameters()), emo_torch.EmoPilot(plain.parameters())
    for step in range(5):
        for net, each in ((model, optimizer), (plain, twin)):
            each.zero_grad()
            loss = mean_squared_error(net, step)
            loss.backward()
            if net is model:
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9)
            each.step(loss=loss)
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


def test_a_compiled_step_is_one_graph_and_the_same_step() -> None:
    params, grads, losses = problem(steps=12)
    own, other = start(params, torch.float32), start(params, torch.float32)
    optimizer = emo_torch.EmoPilot(own, lr=torch.tensor(1e-2), foreach=True)
    twin = emo_torch.EmoPilot(other, lr=torch.tensor(1e-2), foreach=True)
    drive(optimizer, grads[:2], losses[:2])
    drive(twin, grads[:2], losses[:2])
    compiled = torch.compile(lambda loss: optimizer.step(loss=loss), fullgraph=True, backend="eager")
    for values, loss in zip(grads[2:], losses[2:], strict=True):
        for param, value in zip(own, values.values(), strict=True):
            param.grad = torch.tensor(value).to(param.dtype)
        compiled(torch.tensor(loss))
    drive(twin, grads[2:], losses[2:])
    assert all(map(torch.equal, own, other))


def test_a_look_shows_the_scalars_and_shares_no_memory() -> None:
    _, optimizer = run()
    pilot = optimizer.pilot
    assert int(pilot.steps) == 40
    assert float(pilot.noise) > 0.0
    pilot.courage.fill_(7.0)
    assert float(optimizer.pilot.courage) != 7.0
