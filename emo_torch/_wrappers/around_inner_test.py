"""The calls that `Emotional` passes to the optimizer inside, and its state when that optimizer fails."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import emo_torch


class HasModes(torch.optim.SGD):
    """Has methods of its own, and steps in training alone, as schedule-free optimizers do."""

    is_training = False

    def train(self) -> None:
        self.is_training = True

    def eval(self) -> None:
        self.is_training = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.zeroed = set_to_none
        super().zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        if not self.is_training:
            raise RuntimeError("not in train mode")
        return super().step(closure)


class Codes(torch.optim.SGD):
    """Keeps codes, which PyTorch would cast to the parameter's dtype at loading, and saves them apart."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                state.setdefault("code", torch.zeros(param.shape, dtype=torch.uint8)).add_(1)
        return super().step(closure)

    def state_dict(self) -> Any:
        saved = super().state_dict()
        codes = {key: state["code"] for key, state in saved["state"].items() if "code" in state}
        state = {
            key: {name: value for name, value in state.items() if name != "code"}
            for key, state in saved["state"].items()
        }
        return {**saved, "state": state, "codes": codes}

    def load_state_dict(self, state_dict: Any) -> None:
        assert not any(name.startswith("emotion_") for name in state_dict["param_groups"][0])
        assert not any("shadow" in state for state in state_dict["state"].values())
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        params = [param for group in self.param_groups for param in group["params"]]
        for key, code in state_dict["codes"].items():
            self.state[params[key]]["code"] = code.clone()


class Nested(torch.optim.SGD):
    """Saves in a form of its own, as optimizers around optimizers do."""

    def state_dict(self) -> Any:
        return {"base": super().state_dict()}

    def load_state_dict(self, state_dict: Any) -> None:
        assert set(state_dict) == {"base"}
        super().load_state_dict(state_dict["base"])


