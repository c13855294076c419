"""Wrong options, names, inner optimizers and parameters, as data for `_fault_campaign_test.py`."""

import functools
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

import emo_torch
from emo_shared.fault_case_test import (
    BASIC,
    DIVIDING,
    EMOTIONAL,
    EVERY,
    INF,
    NAN,
    REF,
    SWITCHING,
    Case,
    Refused,
)

META = torch.ones((), device="meta")


# Options.

NOT_NUMBERS: list[Any] = [
    *("0.1", None, True, [0.1], {}, 1j, np.complex64(1j), torch.tensor(True), object, Fraction(1, 2))
]
ONE, LEARNED = torch.tensor([0.5]), torch.tensor(0.5, requires_grad=True)


def _option(name: str, values: list[Any], error: type[Exception], members: tuple[str, ...]) -> list[Case]:
    titles = {"lr": "learning rate", "eps": "epsilon"}
    end = Refused(error, f"Invalid {titles.get(name, name)}")
    return [
        Case(f"{name}={getattr(value, '__name__', repr(value))}", {name: value}, end, _two(members, index))
        for index, value in enumerate(values)
    ]


def _two(members: tuple[str, ...], turn: int) -> tuple[str, ...]:
    """Returns two of some members, or the one that there is: other ones at every turn."""
    return tuple(dict.fromkeys(members[(turn + more) % len(members)] for more in range(2)))


def _number(name: str, beyond: list[Any], members: tuple[str, ...], *, none: bool = False) -> list[Case]:
    """Returns the cases of an option that is a number: out of its range, or of another type."""
    strange = [value for value in NOT_NUMBERS if not (none and value is None)]
    beyond = [*beyond, NAN, np.float32(beyond[0]), torch.tensor(beyond[0])]
    return [
        *_option(name, beyond, ValueError, members),
        *_option(name, [torch.tensor([0.5, 0.5]), ONE] if name != "lr" else [], ValueError, members),
        *_option(name, [*strange, META, *([LEARNED] if name != "lr" else [])], TypeError, members),
    ]


def _pair(name: str, index: int, beyond: list[Any], members: tuple[str, ...]) -> list[Case]:
    """Returns the cases of one of two decay rates."""
    cases = []
    for error, values in ((ValueError, [*beyond, NAN]), (TypeError, NOT_NUMBERS)):
        for turn, value in enumerate(values):
            pair = (value, 0.9) if index == 0 else (0.9, value)
            end = Refused(error, f"Invalid beta parameter at index {index}: ")
            title = getattr(value, "__name__", repr(value))
            cases.append(Case(f"{name}={title}", {"betas": pair}, end, _two(members, turn)))
    return cases


