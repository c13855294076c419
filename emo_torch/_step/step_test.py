"""The arguments and the result of a step, and the values that a step does not change."""

from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch

FAMILY: list[Any] = [emo_torch.EmoSens, emo_torch.EmoAiry, emo_torch.EmoCats]


@pytest.fixture(params=FAMILY, ids=lambda cls: str(cls.__name__))
def cls(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[False, True], ids=["single", "foreach"])
def foreach(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def model(dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2).to(dtype)


def train(net: torch.nn.Module, optimizer: Any, steps: int = 6, *, sign: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1)
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sign * net(torch.randn(4, 3, generator=generator).to(dtype)).square().mean()
        loss.backward()
        optimizer.step(loss=loss)


def equal(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


# The ways to deliver the loss.


def test_a_closure_and_a_loss_by_name_take_the_same_step(cls: Any, foreach: bool) -> None:
    by_name, by_closure = model(), model()
    ours = cls(by_name.parameters(), lr=0.1, foreach=foreach)
    theirs = cls(by_closure.parameters(), lr=0.1, foreach=foreach)
    batch = torch.randn(4, 3)
    for _ in range(4):
        ours.zero_grad()
        loss = by_name(batch).square().mean()
        loss.backward()
        assert ours.step(loss=loss) is loss

        def closure() -> Tensor:
            assert torch.is_grad_enabled()
            theirs.zero_grad()
            loss: Tensor = by_closure(batch).square().mean()
            loss.backward()
            return loss

        returned = theirs.step(closure)
        assert returned.requires_grad
        assert torch.equal(returned, loss)
    assert equal(by_name, by_closure)
    assert ours.emotion == theirs.emotion


@pytest.mark.parametrize("returned", [None, 7.0, torch.tensor(7.0), "no loss at all"])
def test_a_loss_by_name_goes_before_what_the_closure_returns(returned: Any) -> None:
    net = model()
    optimizer = emo_torch.EmoSens(net.parameters())
    ran = []

    def closure() -> Any:
        ran.append(True)
        optimizer.zero_grad()
        net(torch.ones(1, 3)).sum().backward()
        return returned

    before = net.weight.detach().clone()
    assert optimizer.step(closure, loss=2.0) is returned
    assert ran == [True]
    assert optimizer.emotion.short.item() == 2.0
    assert not torch.equal(net.weight, before)


def test_a_closure_of_nothing_but_the_loss_will_do() -> None:
    net = model()
    optimizer = emo_torch.EmoSens(net.parameters())
    loss = net(torch.ones(1, 3)).square().sum()
    loss.backward()
    assert torch.equal(optimizer.step(lambda: loss.detach()), loss)  # type: ignore[arg-type]
    assert optimizer.emotion.short.item() == loss.item()


def test_an_error_in_the_closure_comes_through_and_changes_nothing() -> None:
    net = model()
    optimizer = emo_torch.EmoSens(net.parameters())
    net(torch.ones(1, 3)).sum().backward()

    def closure() -> float:
        raise KeyError("a batch")

    before = net.weight.detach().clone()
    with pytest.raises(KeyError, match="a batch"):
        optimizer.step(closure)
    assert torch.equal(net.weight, before)
    assert optimizer.emotion.felt.item() == 0


def test_gradients_are_left_as_they_were_and_need_not_be_on(cls: Any, foreach: bool) -> None:
    net = model()
    optimizer = cls(net.parameters(), foreach=foreach, use_shadow=True, maximize=True)
    for loss in (1.0, 3.0, 1.0):
        net.weight.grad, net.bias.grad = torch.randn(2, 3), torch.randn(2)
        kept = net.weight.grad.clone()
        with torch.no_grad():
            optimizer.step(loss=loss)
        assert torch.equal(net.weight.grad, kept)
    assert net.weight.requires_grad
    assert net.weight.is_leaf


def test_zero_grad_clears(cls: Any) -> None:
    net = model()
    optimizer = cls(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert net.weight.grad is not None
    assert not net.weight.grad.any()
    optimizer.zero_grad()
    assert net.weight.grad is None


# Gradients that are missing.


def test_a_parameter_without_a_gradient_is_skipped(cls: Any, foreach: bool) -> None:
    net = model()
    optimizer = cls(net.parameters(), foreach=foreach, use_shadow=True)
    start = net.bias.detach().clone()
    for loss in (1.0, 5.0, 2.0):
        net.weight.grad = torch.ones(2, 3)
        optimizer.step(loss=loss)
    assert torch.equal(net.bias, start)
    assert list(optimizer.state) == [net.weight]


def test_a_first_step_without_any_gradient_only_feels_the_loss(cls: Any, foreach: bool) -> None:
    net, start = model(), model()
    optimizer = cls(net.parameters(), foreach=foreach, use_shadow=True)
    assert optimizer.step(loss=2.0) == 2.0
    assert equal(net, start)
    assert not optimizer.state
    assert optimizer.emotion.felt.item() == 1
    train(net, optimizer)
    assert not equal(net, start)


def test_a_gradient_of_zeros_moves_nothing_but_by_decay(cls: Any, foreach: bool) -> None:
    net, start = model(), model()
    optimizer = cls(net.parameters(), foreach=foreach, weight_decay=0.0)
    for param in net.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step(loss=1.0)
    moved = net.bias.detach().clone()
    for param in net.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step(loss=1.0)
    # The momentum would move the element further; the filter stops an element without a gradient.
    assert torch.equal(net.bias, moved)
    assert not equal(net, start)


# A learning rate of 0.


@pytest.mark.parametrize("zero", [0.0, 0, torch.tensor(0.0), torch.tensor([0.0])], ids=str)
@pytest.mark.parametrize("closure", [None, lambda: None])
def test_without_a_loss_a_step_at_0_makes_the_state_and_changes_nothing(
    cls: Any, foreach: bool, zero: Any, closure: Any
) -> None:
    net, start = model(), model()
    optimizer = cls(net.parameters(), lr=zero, foreach=foreach, use_shadow=True, weight_decay=0.1)
    for param in net.parameters():
        param.grad = torch.ones_like(param)
    fresh = optimizer.emotion
    assert optimizer.step(closure) is None
    assert equal(net, start)
    assert optimizer.emotion == fresh
    for param in net.parameters():
        state = optimizer.state[param]
        assert set(optimizer.moment_names(param)) | {"shadow", "shadow_exists"} == state.keys()
        assert not any(value.any() for value in state.values())


def test_without_a_loss_a_step_at_0_leaves_a_state_that_is_there(cls: Any, foreach: bool) -> None:
    net = model()
    optimizer = cls(net.parameters(), foreach=foreach, use_shadow=True)
    train(net, optimizer)
    emotion, weight = optimizer.emotion, net.weight.detach().clone()
    state = {name: value.clone() for name, value in optimizer.state[net.weight].items()}
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(net.weight, weight)
    assert optimizer.emotion == emotion
    assert all(torch.equal(value, state[name]) for name, value in optimizer.state[net.weight].items())


def test_with_a_loss_a_group_at_0_feels_and_remembers_but_does_not_move(cls: Any, foreach: bool) -> None:
    net, start = model(), model()
    groups = [{"params": [net.weight], "lr": 0.0}, {"params": [net.bias]}]
    optimizer = cls(groups, foreach=foreach)
    train(net, optimizer)
    assert torch.equal(net.weight, start.weight)
    assert not torch.equal(net.bias, start.bias)
    assert any(value.any() for value in optimizer.state[net.weight].values())
    assert optimizer.emotion.felt.item() == 6


# Maximizing.


@pytest.mark.parametrize("mode", ["decoupled", "absolute", "l2"])
@pytest.mark.parametrize("use_shadow", [False, True])
def test_to_maximize_is_to_minimize_the_negative(
    cls: Any, foreach: bool, mode: str, use_shadow: bool
) -> None:
    up, down = model(torch.float64), model(torch.float64)
    options: dict[str, Any] = {
        "lr": 0.05,
        "weight_decay_mode": mode,
        "use_shadow": use_shadow,
        "foreach": foreach,
    }
    climbs = cls(up.parameters(), maximize=True, **options)
    train(up, climbs, 20, sign=-1.0)
    falls = cls(down.parameters(), **options)
    train(down, falls, 20)
    assert equal(up, down)
    assert climbs.emotion == falls.emotion
    assert not equal(up, model(torch.float64))


def test_to_maximize_goes_up(cls: Any, foreach: bool) -> None:
    net, batch = model(), torch.randn(8, 3)
    optimizer = cls(net.parameters(), lr=0.01, maximize=True, foreach=foreach)

    def score() -> Tensor:
        value: Tensor = -(net(batch) - 1.0).square().mean()
        return value

    first = score().item()
    for _ in range(30):
        optimizer.zero_grad()
        value = score()
        value.backward()
        optimizer.step(loss=value)
    assert score().item() > first


# Groups.


def test_groups_move_as_optimizers_of_their_own_would(cls: Any, foreach: bool) -> None:
    own: tuple[dict[str, Any], ...] = (
        {"lr": 0.1, "weight_decay": 0.3},
        {"betas": (0.5, 0.6), "theta": 0.5},
    )
    together = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))]
    alone = [torch.nn.Parameter(param.detach().clone()) for param in together]
    joint = cls(
        [{"params": [param], **options} for param, options in zip(together, own, strict=True)],
        foreach=foreach,
    )
    single = [cls([param], foreach=foreach, **options) for param, options in zip(alone, own, strict=True)]
    torch.manual_seed(0)
    for step in range(8):
        for ours, theirs in zip(together, alone, strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        joint.step(loss=1.0 + step % 3)
        for optimizer in single:
            optimizer.step(loss=1.0 + step % 3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(together, alone, strict=True))
    assert all(optimizer.emotion == joint.emotion for optimizer in single)


def test_the_learning_rate_of_a_group_is_read_and_never_written(cls: Any, foreach: bool) -> None:
    net = model()
    tensor = torch.tensor(0.1)
    optimizer = cls(
        [{"params": [net.weight], "lr": 0.25}, {"params": [net.bias], "lr": tensor}],
        foreach=foreach,
        use_shadow=True,
    )
    train(net, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[1]["lr"] is tensor
    assert tensor.item() == pytest.approx(0.1)


def test_a_tensor_learning_rate_is_as_good_as_a_number(cls: Any, foreach: bool) -> None:
    nets = []
    for lr in (0.05, torch.tensor(0.05, dtype=torch.float64), torch.tensor([0.05], dtype=torch.float64)):
        net = model(torch.float64)
        train(net, cls(net.parameters(), lr=lr, foreach=foreach))
        nets.append(net)
    assert equal(nets[0], nets[1])
    assert equal(nets[0], nets[2])


def test_a_tensor_learning_rate_may_change_in_place(cls: Any) -> None:
    net = model()
    lr = torch.tensor(0.1)
    optimizer = cls(net.parameters(), lr=lr)
    train(net, optimizer, 2)
    before = net.weight.detach().clone()
    lr.zero_()
    train(net, optimizer, 2)
    assert torch.equal(net.weight, before)


def test_a_group_that_comes_late_shares_the_emotion_that_there_is(cls: Any, foreach: bool) -> None:
    net = model()
    optimizer = cls([net.weight], foreach=foreach)
    for loss in (1.0, 2.0):
        net.weight.grad = torch.ones(2, 3)
        optimizer.step(loss=loss)
    before = optimizer.emotion
    optimizer.add_param_group({"params": [net.bias], "lr": 0.5})
    assert optimizer.emotion == before
    first, second = optimizer.param_groups
    shared = [name for name in first if name.startswith("emotion_")]
    assert len(shared) == 40
    assert all(first[name] is second[name] for name in shared)
    net.bias.grad = torch.ones(2)
    optimizer.step(loss=2.0)
    assert second["emotion_felt"].item() == optimizer.emotion.felt.item() == 3


def test_a_float64_group_that_comes_late_widens_the_emotion() -> None:
    narrow, wide = model(), model(torch.float64)
    optimizer = emo_torch.EmoSens(narrow.parameters())
    train(narrow, optimizer, 4)
    before = optimizer.emotion
    optimizer.add_param_group({"params": wide.parameters()})
    after = optimizer.emotion
    assert (before.scalar.dtype, after.scalar.dtype) == (torch.float32, torch.float64)
    assert before == after
    optimizer.step(loss=0.1 + 0.2)
    expected = 0.01 * (0.1 + 0.2) + 0.99 * before.long.double().item()
    assert optimizer.emotion.long.item() == pytest.approx(expected, rel=1e-15)
