"""PyTorch's requirements for optimizers: groups, names, copies and hooks."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from emo_torch._members.torch_optim_test import CPU, Problem, every_configuration, every_optimizer, options

pytest.importorskip("expecttest")

from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
)


@every_configuration
def test_an_empty_parameter_is_nothing_to_stumble_over(info: Any, case: Any) -> None:
    for shapes in (((0,), (0, 3), (3, 0)), ((0,), (4, 2)), ((3,), (0, 2))):
        params = [Parameter(torch.ones(shape)) for shape in shapes]
        optimizer = info.optim_cls(params, **options(case))
        for step in range(3):
            for param in params:
                param.grad = torch.ones_like(param)
            optimizer.step(loss=1.0 + step)
        assert all(bool(torch.isfinite(param).all()) for param in params)
        assert all(len(state) > 0 for state in optimizer.state.values())


@every_configuration
def test_a_deep_copy_keeps_every_public_attribute_and_its_options(info: Any, case: Any) -> None:
    problem = Problem(info, options(case))
    problem.step(2)
    copied = copy.deepcopy(problem.optimizer)

    def public(thing: Any) -> set[str]:
        return {name for name in dir(thing) if not name.startswith("_")}

    assert public(copied) == public(problem.optimizer)
    for ours, theirs in zip(copied.param_groups, problem.optimizer.param_groups, strict=True):
        for name in theirs.keys() - {"params"}:
            assert ours[name] == theirs[name]


@every_optimizer
def test_what_torch_s_optimizers_refuse_is_refused_in_their_words(info: Any) -> None:
    for bad in info.optim_error_inputs_func(CPU, torch.float32):
        params, kwargs = bad.optimizer_error_input.params, bad.optimizer_error_input.kwargs
        params = [Parameter(torch.randn(1, 1))] if params is None else params
        assert bad.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
        with pytest.raises(bad.error_type, match=bad.error_regex):
            info.optim_cls(params, **kwargs)


@every_optimizer
def test_groups_without_parameters_or_with_a_single_tensor_are_taken_as_in_torch(info: Any) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        info.optim_cls([])
    weight, bias = Parameter(torch.ones(2)), Parameter(torch.ones(1))
    optimizer = info.optim_cls([{"params": weight}, {"params": iter([bias])}])
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    with pytest.raises(TypeError, match="param_group must be a dict"):
        optimizer.add_param_group([weight])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [weight]})
    assert len(optimizer.param_groups) == 2


@every_optimizer
def test_parameters_may_come_with_names(info: Any) -> None:
    net = torch.nn.Linear(2, 1)
    optimizer = info.optim_cls(net.named_parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step(loss=1.0)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@every_optimizer
def test_hooks_around_a_step_fire_and_may_bring_the_loss(info: Any) -> None:
    weight = Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = info.optim_cls([weight])
    calls = []

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        calls.append(("before", weight[0].item()))
        return args, {**kwargs, "loss": 2.0}

    first = optimizer.register_step_pre_hook(before)
    second = optimizer.register_step_post_hook(lambda *_: calls.append(("after", weight[0].item())))
    assert optimizer.step() == 2.0
    first.remove()
    second.remove()
    optimizer.step(loss=1.0)
    assert [name for name, _ in calls] == ["before", "after"]
    assert calls[0][1] == 1.0 != calls[1][1]


@every_optimizer
def test_hooks_around_a_state_fire(info: Any) -> None:
    optimizer = info.optim_cls([Parameter(torch.ones(2))])
    calls = []
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("before"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": "kept"})
    assert optimizer.state_dict()["note"] == "kept"
    assert calls == ["before"]


@every_optimizer
def test_a_repr_shows_the_options_and_not_the_emotion(info: Any) -> None:
    weights = [Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = info.optim_cls([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.25}])
    text = repr(optimizer)
    assert text.startswith(f"{info.name} (\nParameter Group 0\n")
    assert text.endswith(")")
    assert "    lr: 0.25\n" in text
    assert "    weight_decay: 0.01\n" in text
    assert "emotion" not in text
    assert len(text.splitlines()) < 45
