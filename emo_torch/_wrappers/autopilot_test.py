"""Autopilot: any optimizer steered, saved, copied and restored."""

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._testing import mean_squared_error, same_state, small_model

INNER: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=1e-2),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=1e-3),
    "EmoSens": lambda params: emo_torch.EmoSens(params, lr=1e-2),
}


def train(model: torch.nn.Module, optimizer: Any, steps: range) -> float:
    loss = torch.tensor(math.nan)
    for step in steps:
        optimizer.zero_grad()
        loss = mean_squared_error(model, step % 8)
        loss.backward()
        optimizer.step(loss=loss)
    return float(loss.detach())


@pytest.mark.parametrize("name", INNER)
def test_it_steers_any_optimizer(name: str) -> None:
    model = small_model()
    optimizer = emo_torch.Autopilot(INNER[name](model.parameters()))
    first = train(model, optimizer, range(1))
    last = train(model, optimizer, range(1, 161))
    assert last < 0.7 * first
    assert int(optimizer.pilot.steps) == 161
    assert float(optimizer.pilot.courage) != 1.0


def test_with_a_courage_of_1_and_short_steps_it_is_the_optimizer_itself() -> None:
    model, plain = small_model(), small_model()
    inner = torch.optim.Adam(model.parameters(), lr=1e-4)
    optimizer = emo_torch.Autopilot(inner, min_courage=1.0, max_courage=1.0, gate_limit=1e9)
    twin = torch.optim.Adam(plain.parameters(), lr=1e-4)
    for step in range(10):
        for net, each, given in ((model, optimizer, True), (plain, twin, False)):
            each.zero_grad()
            loss = mean_squared_error(net, step)
            loss.backward()
            each.step(**({"loss": loss} if given else {}))  # type: ignore[arg-type]
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert float(optimizer.pilot.ceiling_bound) == 0.0


@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_its_count(place: str) -> None:
    model = small_model()
    optimizer = emo_torch.Autopilot(torch.optim.Adam(model.parameters()))
    train(model, optimizer, range(7))
    before = copy.deepcopy([optimizer.state_dict(), list(model.parameters())])
    optimizer.zero_grad()
    mean_squared_error(model, 0).backward()
    if place == "gradient":
        next(model.parameters()).grad[0, 0] = math.nan  # type: ignore[index]
    optimizer.step(loss=math.inf if place == "loss" else 1.0)
    after = copy.deepcopy([optimizer.state_dict(), list(model.parameters())])
    for count, (state, _) in enumerate((before, after)):
        assert int(state["param_groups"][0].pop("pilot_skipped")) == count  # type: ignore[index]
    assert same_state(before, after)


def test_eval_and_train_and_a_step_in_eval_mode() -> None:
    model = small_model()
    optimizer = emo_torch.Autopilot(torch.optim.SGD(model.parameters(), lr=1e-2))
    train(model, optimizer, range(20))
    trained = [param.detach().clone() for param in model.parameters()]
    optimizer.eval()
    optimizer.eval()
    assert not any(map(torch.equal, model.parameters(), trained))
    with pytest.raises(RuntimeError, match=r"optimizer\.train\(\)"):
        train(model, optimizer, range(1))
    optimizer.train()
    assert all(map(torch.equal, model.parameters(), trained))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "EmoSens"])
def test_a_checkpoint_resumes_as_if_nothing_had_happened(name: str, mode: str) -> None:
    model, whole = small_model(), small_model()
    optimizer = emo_torch.Autopilot(INNER[name](model.parameters()))
    twin = emo_torch.Autopilot(INNER[name](whole.parameters()))
    train(model, optimizer, range(8))
    train(whole, twin, range(14))
    getattr(optimizer, mode)()
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = small_model(1)
    other = emo_torch.Autopilot(INNER[name](resumed.parameters()))
    resumed.load_state_dict(weights)
    other.load_state_dict(state)
    other.train()
    train(resumed, other, range(8, 14))
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))
    assert same_state(other.state_dict(), twin.state_dict())


