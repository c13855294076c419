"""Wrong parameter groups, as data for `_fault_campaign_test.py`."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter

from emo_shared.fault_case_test import EMOTIONAL, EVERY, INF, NAN, Case, Refused
from emo_torch._fault_options_test import TWICE, _param

# Groups.


def _added(make: Callable[[Any], Any]) -> dict[str, Any]:
    return {"groups": lambda optimizer: optimizer.add_param_group(make(optimizer))}


def _fresh() -> Parameter:
    return _param(torch.ones(2))


def _with_option(name: str, value: Any, _: Any) -> dict[str, Any]:
    return {"params": [_fresh()], name: value}


def _set(name: str, value: Any) -> dict[str, Any]:
    return {"groups": lambda optimizer: optimizer.param_groups[0].update({name: value})}


GROUPS = [
    *[  # type: ignore[var-annotated]
        Case(f"a group added that {title}", _added(make), end, EVERY[index % 3 :: 3])
        for index, (title, make, end) in enumerate(
            [
                ("is None", lambda _: None, Refused(TypeError, "param_group must be a dict")),
                ("is a list", lambda _: [_fresh()], Refused(TypeError, "param_group must be a dict")),
                ("is a tensor", lambda _: _fresh(), Refused(TypeError, "param_group must be a dict")),
                ("is empty", lambda _: {}, Refused(ValueError, "A parameter group needs 'params'")),
                ("has no params", lambda _: {"lr": 0.1}, Refused(ValueError, "needs 'params'")),
                (
                    "has a word for params",
                    lambda _: {"params": "w"},
                    Refused(TypeError, "only optimize Tensors"),
                ),
                ("has None for params", lambda _: {"params": None}, Refused(TypeError, "NoneType")),
                ("has numbers", lambda _: {"params": [1.0]}, Refused(TypeError, "only optimize Tensors")),
                ("has a set", lambda _: {"params": {_fresh()}}, Refused(TypeError, "ordered")),
                (
                    "has no leaf",
                    lambda _: {"params": [_fresh() * 2]},
                    Refused(ValueError, "non-leaf Tensor"),
                ),
                (
                    "has what another has",
                    lambda optimizer: {"params": optimizer.param_groups[0]["params"][:1]},
                    Refused(ValueError, "more than one parameter group"),
                ),
                (
                    "has one twice",
                    lambda _: {"params": [TWICE, TWICE]},
                    Refused(UserWarning, "duplicate parameters"),
                ),
                (
                    "goes the other way",
                    lambda _: {"params": [_fresh()], "maximize": True},
                    Refused(ValueError, "maximize belongs to the one"),
                ),
                (
                    "is fused in float8",
                    lambda _: {"params": [torch.ones(2).to(torch.float8_e5m2)], "fused": True},
                    Refused(
                        RuntimeError, "fused=True takes float32, float64, bfloat16, float16 on the CPU"
                    ),
                ),
                ("is good", lambda _: {"params": [_fresh()], "lr": 0.1}, "takes a step"),
                ("has no parameters in its list", lambda _: {"params": []}, "takes a step"),
            ]
        )
    ],
    *[
        Case(
            f"a group added with {name} of its own",
            _added(functools.partial(_with_option, name, value)),
            Refused(ValueError, f"{name} belongs to the one emotion"),
            EMOTIONAL,
        )
        for name, value in {
            "gain": 1.0,
            "short_factor": 0.5,
            "long_factor": 0.5,
            "shadow_ratio": "v1.0",
        }.items()
    ],
    *[
        Case(f"a group with {title}", given, end, EVERY[index % 2 :: 2])
        for index, (title, given, end) in enumerate(
            [
                ("a word for lr", _set("lr", "0.1"), Refused(TypeError, "Invalid learning rate: '0.1'")),
                ("None for lr", _set("lr", None), Refused(TypeError, "Invalid learning rate: None")),
                ("a truth for lr", _set("lr", True), Refused(TypeError, "Invalid learning rate: True")),
                ("NaN for lr", _set("lr", NAN), Refused(ValueError, "Invalid learning rate: nan")),
                ("infinity for lr", _set("lr", INF), Refused(ValueError, "Invalid learning rate: inf")),
                (
                    "two rates for lr",
                    _set("lr", torch.ones(2)),
                    Refused(TypeError, "Invalid learning rate"),
                ),
                (
                    "betas below 0",
                    _set("betas", (-1.0, 0.9)),
                    Refused(ValueError, "Invalid beta parameter"),
                ),
                ("one beta", _set("betas", 0.9), Refused(TypeError, "Invalid betas")),
                ("a word for eps", _set("eps", "1e-8"), Refused(TypeError, "Invalid epsilon")),
                ("eps below 0", _set("eps", -1.0), Refused(ValueError, "Invalid epsilon value")),
                (
                    "NaN for weight_decay",
                    _set("weight_decay", NAN),
                    Refused(ValueError, "weight_decay value"),
                ),
                ("None for weight_decay", _set("weight_decay", None), Refused(TypeError, "weight_decay")),
                (
                    "another weight_decay_mode",
                    _set("weight_decay_mode", "x"),
                    Refused(ValueError, "Invalid weight_decay_mode"),
                ),
                (
                    "both foreach and fused",
                    {
                        "groups": lambda optimizer: optimizer.param_groups[0].update(
                            foreach=True, fused=True
                        )
                    },
                    Refused(ValueError, "pass one of them, or neither"),
                ),
                (
                    "its lr taken away",
                    {"groups": lambda optimizer: optimizer.param_groups[0].pop("lr")},
                    Refused(ValueError, "The parameter group 0 lacks 'lr'"),
                ),
                (
                    "its params taken away",
                    {"groups": lambda optimizer: optimizer.param_groups[0].pop("params")},
                    Refused(ValueError, "lacks 'params'"),
                ),
                (
                    "all groups taken away",
                    {"groups": lambda optimizer: optimizer.param_groups.clear()},
                    Refused(ValueError, "no parameter group left"),
                ),
                (
                    "one of two taken away",
                    {
                        "groups": lambda optimizer: (
                            optimizer.add_param_group({"params": [_fresh()]}),
                            optimizer.param_groups.pop(),
                        )
                    },
                    "takes a step",
                ),
                ("a rate rounded under 0", _set("lr", -1e-20), "takes a step"),
                ("a rate in a tensor", _set("lr", torch.tensor(0.01)), "takes a step"),
            ]
        )
    ],
    Case(
        "a group without a part of the emotion",
        {"groups": lambda optimizer: optimizer.param_groups[0].pop("emotion_felt")},
        Refused(ValueError, "lacks 'emotion_felt'"),
        EMOTIONAL,
    ),
]