OPTIONS = [
    *_number("lr", [-1e-3, INF, -INF], (*BASIC, "emo_zeal", *REF)),
    Case("lr=10**400", {"lr": 10**400}, Refused(ValueError, "Invalid learning rate"), EVERY),
    Case("lr of two", {"lr": torch.ones(2)}, Refused(ValueError, "Tensor lr must be 1-element"), EVERY),
    *_pair("b1", 0, [-0.1, 1.0, 1.5], (*BASIC, "emo_clan", *REF)),
    *_pair("b2", 1, [-0.1, 1.0, 1.5], (*BASIC, "emo_fact", *REF)),
    *_option("betas", [(0.9,), (0.9, 0.9, 0.9), ()], ValueError, EVERY),
    *_option("betas", [0.9, None, "0.9", {0.9, 0.99}], TypeError, EVERY),
    *_number("eps", [-1e-8, INF], (*BASIC, "emo_neco", *REF)),
    *_number("weight_decay", [-0.1, INF], (*BASIC, "emo_lynx", *REF)),
    *_number("theta", [-1e-4, INF], (*BASIC, "emotional")),
    *_number("shadow_rate", [0.0, -0.1, 1.1], (*BASIC, "emo_navi", "emotional")),
    *_number("short_factor", [0.0, -0.3, 1.1], (*BASIC, "emo_clan", "emotional", "early_stop")),
    *_number("long_factor", [0.0, -0.3, 1.1], (*BASIC, "emo_neco", "emotional", "early_stop")),
    *_number("gain", [-5.0, INF], (*BASIC, "emo_zeal", "emotional", "early_stop")),
    *_number("min_lr", [-1e-6, INF, 1.0], REF),
    *_number("max_lr", [-1e-2, INF], REF),
    *_number("schedulefree_alpha", [0.0, 1.5], REF),
    *_number("ref_alpha", [-0.5, 1.5], REF),
    *_number("ref_max_steps", [0, -5, 1.5, INF, 2**31], REF, none=True),
    *_number("injection_bound", [-0.1, INF], REF, none=True),
    *_number("mean_below", [0.0, 1.5], ("early_stop",)),
    *_number("variance_below", [0.0, 1.5], ("early_stop",)),
    *_option("bounds", [(2.0, 0.0), (NAN, 1.0), (1.0,), "01", 0.5], ValueError, ("runaway",)),
    *_option("bounds", [("a", "b"), (None, 1.0), (True, 1.0)], TypeError, ("runaway",)),
    *_option("shadow_ratio", ["v3.0", "2.0", "", 0.5, None, True, ["v2.0"]], ValueError, EMOTIONAL),
    *_option("weight_decay_mode", ["L2", "adamw", "", None, 1, ["l2"]], ValueError, EVERY),
    *_option("rounding", ["up", "Kahan", "", None, True], ValueError, EVERY),
    *_option("moment_dtype", ["bfloat16", torch.int8, bool, torch.complex64, 5], ValueError, EVERY),
    *_option("use_shadow", ["yes", "False", None, 1, 0.5, []], TypeError, EMOTIONAL),
    *_option("decoupled_weight_decay", ["yes", None, 1, 0.0], TypeError, DIVIDING),
    *_option("shadow_effect", ["yes", None, 1], TypeError, ("emotional",)),
    *_option("keep", [None, 0.5, "rows"], TypeError, ("emotional",)),
    *_option("maximize", ["yes", None, 1], TypeError, EVERY),
    *_option("foreach", ["yes", 1, 0.5], TypeError, EVERY),
    *_option("fused", ["yes", 1, 0.5], TypeError, EVERY),
    *_option("capturable", ["yes", None, 1], TypeError, EVERY),
    *_option("process_group", ["all", 1, True], TypeError, EVERY),
    Case(
        "two ways of one step",
        {"foreach": True, "fused": True},
        Refused(ValueError, "pass one of them, or neither"),
        EVERY,
    ),
    Case(
        "decay divided by a learning rate of 0",
        {"decoupled_weight_decay": True, "lr": 0.0},
        Refused(ValueError, "divides the weight decay by the initial learning rate"),
        DIVIDING,
    ),
    Case(
        "decay divided in a mode that does not",
        {"decoupled_weight_decay": True, "weight_decay_mode": "l2"},
        Refused(ValueError, "do not pass it with weight_decay_mode='l2'"),
        DIVIDING,
    ),
    *[
        Case(f"an option named {name}", {name: 0.5}, Refused(TypeError, f"argument '{name}'"), members)
        for name, members in {"learning_rate": EVERY, "b1": EVERY, "theta": SWITCHING, "gain": REF}.items()
    ],
]
ONES_OWN = ("process_group", "keep", "decoupled_weight_decay", "bounds", "an option", "decay")
"""The first letters of options that a parameter group does not have."""

NAMES = [
    *[
        Case(f"the name {name!r}", {"name": name}, Refused(ValueError, "There is no optimizer named"), ())
        for name in ("adam", "", "emo sens", "emo_senses", "EmoSens2")
    ],
    *[
        Case(
            f"the name {getattr(name, '__name__', name)!r}",
            {"name": name},
            Refused(TypeError, "name of an optimizer is needed"),
            (),
        )
        for name in (None, 5, ["emo_sens"], emo_torch.EmoSens)
    ],
]


def _sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([Parameter(torch.ones(2))], lr=0.1)


NO_OPTIMIZER = Refused(TypeError, "must be a torch.optim.Optimizer, and is")
INNER = [
    *[
        Case(f"inner {title}", {"inner": lambda inner=inner: inner}, NO_OPTIMIZER)
        for title, inner in {"None": None, "a class": torch.optim.SGD, "a name": "adam", "0.1": 0.1}.items()
    ],
    Case(
        "inner emotional",
        {"inner": lambda: emo_torch.EmoSens([Parameter(torch.ones(2))])},
        Refused(TypeError, "is emotional already"),
    ),
    Case(
        "inner that calls closures",
        {"inner": lambda: torch.optim.LBFGS([Parameter(torch.ones(2))])},
        Refused(TypeError, "calls the closure itself"),
    ),
    Case(
        "inner that is differentiable",
        {"inner": lambda: torch.optim.SGD([Parameter(torch.ones(2))], differentiable=True)},
        Refused(ValueError, "with differentiable=False"),
    ),
]


