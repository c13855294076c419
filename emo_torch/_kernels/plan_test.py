"""The plans of compiled steps: used if nothing has changed, and never after a change."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch import _kernels as _fused
from emo_torch._kernels import cpu, memory, plan
from emo_torch._kernels.memory import MOST_PATIENCE
from emo_torch._testing import COMPILED_MEMBERS

BEFORE, AFTER = 5, 3
make_plan = plan.make_plan
needs_compiler = pytest.mark.skipif(_fused.library() is None, reason="NO COMPILED CODE")


class Another(Tensor):
    """A tensor of a subclass."""


def _params() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((6, 6), (6, 6), (5,))
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _gradient(param: Tensor, step: int) -> Tensor:
    return torch.arange(float(param.numel())).add_(step).view(param.shape).cos()


def _give_gradients(optimizer: emo_torch.LossOptimizer, step: int) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = _gradient(param, step)


def _has_plan(optimizer: emo_torch.LossOptimizer) -> bool:
    return any(own.plan is not None for own in optimizer._step_memory._groups)


def _train(
    change: Callable[[emo_torch.LossOptimizer], Any],
    give: Callable[[emo_torch.LossOptimizer, int], None] = _give_gradients,
    **options: Any,
) -> emo_torch.LossOptimizer:
    """Steps until there is a plan, makes a change, and continues to step."""
    optimizer = emo_torch.EmoSens(_params(), lr=0.1, **options)
    for step in range(BEFORE + AFTER):
        if step == BEFORE:
            assert _has_plan(optimizer) == (options.get("foreach") is None)
            change(optimizer)
        give(optimizer, step)
        optimizer.step(loss=1.0 + 0.1 * step)
    return optimizer


def _everything(optimizer: emo_torch.LossOptimizer) -> list[Tensor]:
    found = []
    for param in (param for group in optimizer.param_groups for param in group["params"]):
        found += [param.detach(), *optimizer.state[param].values()]
    return found


def _assert_same(one: emo_torch.LossOptimizer, other: emo_torch.LossOptimizer) -> None:
    for ours, theirs in zip(_everything(one), _everything(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def _another_over_the_same_memory(optimizer: emo_torch.LossOptimizer) -> None:
    params = optimizer.param_groups[0]["params"]
    params[0] = torch.nn.Parameter(params[0].detach())


def _wake_the_shadow(optimizer: emo_torch.LossOptimizer) -> None:
    optimizer.param_groups[0]["use_shadow"] = True


def _another_way(optimizer: emo_torch.LossOptimizer) -> None:
    optimizer.param_groups[0].update(foreach=False)


def _another_option(optimizer: emo_torch.LossOptimizer) -> None:
    optimizer.param_groups[0].update(lr=0.02, betas=(0.5, 0.6), weight_decay=0.3)


def _lose_a_moment(optimizer: emo_torch.LossOptimizer) -> None:
    del optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"]


def _replace_a_moment(optimizer: emo_torch.LossOptimizer) -> None:
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    state["exp_avg"] = 2.0 * state["exp_avg"]


def _move_a_moment(optimizer: emo_torch.LossOptimizer) -> None:
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    state["exp_avg"].data = 2.0 * state["exp_avg"]


def _turn_a_moment(optimizer: emo_torch.LossOptimizer) -> None:
    optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"].t_()


def _move_a_param(optimizer: emo_torch.LossOptimizer) -> None:
    param = optimizer.param_groups[0]["params"][0]
    param.data = 2.0 * param.detach()


def _turn_a_param(optimizer: emo_torch.LossOptimizer) -> None:
    param = optimizer.param_groups[0]["params"][0]
    param.data = param.detach().t()


def _replace_a_state(optimizer: emo_torch.LossOptimizer) -> None:
    param = optimizer.param_groups[0]["params"][0]
    optimizer.state[param] = {name: 2.0 * value for name, value in optimizer.state[param].items()}


def _exchange_states(optimizer: emo_torch.LossOptimizer) -> None:
    one, other, _ = optimizer.param_groups[0]["params"]
    state = optimizer.state
    state[one], state[other] = state[other], state[one]


def _give_states_away(optimizer: emo_torch.LossOptimizer) -> None:
    states = list(optimizer.state.values())
    optimizer.state.clear()
    for state in states:
        optimizer.state[torch.zeros(1)] = state


def _make_it_a_tuple(optimizer: emo_torch.LossOptimizer) -> None:
    group = optimizer.param_groups[0]
    group["params"] = tuple(group["params"])


def _load(optimizer: emo_torch.LossOptimizer) -> None:
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["exp_avg"] *= 2.0
    optimizer.load_state_dict(saved)


CHANGES = (
    *(_another_over_the_same_memory, _wake_the_shadow, _another_way, _another_option),
    *(_lose_a_moment, _replace_a_moment, _move_a_moment, _turn_a_moment, _move_a_param, _turn_a_param),
    *(_replace_a_state, _exchange_states, _give_states_away, _load, _make_it_a_tuple),
)


@needs_compiler
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_behind_a_plan_is_seen(change: Callable[[emo_torch.LossOptimizer], Any]) -> None:
    _assert_same(_train(change), _train(change, foreach=False))


def _turned(gradient: Tensor, _: Tensor) -> Tensor:
    return gradient.t().contiguous().t() if gradient.ndim > 1 else gradient


def _negated(gradient: Tensor, _: Tensor) -> Tensor:
    return torch._neg_view(-gradient)


def _expanded(gradient: Tensor, _: Tensor) -> Tensor:
    return gradient[:1].expand(gradient.shape)


def _of_another_type(gradient: Tensor, _: Tensor) -> Tensor:
    return gradient.as_subclass(Another)


GRADIENTS = (_turned, _negated, _expanded, _of_another_type)


@needs_compiler
@pytest.mark.parametrize("lay", GRADIENTS)
def test_gradients_of_another_layout_are_seen(lay: Callable[[Tensor, Tensor], Tensor]) -> None:
    def give(optimizer: emo_torch.LossOptimizer, step: int) -> None:
        for param in optimizer.param_groups[0]["params"]:
            gradient = _gradient(param, step)
            param.grad = lay(gradient, param) if step >= BEFORE else gradient

    def nothing(_: emo_torch.LossOptimizer) -> None:
        pass

    _assert_same(_train(nothing, give), _train(nothing, give, foreach=False))


@needs_compiler
@pytest.mark.parametrize("absent", [(0, 1), (2, 0), (None, 1), (1, None)])
def test_other_parameters_may_have_gradients(absent: tuple[int | None, int | None]) -> None:
    def give(optimizer: emo_torch.LossOptimizer, step: int) -> None:
        for index, param in enumerate(optimizer.param_groups[0]["params"]):
            is_absent = index == absent[step >= BEFORE]
            param.grad = None if is_absent else _gradient(param, step)

    def nothing(_: emo_torch.LossOptimizer) -> None:
        pass

    _assert_same(_train(nothing, give), _train(nothing, give, foreach=False))


@needs_compiler
def test_a_gradient_that_comes_to_lie_in_its_parameter_is_seen() -> None:
    results = []
    for foreach in (None, False):
        storage = torch.linspace(1.0, 2.0, 101)
        param = storage[1:].requires_grad_()
        optimizer = emo_torch.EmoSens([param], lr=0.1, foreach=foreach)
        for step in range(BEFORE + 1):
            param.grad = storage[:100] if step == BEFORE else _gradient(param, step)
            optimizer.step(loss=1.0)
        results.append(param.detach())
    torch.testing.assert_close(*results)


@needs_compiler
def test_a_group_that_is_taken_out_is_stepped_no_more() -> None:
    params = _params()
    optimizer = emo_torch.EmoSens([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    for step in range(BEFORE):
        _give_gradients(optimizer, step)
        optimizer.step(loss=1.0)
    assert all(own.plan is not None for own in optimizer._step_memory._groups)
    del optimizer.param_groups[1]
    before = [param.detach().clone() for param in params]
    _give_gradients(optimizer, BEFORE)
    optimizer.step(loss=1.0)
    assert [param.equal(old) for param, old in zip(params, before, strict=True)] == [False, True, True]


@needs_compiler
@pytest.mark.parametrize("name", COMPILED_MEMBERS)
def test_steps_that_are_alike_go_by_a_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = emo_torch.create_optimizer(name, _params())
    for step in range(BEFORE):
        _give_gradients(optimizer, step)
        optimizer.step(loss=1.0)
    monkeypatch.setattr(cpu, "describe", None)
    for step in range(AFTER):
        _give_gradients(optimizer, step)
        versions = [param._version for param in optimizer.param_groups[0]["params"]]
        optimizer.step(loss=1.0)
        after = [param._version for param in optimizer.param_groups[0]["params"]]
        assert all(new > old for new, old in zip(after, versions, strict=True))


@needs_compiler
def test_a_plan_keeps_no_gradient_and_no_parameter_alive() -> None:
    optimizer = _train(lambda _: None)
    params = optimizer.param_groups[0]["params"]
    gradient = weakref.ref(params[0].grad)
    optimizer.zero_grad()
    assert gradient() is None
    param = weakref.ref(params[0])
    del optimizer.state[params[0]], params[0]
    assert param() is None


@needs_compiler
def test_plans_are_made_seldom_where_they_are_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def count(*given: Any) -> Any:
        made.append(given)
        return make_plan(*given)

    monkeypatch.setattr(memory, "make_plan", count)
    optimizer = emo_torch.EmoSens(_params(), lr=0.1)
    for step in range(4 * MOST_PATIENCE):
        _give_gradients(optimizer, step)
        if _has_plan(optimizer):
            optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"].data = torch.zeros(6, 6)
        optimizer.step(loss=1.0)
    assert 4 <= len(made) <= 10


@needs_compiler
def test_a_tensor_of_another_type_or_place_is_not_found() -> None:
    found = _fused.library()
    assert found is not None
    assert found.finder is not None
    plain = torch.zeros(3, 4)
    assert found.finder.find([plain]) is not None
    for strange in (plain.as_subclass(Another), plain.to("meta"), plain.to_sparse()):
        assert found.finder.find([plain, strange]) is None


@needs_compiler
def test_tensors_are_found_where_and_what_they_are() -> None:
    found = _fused.library()
    assert found is not None
    assert found.finder is not None
    tensors = [
        *(torch.zeros(3, 4, 5), torch.zeros(7), torch.zeros(()), torch.zeros(0, 3)),
        *(
            torch.zeros(3, 4).t(),
            torch.zeros(4, 4)[:, :2],
            torch.zeros(1, 6)[:, ::2],
            torch.zeros(3, 1).t(),
        ),
        *(torch.zeros(2).double(), torch.zeros(2, dtype=torch.bool), torch.zeros(9)[4:]),
    ]
    places = found.finder.find(tensors)
    assert places is not None
    begins, rows, columns, kinds = places
    assert begins.tolist() == [tensor.data_ptr() for tensor in tensors]
    assert rows.tolist() == [3, 7, 1, 0, 4, 4, 1, 1, 2, 2, 5]
    assert columns.tolist() == [20, 0, 0, 0, 3, 2, 3, 3, 0, 0, 0]
    assert (kinds >= 0).tolist() == [tensor.is_contiguous() for tensor in tensors]
    assert len({kinds[0], kinds[8], kinds[9]}) == 3