def test_a_copy_goes_on_alike_and_apart() -> None:
    model = small_model()
    optimizer = emo_torch.Autopilot(torch.optim.Adam(model.parameters()))
    train(model, optimizer, range(5))
    twin, other = copy.deepcopy((model, optimizer))
    before = copy.deepcopy(optimizer.state_dict())
    train(twin, other, range(5, 9))
    assert same_state(before, optimizer.state_dict())
    train(model, optimizer, range(5, 9))
    assert same_state(other.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("name", INNER)
def test_a_loaded_state_shares_no_memory_with_the_one_it_came_from(name: str) -> None:
    nets = small_model(), small_model()
    first, second = (emo_torch.Autopilot(INNER[name](net.parameters())) for net in nets)
    train(nets[0], first, range(3))
    second.load_state_dict(first.state_dict())
    before = copy.deepcopy(first.state_dict())
    train(nets[1], second, range(3, 6))
    assert same_state(first.state_dict(), before)


def test_the_state_of_the_inner_optimizer_alone_can_be_loaded() -> None:
    model = small_model()
    adam = torch.optim.Adam(model.parameters())
    mean_squared_error(model, 0).backward()
    adam.step()
    optimizer = emo_torch.Autopilot(torch.optim.Adam(model.parameters()))
    optimizer.load_state_dict(adam.state_dict())
    train(model, optimizer, range(3))
    assert int(optimizer.state[next(model.parameters())]["step"]) == 4


def test_schedulers_and_new_groups() -> None:
    model = small_model()
    params = list(model.parameters())
    optimizer = emo_torch.Autopilot(torch.optim.SGD(params[:2], lr=1e-2))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.add_param_group({"params": params[2:], "lr": 1e-3})
    train(model, optimizer, range(3))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)
    assert optimizer.param_groups[1]["pilot_courage"] is optimizer.param_groups[0]["pilot_courage"]
    with pytest.raises(ValueError, match="max_courage"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "max_courage": 2.0})


def test_an_inner_step_that_fails_leaves_the_parameters_as_they_were() -> None:
    class Failing(torch.optim.SGD):
        fails = False

        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            if self.fails:
                raise RuntimeError("failed")
            return result

    model = small_model()
    inner = Failing(model.parameters(), lr=1e-2)
    optimizer = emo_torch.Autopilot(inner)
    train(model, optimizer, range(3))
    before, steps = copy.deepcopy(list(model.parameters())), int(optimizer.pilot.steps)
    inner.fails = True
    with pytest.raises(RuntimeError, match="failed"):
        train(model, optimizer, range(3, 4))
    assert all(map(torch.equal, before, model.parameters()))
    assert int(optimizer.pilot.steps) == steps


def test_what_cannot_be_steered_is_refused() -> None:
    params = [torch.nn.Parameter(torch.ones(2))]
    with pytest.raises(TypeError, match="steers its steps already"):
        emo_torch.Autopilot(emo_torch.EmoPilot(params))
    with pytest.raises(TypeError, match="closure"):
        emo_torch.Autopilot(torch.optim.LBFGS(params))
    with pytest.raises(TypeError, match="Optimizer"):
        emo_torch.Autopilot(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_courage"):
        emo_torch.Autopilot(torch.optim.SGD(params, lr=1e-2), min_courage=2.0, max_courage=1.0)
    with pytest.raises(ValueError, match="plain arrays"):
        emo_torch.to_arrays(emo_torch.Autopilot(torch.optim.SGD(params, lr=1e-2)), [])
    optimizer = emo_torch.Autopilot(torch.optim.SGD(params, lr=1e-2))
    with pytest.raises(emo_torch.LossMissingError):
        optimizer.step()


def test_metrics_show_the_scalars() -> None:
    model = small_model()
    optimizer = emo_torch.Autopilot(torch.optim.SGD(model.parameters(), lr=1e-2))
    train(model, optimizer, range(8))
    metrics = emo_torch.get_metrics(optimizer)
    assert metrics["pilot/steps"] == 8.0
    assert metrics["pilot/courage"] == pytest.approx(float(optimizer.pilot.courage))


@pytest.mark.parametrize("moment_dtype", ["8bit", torch.bfloat16])
def test_a_member_with_moments_of_another_dtype_can_be_steered_and_resumed(moment_dtype: Any) -> None:
    def make() -> tuple[Any, Any]:
        weight = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 4200))
        return weight, emo_torch.Autopilot(emo_torch.EmoSens([weight], moment_dtype=moment_dtype))

    def step(weight: Any, optimizer: Any) -> None:
        weight.grad = weight.detach().sin()
        optimizer.step(loss=1.0)

    weight, optimizer = make()
    step(weight, optimizer)
    kept = torch.uint8 if moment_dtype == "8bit" else moment_dtype
    assert optimizer.state[weight]["exp_avg"].dtype == kept
    twin, resumed = make()
    twin.data.copy_(weight)
    resumed.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        step(weight, optimizer)
        step(twin, resumed)
    assert torch.equal(weight, twin)
    assert resumed.state[twin]["exp_avg"].dtype == kept