# Parameters.


def _param(value: Tensor, grad: float | None = 0.1, *, requires_grad: bool = True) -> Parameter:
    param = Parameter(value, requires_grad=requires_grad)
    param.grad = None if grad is None else torch.full_like(value, grad)
    return param


def _same(value: Any) -> Any:
    return value


TWICE = Parameter(torch.ones(2))
PARAMS = [
    *[  # type: ignore[var-annotated]
        Case(f"parameters {title}", {"params": functools.partial(_same, params)}, end, EVERY[::3])
        for title, params, end in [
            ("None", None, Refused(TypeError, "NoneType")),
            ("that are one tensor", torch.ones(2), Refused(TypeError, "params argument given")),
            ("that are a word", "weight", Refused(TypeError, "optimizer can only optimize Tensors")),
            ("that are numbers", [1.0], Refused(TypeError, "optimizer can only optimize Tensors")),
            ("that are a dict", {"params": []}, Refused(TypeError, "optimizer can only optimize Tensors")),
            ("that are empty", [], Refused(ValueError, "empty parameter list")),
            ("in a set", [{"params": {TWICE}}], Refused(TypeError, "ordered")),
            (
                "in a group without any",
                [{"lr": 0.1}],
                Refused(ValueError, "A parameter group needs 'params'"),
            ),
            ("that are no leaf", [TWICE * 2], Refused(ValueError, "can't optimize a non-leaf Tensor")),
            ("twice in a group", [TWICE, TWICE], Refused(UserWarning, "duplicate parameters")),
            (
                "in two groups",
                [{"params": [TWICE]}, {"params": [TWICE]}],
                Refused(ValueError, "more than one parameter group"),
            ),
        ]
    ],
    *[
        Case(f"a parameter {title}", {"params": make}, end)
        for title, make, end in [
            (
                "complex",
                lambda: [_param(torch.ones(2, dtype=torch.complex64))],
                Refused(RuntimeError, "does not support complex parameters"),
            ),
            (
                "of whole numbers",
                lambda: [_param(torch.ones(2, dtype=torch.int32), 1.0, requires_grad=False)],
                Refused(RuntimeError, "steps only floating-point parameters"),
            ),
            (
                "of booleans",
                lambda: [_param(torch.ones(2, dtype=torch.bool), 1.0, requires_grad=False)],
                Refused(RuntimeError, "steps only floating-point parameters"),
            ),
            (
                "of whole numbers, without a gradient",
                lambda: [_param(torch.ones(2, dtype=torch.int32), None, requires_grad=False)],
                "trains",
            ),
            ("without a gradient", lambda: [_param(torch.ones(2), None)], "trains"),
            ("of shape ()", lambda: [_param(torch.ones(()))], "trains"),
            ("of shape (0,)", lambda: [_param(torch.ones(0))], "trains"),
            ("of shape (3, 0, 2)", lambda: [_param(torch.ones(3, 0, 2))], "trains"),
            ("of float16", lambda: [_param(torch.ones(2, dtype=torch.float16))], "trains"),
            ("of float64", lambda: [_param(torch.ones(2, dtype=torch.float64))], "trains"),
            ("that is turned round", lambda: [_param(torch.ones(2, 3).t())], "trains"),
            ("that is infinite", lambda: [_param(torch.tensor([INF, 1.0]))], "takes a step"),
            ("that is NaN", lambda: [_param(torch.tensor([NAN, 1.0]))], "takes a step"),
            ("on the device meta", lambda: [_param(torch.ones(2, device="meta"))], "takes a step"),
            ("in a generator", lambda: (_param(torch.ones(2)) for _ in range(1)), "trains"),
            ("with a name", lambda: [("weight", _param(torch.ones(2)))], "trains"),
        ]
    ],
]


# The code that runs the cases.


def _params() -> list[Parameter]:
    weight = Parameter(torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]]))
    bias = Parameter(torch.tensor([0.1, 0.2, 0.3]))
    weight.grad = torch.tensor([[0.1, 0.2, 0.3], [-0.4, 0.5, 0.6]])
    bias.grad = torch.tensor([1.0, -1.0, 0.5])
    return [weight, bias]