class Fails(torch.optim.AdamW):
    """Fails when it is told to, before it moves anything."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise ArithmeticError("no step today")
        return super().step(closure)


def made(cls: Any, **options: Any) -> tuple[Parameter, Any]:
    weight = Parameter(torch.tensor([1.0, 2.0, 3.0]))
    return weight, emo_torch.Emotional(cls([weight], lr=0.1), **options)


def train(weight: Parameter, optimizer: Any, losses: Any) -> None:
    for loss in losses:
        weight.grad = weight.detach() * loss
        optimizer.step(loss=loss)


def test_methods_of_the_inner_optimizer_are_handed_on() -> None:
    weight, optimizer = made(HasModes)
    weight.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="not in train mode"):
        optimizer.step(loss=1.0)
    assert int(optimizer.emotion.felt) == 0
    optimizer.train()
    optimizer.step(loss=1.0)
    optimizer.eval()
    assert not optimizer.inner.is_training
    optimizer.observe(3.0)
    optimizer.zero_grad(set_to_none=False)
    assert optimizer.zeroed is False
    assert optimizer._collected.loss is None
    plain = made(torch.optim.SGD)[1]
    assert not hasattr(plain, "train")
    assert not hasattr(plain, "no_such_thing")


def test_an_optimizer_inside_the_inner_one_is_not_handed_on() -> None:
    class Wraps(torch.optim.SGD):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, lr)
            self.optimizer = self.base_optimizer = torch.optim.SGD(self.param_groups, lr)

    optimizer = made(Wraps)[1]
    assert not hasattr(optimizer, "optimizer")
    assert not hasattr(optimizer, "base_optimizer")
    assert emo_torch.unwrap(optimizer) is optimizer


@pytest.mark.parametrize("cls", [Codes, Nested, torch.optim.SGD, Fails])
@pytest.mark.parametrize("use_shadow", [False, True])
def test_the_inner_optimizer_saves_and_loads_itself(cls: Any, use_shadow: bool) -> None:
    whole, uninterrupted = made(cls, use_shadow=use_shadow)
    train(whole, uninterrupted, (1.0, 3.0, 2.0, 5.0, 4.0))
    weight, optimizer = made(cls, use_shadow=use_shadow)
    train(weight, optimizer, (1.0, 3.0, 2.0))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    before = copy.deepcopy(saved)
    resumed = emo_torch.Emotional(cls([weight], lr=0.5))
    resumed.load_state_dict(saved)
    assert str(saved) == str(before)
    train(weight, resumed, (5.0, 4.0))
    assert torch.equal(weight, whole)
    for ours, theirs in zip(resumed.emotion, uninterrupted.emotion, strict=True):
        assert torch.equal(ours, theirs)
    for name, value in uninterrupted.state[whole].items():
        assert torch.equal(resumed.state[weight][name], value) or name == "code"
        assert resumed.state[weight][name].dtype == value.dtype


def test_a_state_of_a_nested_optimizer_alone_is_taken_over() -> None:
    weight, optimizer = made(Nested)
    train(weight, optimizer, (1.0, 3.0))
    alone = Nested([weight], lr=0.7)
    with pytest.raises(ValueError, match="not the state of an optimizer"):
        optimizer.load_state_dict({"param_groups": []})
    optimizer.load_state_dict(alone.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.7
    assert int(optimizer.emotion.felt) == 2


def test_two_optimizers_share_no_tensor_of_a_state() -> None:
    weight, optimizer = made(torch.optim.AdamW, use_shadow=True)
    train(weight, optimizer, (1.0, 3.0, 2.0))
    other_weight, other = made(torch.optim.AdamW, use_shadow=True)
    other.load_state_dict(optimizer.state_dict())
    kept = copy.deepcopy(optimizer.state_dict()["state"])
    train(other_weight, other, (4.0, 9.0))
    for name, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(value, kept[0][name]), name


def test_hooks_see_the_whole_state_and_those_of_the_inner_one_theirs() -> None:
    weight, optimizer = made(torch.optim.AdamW, use_shadow=True)
    train(weight, optimizer, (1.0, 3.0, 2.0))
    seen: list[Any] = []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("before saving"))
    optimizer.register_state_dict_post_hook(
        lambda _, saved: {**saved, "mark": "emotion_short" in str(saved)}
    )
    optimizer.inner.register_state_dict_post_hook(
        lambda _, saved: seen.append("shadow" in saved["state"][0])
    )
    saved = optimizer.state_dict()
    assert saved.pop("mark") is True
    assert seen == ["before saving", False]
    optimizer.register_load_state_dict_pre_hook(lambda _, loaded: {**loaded, "more": 1})
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("after loading"))
    optimizer.inner.register_load_state_dict_pre_hook(
        lambda _, loaded: seen.append(sorted(loaded["state"][0]))
    )
    optimizer.load_state_dict(saved)
    assert seen[2:] == [["exp_avg", "exp_avg_sq", "step"], "after loading"]


def test_an_inner_load_that_fails_leaves_shadows_and_emotion() -> None:
    weight, optimizer = made(torch.optim.AdamW, use_shadow=True)
    train(weight, optimizer, (1.0, 3.0, 2.0))
    kept = copy.deepcopy(optimizer.state_dict())
    saved = copy.deepcopy(kept)
    saved["param_groups"][0]["params"] = [0, 1]
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(saved)
    assert str(optimizer.state_dict()) == str(kept)


@pytest.mark.parametrize("through_lr", [None, False])
@pytest.mark.parametrize("copied", ["no", "deepcopy", "pickle"])
def test_a_step_that_fails_leaves_all_as_it_was(through_lr: bool | None, copied: str) -> None:
    weight, optimizer = made(Fails, use_shadow=True, through_lr=through_lr)
    train(weight, optimizer, (1.0, 3.0, 2.0))
    if copied == "deepcopy":
        weight, optimizer = copy.deepcopy((weight, optimizer))
    elif copied == "pickle":
        weight, optimizer = pickle.loads(pickle.dumps((weight, optimizer)))
    before, kept = weight.detach().clone(), copy.deepcopy(optimizer.state_dict())
    optimizer.inner.fails = True
    weight.grad = torch.ones(3)
    optimizer.observe(7.0)
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="no step today"):
            optimizer.step()
    assert torch.equal(weight, before)
    assert str(optimizer.state_dict()) == str(kept)
    assert optimizer.param_groups[0]["lr"] == 0.1
    optimizer.inner.fails = False
    optimizer.step()  # The loss that was observed is still there.
    assert int(optimizer.emotion.felt) == 4
    assert not torch.equal(weight, before)


def test_a_rate_that_is_a_tensor_is_the_same_tensor_after_a_step() -> None:
    weights = [Parameter(torch.ones(2)), Parameter(torch.ones(2))]
    rate = torch.tensor(0.1)
    groups = [{"params": [weight], "weight_decay": 0.1 * index} for index, weight in enumerate(weights)]
    optimizer = emo_torch.Emotional(torch.optim.AdamW(groups, lr=rate, foreach=False))
    numbers = emo_torch.Emotional(torch.optim.AdamW(copy.deepcopy(groups), lr=0.1, foreach=False))
    for loss in (1.0, 2.0, 1.5):
        for some in (optimizer, numbers):
            for group in some.param_groups:
                group["params"][0].grad = torch.ones(2)
            some.step(loss=loss)
        assert all(group["lr"] is rate for group in optimizer.param_groups)
        assert float(rate) == pytest.approx(0.1)
    for ours, theirs in zip(optimizer.param_groups, numbers.param_groups, strict=True):
        torch.testing.assert_close(ours["params"][0], theirs["params"][0])


def test_a_closure_is_handed_to_an_optimizer_that_needs_one() -> None:
    class Sharp(torch.optim.SGD):
        """Steps with the gradient at a place further up."""

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            if closure is None:
                raise RuntimeError("Sharp requires a closure")
            for group in self.param_groups:
                for param in group["params"]:
                    param.add_(param.grad)
                    ahead = param.grad.clone()
                    closure()
                    param.sub_(ahead)
            return super().step()

    weight = Parameter(torch.tensor([1.0]))
    optimizer = emo_torch.Emotional(Sharp([weight], lr=0.1))
    places: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        places.append(float(weight.detach()))
        loss = optimizer.watch(weight.square().sum())
        loss.backward()
        return loss

    optimizer.step(closure)
    assert places == [1.0, 3.0]
    torch.testing.assert_close(weight.detach(), torch.tensor([1.0 - 0.1 * 6.0]))
    assert float(optimizer.emotion.long) == 1.0
    assert optimizer._collected.loss is None
    with pytest.raises(RuntimeError, match="Sharp requires a closure") as raised:
        optimizer.step(loss=1.0)
    assert "Call `optimizer.step(closure)` of the Emotional" in raised.value.__notes__[0]
    assert int(optimizer.emotion.felt) == 1


def test_a_wrapper_with_defaults_that_its_groups_lack_is_stepped() -> None:
    weight = Parameter(torch.ones(2))
    inner = torch.optim.SGD([weight], lr=0.1)
    inner.defaults["own"] = 1
    optimizer = emo_torch.Emotional(inner)
    weight.grad = torch.ones(2)
    optimizer.step(loss=1.0)
    torch.testing.assert_close(weight.detach(), torch.full((2,), 0.9))


@pytest.mark.parametrize("size", [0.0, 5.0])
def test_without_a_loss_a_step_at_0_takes_no_gradient_into_the_inner_state(size: float) -> None:
    param = Parameter(torch.ones(3))
    optimizer = emo_torch.Emotional(torch.optim.AdamW([param], lr=0.0))
    param.grad = torch.full((3,), size)
    assert optimizer.step() is None
    assert torch.equal(param, torch.ones(3))
    # A checkpoint library asks for state with gradients of zeros.
    assert ("exp_avg" in optimizer.state[param]) is (size == 0.0)
