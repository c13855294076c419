"""What can be given wrongly, as data: each case ends in the error, or in the behaviour, that it names.

After an error, state, parameters and gradients are as before, to the bit, and the next good step is that
of a twin which never saw the fault.
"""

import functools
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import emo_torch

BASIC = ("emo_sens", "emo_airy", "emo_cats")
FIRST_GENERATION = ("emo_navi", "emo_fact", "emo_lynx")
SWITCHING = ("emo_clan", "emo_neco", "emo_zeal")
REF = ("ref_adamw_mini_schedule_free",)
EMOTIONAL = (*BASIC, *FIRST_GENERATION, *SWITCHING)
EVERY = (*EMOTIONAL, *REF)
DIVIDING = ("emo_cats", "emo_lynx", "emo_neco")


class Refused(NamedTuple):
    """The end is an error.

    Attributes:
        error: its type.
        message: a piece of it.
    """

    error: type[Exception]
    message: str


class Case(NamedTuple):
    """One fault.

    Attributes:
        name: of the fault, one of its kind.
        given: what is given wrongly, in a dictionary by the name of the place.
        end: `Refused`, or the name of a behaviour (see `BEHAVIOURS`).
        members: on whom it is tried.
    """

    name: str
    given: Any
    end: Any
    members: tuple[str, ...] = BASIC


NAN, INF = float("nan"), float("inf")
META = torch.ones((), device="meta")


# Options.

NOT_NUMBERS: list[Any] = ["0.1", None, True, [0.1], {}, 1j, np.complex64(1j), torch.tensor(True), object]


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
    """Returns the cases of an option that is a number: what is out of its range, and what is none."""
    strange = [value for value in NOT_NUMBERS if not (none and value is None)]
    beyond = [*beyond, NAN, np.float32(beyond[0]), torch.tensor(beyond[0])]
    return [
        *_option(name, beyond, ValueError, members),
        *_option(name, [torch.tensor([0.5, 0.5])] if name != "lr" else [], ValueError, members),
        *_option(name, [*strange, META], TypeError, members),
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
        Refused(ValueError, "choose one, or neither"),
        EVERY,
    ),
    Case(
        "decay divided by a learning rate of 0",
        {"decoupled_weight_decay": True, "lr": 0.0},
        Refused(ValueError, "divides the weight decay by the learning rate"),
        DIVIDING,
    ),
    Case(
        "decay divided in a mode that does not",
        {"decoupled_weight_decay": True, "weight_decay_mode": "l2"},
        Refused(ValueError, "leave it away for weight_decay_mode='l2'"),
        DIVIDING,
    ),
    *[
        Case(f"an option named {name}", {name: 0.5}, Refused(TypeError, f"argument '{name}'"), members)
        for name, members in {"learning_rate": EVERY, "b1": EVERY, "theta": SWITCHING, "gain": REF}.items()
    ],
]
ONES_OWN = ("process_group", "keep", "decoupled_weight_decay", "bounds", "an option", "decay")
"""What the names of options begin with that a parameter group does not have."""

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
        Refused(TypeError, "calls a closure for itself"),
    ),
    Case(
        "inner that is differentiable",
        {"inner": lambda: torch.optim.SGD([Parameter(torch.ones(2))], differentiable=True)},
        Refused(ValueError, "differentiable=True"),
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
                Refused(RuntimeError, "steps floating-point parameters alone"),
            ),
            (
                "of booleans",
                lambda: [_param(torch.ones(2, dtype=torch.bool), 1.0, requires_grad=False)],
                Refused(RuntimeError, "steps floating-point parameters alone"),
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


# What a step is given.


class Measured:
    """A number of somebody else's making."""

    def __float__(self) -> float:
        return 2.5


LOSS_MISSING = Refused(emo_torch.LossMissingError, "reads the loss of every step, and none was given")
SCALAR = Refused(ValueError, "The loss must be a scalar")
REAL = Refused(TypeError, "The loss must be")

LOSSES = [
    Case("no loss", {"loss": None}, LOSS_MISSING, EMOTIONAL),
    Case("no loss, from a closure", {"closure": lambda: None}, LOSS_MISSING, EMOTIONAL),
    Case("no loss for one that needs none", {"loss": None}, "takes a step", REF),
    *[
        Case(f"a loss that is {title}", {"loss": loss}, end, members)
        for end, members, losses in [
            (
                REAL,
                EVERY[::3],
                {
                    "a string": "1.0",
                    "a word": "nan",
                    "bytes": b"1",
                    "a truth": True,
                    "a truth of NumPy": np.True_,
                    "a truth in a tensor": torch.tensor(True),
                    "complex": 1j,
                    "complex of NumPy": np.complex128(1.0),
                    "complex in a tensor": torch.tensor(1j),
                    "a dict": {"loss": 1.0},
                    "a set": {1.0},
                    "an object": object(),
                    "a function": abs,
                    "a function of torch": torch.mean,
                    "a class": float,
                    "a date": np.datetime64("2020-01-01"),
                    "a list": [1.0],
                    "a list of two": [1.0, 2.0],
                    "a tuple": (1.0,),
                    "an empty list": [],
                    "a list of tensors": [torch.ones(())],
                    "on the device meta": META,
                    "sparse": torch.ones(1).to_sparse(),
                    "an output of a model": torch.nn.Linear(1, 1),
                },
            ),
            (
                SCALAR,
                EVERY[::3],
                {
                    "of shape (2,)": torch.ones(2),
                    "of shape (0,)": torch.ones(0),
                    "of shape (2, 2)": torch.ones(2, 2),
                    "of shape (1, 0)": torch.ones(1, 0),
                    "of shape (2,) of NumPy": np.ones(2),
                    "of shape (2, 2) of NumPy": np.ones((2, 2)),
                    "of shape (0,) of NumPy": np.ones(0),
                    "of shape (2,), with a graph": torch.ones(2, requires_grad=True) * 2,
                },
            ),
            (
                "holds the loss",
                EMOTIONAL,
                {
                    "NaN": NAN,
                    "NaN in a tensor": torch.tensor(NAN),
                    "infinite": INF,
                    "infinite below 0": -INF,
                    "infinite in float16": torch.tensor(INF, dtype=torch.float16),
                    "too large for float32": 1e300,
                    "too large below 0": -1e300,
                    "too large, of NumPy": np.float64(1e39),
                    "too large, in a tensor": torch.tensor(1e39, dtype=torch.float64),
                    "a whole number too large": 10**400,
                    "NaN of NumPy": np.asarray(NAN),
                },
            ),
            (
                "feels 2.5",
                BASIC,
                {
                    "a tensor": torch.tensor(2.5),
                    "a float": 2.5,
                    "of shape (1,)": torch.tensor([2.5]),
                    "of shape (1, 1)": torch.tensor([[2.5]]),
                    "of float16": torch.tensor(2.5, dtype=torch.float16),
                    "of bfloat16": torch.tensor(2.5, dtype=torch.bfloat16),
                    "of float64": torch.tensor(2.5, dtype=torch.float64),
                    "with a graph": torch.tensor(2.5, requires_grad=True) * 1.0,
                    "a leaf that wants a gradient": torch.tensor(2.5, requires_grad=True),
                    "a parameter": Parameter(torch.tensor(2.5)),
                    "of NumPy": np.float64(2.5),
                    "an array of NumPy": np.asarray(2.5),
                    "an array of NumPy of shape (1,)": np.asarray([2.5]),
                    "a fraction": Fraction(5, 2),
                    "a number of one's own": Measured(),
                },
            ),
            (
                "feels 3",
                BASIC,
                {"whole": 3, "whole in a tensor": torch.tensor(3), "whole of NumPy": np.int8(3)},
            ),
            ("sits the loss out", REF, {"NaN, without an emotion": NAN, "infinite, without one": INF}),
        ]
        for title, loss in losses.items()  # type: ignore[attr-defined]
    ],
    *[
        Case(f"a closure that {title}", given, end)
        for title, given, end in [
            ("is a number", {"closure": 1.0}, Refused(TypeError, "opt.step(loss=loss)")),
            ("is a tensor", {"closure": torch.ones(())}, Refused(TypeError, "opt.step(loss=loss)")),
            ("is a word", {"closure": "loss"}, Refused(TypeError, "opt.step(loss=loss)")),
            ("returns a string", {"closure": lambda: "1.0"}, REAL),
            ("returns two losses", {"closure": lambda: (1.0, 2.0)}, REAL),
            ("returns two numbers", {"closure": lambda: torch.ones(2)}, SCALAR),
            ("returns a truth", {"closure": lambda: True}, REAL),
            ("returns NaN", {"closure": lambda: NAN}, "holds the loss"),
            ("returns a loss", {"closure": lambda: 2.5}, "feels 2.5"),
            ("is one beside a loss", {"closure": lambda: "1.0", "loss": 2.5}, "feels 2.5"),
        ]
    ],
    *[
        Case(f"a validation loss that is {title}", {"loss": 1.4, "val_loss": loss}, end, REF)
        for title, loss, end in [
            ("a string", "1.0", Refused(TypeError, "The val_loss must be")),
            ("of shape (2,)", torch.ones(2), Refused(ValueError, "The val_loss must be a scalar")),
            ("a truth", True, Refused(TypeError, "The val_loss must be")),
            ("NaN", NAN, "sits the loss out"),
        ]
    ],
]

WITH_GRAPH = torch.ones((), requires_grad=True) * 1.0
COLLECTED = [
    *[
        Case(f"{way} {title}", {way: arguments}, end, EVERY[index % 3 :: 3])
        for way in ("observe", "watch")
        for index, (title, arguments, end) in enumerate(
            [
                ("None", (None,), LOSS_MISSING),
                ("a string", ("1.0",), REAL),
                ("a truth", (True,), REAL),
                ("complex", (torch.tensor(1j),), REAL),
                ("on the device meta", (META,), REAL),
                ("of shape (2,)", (torch.ones(2, requires_grad=True),), SCALAR),
                ("with a weight of 0", (WITH_GRAPH, 0.0), Refused(ValueError, "Invalid weight: 0.0")),
                ("with a weight below 0", (WITH_GRAPH, -1.0), Refused(ValueError, "Invalid weight: -1.0")),
                ("with a weight of NaN", (WITH_GRAPH, NAN), Refused(ValueError, "Invalid weight: nan")),
                ("with an infinite weight", (WITH_GRAPH, INF), Refused(ValueError, "Invalid weight: inf")),
                ("with a word for a weight", (WITH_GRAPH, "1"), Refused(TypeError, "Invalid weight: '1'")),
                ("with a weight of None", (WITH_GRAPH, None), Refused(TypeError, "Invalid weight: None")),
                (
                    "with a truth for a weight",
                    (WITH_GRAPH, True),
                    Refused(TypeError, "Invalid weight: True"),
                ),
                (
                    "with a tensor for a weight",
                    (WITH_GRAPH, torch.ones(())),
                    Refused(TypeError, "Invalid weight"),
                ),
                (
                    "with another reduction",
                    (WITH_GRAPH, 1.0, "max"),
                    Refused(ValueError, "Invalid reduction"),
                ),
                ("without a reduction", (WITH_GRAPH, 1.0, None), Refused(ValueError, "Invalid reduction")),
            ]
        )
    ],
    Case("watch a number", {"watch": (2.5,)}, Refused(TypeError, "give a number to `observe`")),
    Case("watch without a graph", {"watch": (torch.ones(()),)}, Refused(ValueError, "without a graph")),
    Case("observe NaN", {"observe": (NAN,), "loss": None}, "holds the loss", EMOTIONAL),
    Case("observe a loss", {"observe": (2.5,), "loss": None}, "feels 2.5"),
    Case("observe beside a loss", {"observe": (7.0,), "loss": 2.5}, "feels 2.5"),
]


def _grads(*, weight: Any = 0, bias: Any = 0) -> Callable[[list[Parameter]], None]:
    """Returns what puts gradients into the place of those that are there."""

    def put(params: list[Parameter]) -> None:
        for param, grad in zip(params, (weight, bias), strict=True):
            if grad is None or isinstance(grad, Tensor):
                param.grad = grad
            elif grad != 0:
                param.grad = grad()

    return put


def _bias(value: float) -> Tensor:
    return torch.tensor([1.0, value, 1.0])


ASSIGNED = Refused(RuntimeError, "attempting to assign a gradient")  # PyTorch itself says so.
SPARSE = Refused(RuntimeError, "does not support sparse gradients")
GRADIENTS = [
    *[
        Case(f"gradients {title}", {"grads": put}, end, EVERY[index % 3 :: 3])
        for index, (title, put, end) in enumerate(
            [
                ("of shape ()", _grads(weight=torch.ones(())), ASSIGNED),
                ("of shape (1,)", _grads(weight=torch.ones(1)), ASSIGNED),
                ("of one row", _grads(weight=torch.ones(3)), ASSIGNED),
                ("turned round", _grads(weight=torch.ones(3, 2)), ASSIGNED),
                ("of no elements", _grads(weight=torch.ones(0, 3)), ASSIGNED),
                ("that are complex", _grads(bias=torch.ones(3, dtype=torch.complex64)), ASSIGNED),
                ("of booleans", _grads(bias=torch.ones(3, dtype=torch.bool)), ASSIGNED),
                ("of whole numbers", _grads(bias=torch.ones(3, dtype=torch.int64)), ASSIGNED),
                ("of float64", _grads(bias=torch.ones(3, dtype=torch.float64)), ASSIGNED),
                ("on the device meta", _grads(bias=torch.ones(3, device="meta")), ASSIGNED),
                ("that are a float", _grads(bias=lambda: 0.1), Refused(TypeError, "assigned grad")),
                ("that are sparse", _grads(weight=torch.ones(2, 3).to_sparse()), SPARSE),
                (
                    "that are sparse, beside none",
                    _grads(weight=torch.ones(2, 3).to_sparse(), bias=None),
                    SPARSE,
                ),
                ("that are sparse vectors", _grads(bias=torch.ones(3).to_sparse()), SPARSE),
                ("None", _grads(weight=None, bias=None), "takes a step"),
                ("with None for a leaf", _grads(bias=None), "takes a step"),
                ("that are 0", _grads(weight=torch.zeros(2, 3), bias=torch.zeros(3)), "takes a step"),
                ("that are turned round in memory", _grads(weight=torch.ones(3, 2).t()), "takes a step"),
                ("that are one number repeated", _grads(bias=torch.ones(1).expand(3)), "takes a step"),
                ("with a graph", _grads(bias=torch.ones(3, requires_grad=True) * 0.1), "takes a step"),
            ]
        )
    ],
    *[
        Case(f"{title}{of_whom}", {"grads": _grads(bias=_bias(value))}, end, members)
        for title, value in {"NaN": NAN, "infinity": INF, "minus infinity": -INF}.items()
        for of_whom, end, members in [
            (" in a gradient", "spoils its own leaf alone", EMOTIONAL),
            (" in a gradient of one that looks at norms", "sits the leaf out", REF),
        ]
    ],
    *[
        Case(
            f"{title} in a gradient, guarded",
            {"grads": _grads(bias=_bias(value)), "guarded": True},
            "skips the step",
            EVERY,
        )
        for title, value in {"NaN": NAN, "infinity": INF}.items()
    ],
    Case("a huge gradient", {"grads": _grads(bias=torch.full((3,), 1e18))}, "takes a step", EVERY),
    Case("a tiny gradient", {"grads": _grads(bias=torch.full((3,), 1e-30))}, "takes a step", EVERY),
]


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
                    "is fused in bfloat16",
                    lambda _: {"params": [torch.ones(2, dtype=torch.bfloat16)], "fused": True},
                    Refused(RuntimeError, "fused=True takes float32 and float64"),
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
                    Refused(ValueError, "choose one, or neither"),
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


# States that `load_state_dict` is given.


def _state_with(**values: Any) -> Callable[[dict[str, Any]], Any]:
    """Returns what puts values into the state of the second parameter, a vector of 3."""

    def change(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "state": {**state["state"], 1: {**state["state"][1], **values}}}

    return change


def _state_without(name: str) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        left = {key: value for key, value in state["state"][1].items() if key != name}
        return {**state, "state": {**state["state"], 1: left}}

    return change


def _group_with(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {**state, "param_groups": [{**state["param_groups"][0], **values}]}


def _group_without(name: str) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        left = {key: value for key, value in state["param_groups"][0].items() if key != name}
        return {**state, "param_groups": [left]}

    return change


def _of_another(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda _: _stepped(name)[0].state_dict()


def _of_torch(cls: Any, **options: Any) -> Callable[[dict[str, Any]], Any]:
    def change(_: dict[str, Any]) -> Any:
        params = _params()
        optimizer = cls(params, lr=0.1, **options)
        optimizer.step()
        return optimizer.state_dict()

    return change


ADAPTED = ("emo_sens", "emo_cats", "emo_navi", "emo_lynx", "emo_neco", *REF)
FORM = Refused(ValueError, "The state is damaged")
ANOTHER = Refused(ValueError, "The state is another kind of optimizer's, or damaged")
SHAPES = Refused(ValueError, "The state has other shapes")
NO_STATE = Refused(TypeError, "loads is what its `state_dict()` returned")
STATES = [
    *[
        Case(f"a state {title}", {"state": change}, end, members)
        for title, change, end, members in [
            ("None", lambda _: None, NO_STATE, EVERY),
            ("()", lambda _: (), NO_STATE, EVERY),
            ("that is a word", lambda _: "state.pt", NO_STATE, EVERY),
            ("that is an optimizer", lambda _: _stepped("emo_sens")[0], NO_STATE, EVERY),
            ("in a list", lambda state: [state], NO_STATE, EVERY),
            ("that is empty", lambda _: {}, Refused(ValueError, "'state' is missing"), EVERY),
            (
                "of a model",
                lambda _: torch.nn.Linear(2, 2).state_dict(),
                Refused(ValueError, "'state' is missing"),
                EVERY,
            ),
            (
                "without groups",
                lambda state: {"state": state["state"]},
                Refused(ValueError, "'param_groups' is missing"),
                EVERY,
            ),
            ("with None for groups", lambda state: {**state, "param_groups": None}, FORM, EVERY),
            ("with words for groups", lambda state: {**state, "param_groups": ["group"]}, FORM, EVERY),
            ("without the groups' params", _group_without("params"), FORM, EVERY),
            ("with None for params", _group_with(params=None), FORM, EVERY),
            ("with None for states", lambda state: {**state, "state": None}, FORM, EVERY),
            ("with a list for states", lambda state: {**state, "state": []}, FORM, EVERY),
            ("with None for a state", lambda state: {**state, "state": {0: None}}, FORM, EVERY),
            (
                "of two groups",
                lambda state: {**state, "param_groups": state["param_groups"] * 2},
                Refused(ValueError, "different number of parameter groups"),
                EVERY,
            ),
            (
                "of no groups",
                lambda state: {**state, "param_groups": []},
                Refused(ValueError, "different number of parameter groups"),
                EVERY,
            ),
            (
                "of fewer parameters",
                _group_with(params=[0]),
                Refused(ValueError, "doesn't match the size"),
                EVERY,
            ),
            (
                "of more parameters",
                _group_with(params=[0, 1, 2]),
                Refused(ValueError, "doesn't match the size"),
                EVERY,
            ),
            ("of SGD", _of_torch(torch.optim.SGD, momentum=0.9), ANOTHER, EVERY),
            ("of Adagrad", _of_torch(torch.optim.Adagrad), ANOTHER, EVERY),
            ("of emo_cats", _of_another("emo_cats"), ANOTHER, ("emo_sens", "emo_airy", "emo_clan", *REF)),
            ("of emo_sens", _of_another("emo_sens"), ANOTHER, ("emo_airy", "emo_cats", "emo_neco", *REF)),
            ("of emo_airy", _of_another("emo_airy"), ANOTHER, ("emo_sens", "emo_cats", "emo_clan", *REF)),
            ("of emo_clan", _of_another("emo_clan"), ANOTHER, BASIC),
            ("of ref_adamw", _of_another(*REF), ANOTHER, EMOTIONAL),
            ("without a moment", _state_without("exp_avg"), ANOTHER, ("emo_sens", "emo_navi", *REF)),
            ("with None for a moment", _state_with(exp_avg=None), ANOTHER, ADAPTED),
            ("with a word for a moment", _state_with(exp_avg="moment"), ANOTHER, ADAPTED),
            ("with a list for a moment", _state_with(exp_avg=[0.0] * 3), ANOTHER, ADAPTED),
            ("with a moment too much", _state_with(row=torch.zeros(3)), ANOTHER, ADAPTED),
            ("with moments of one number", _state_with(exp_avg=torch.zeros(())), SHAPES, ADAPTED),
            ("with moments of shape (1,)", _state_with(exp_avg=torch.zeros(1)), SHAPES, ADAPTED),
            ("with moments of more rows", _state_with(exp_avg=torch.zeros(4, 3)), SHAPES, ADAPTED),
            ("with moments of another length", _state_with(exp_avg=torch.zeros(4)), SHAPES, ADAPTED),
            ("with moments of no length", _state_with(exp_avg=torch.zeros(0)), SHAPES, ADAPTED),
            ("with moments of whole numbers", _state_with(exp_avg=torch.zeros(3).int()), FORM, ADAPTED),
            ("with moments of booleans", _state_with(exp_avg=torch.zeros(3).bool()), FORM, ADAPTED),
            ("with complex moments", _state_with(exp_avg=torch.zeros(3) * 1j), FORM, ADAPTED),
            ("with half a shadow", _state_with(shadow=torch.zeros(3)), ANOTHER, (*BASIC, *SWITCHING)),
            (
                "with a shadow that is a number",
                _state_with(shadow=torch.zeros(()), shadow_exists=torch.tensor(True)),
                SHAPES,
                EMOTIONAL,
            ),
            (
                "with a number for whether there is a shadow",
                _state_with(shadow=torch.zeros(3), shadow_exists=torch.tensor(1.0)),
                FORM,
                EMOTIONAL,
            ),
            (
                "without an average",
                _group_without("emotion_short"),
                Refused(ValueError, "lacks a part of the emotion: emotion_short"),
                EMOTIONAL,
            ),
            (
                "with a history too short",
                _group_without("emotion_history_31"),
                Refused(ValueError, "lacks a part of the emotion: emotion_history_31"),
                EMOTIONAL,
            ),
            ("with a count None", _group_with(emotion_felt=None), FORM, EMOTIONAL),
            ("with a count that is a word", _group_with(emotion_felt="1"), FORM, EMOTIONAL),
            ("with an average of shape (2,)", _group_with(emotion_long=torch.zeros(2)), FORM, EMOTIONAL),
            ("with an average NaN", _group_with(emotion_long=torch.tensor(NAN)), FORM, EMOTIONAL),
            ("with an infinite scalar", _group_with(emotion_scalar=torch.tensor(INF)), FORM, EMOTIONAL),
            ("with a NaN in history", _group_with(emotion_history_00=torch.tensor(NAN)), FORM, EMOTIONAL),
            ("with a count below 0", _group_with(emotion_felt=torch.tensor(-1)), FORM, EMOTIONAL),
            ("with a count of floats", _group_with(emotion_felt=torch.tensor(1.5)), FORM, EMOTIONAL),
            ("with lr below 0", _group_with(lr=-0.1), Refused(ValueError, "Invalid learning rate"), EVERY),
            ("with a word for lr", _group_with(lr="0.1"), Refused(TypeError, "Invalid learning"), EVERY),
            ("with one beta", _group_with(betas=(0.9,)), Refused(ValueError, "Invalid betas"), EVERY),
            ("with another mode", _group_with(weight_decay_mode="x"), Refused(ValueError, "_mode"), EVERY),
            (
                "with a function for shadow_ratio",
                _group_with(shadow_ratio="function"),
                Refused(ValueError, "which no file keeps"),
                EMOTIONAL,
            ),
        ]
    ],
]


# Arrays that `from_arrays` is given.


def _arrays_with(**arrays: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda kept: {**kept, **{name.replace("__", "/"): array for name, array in arrays.items()}}


def _arrays_without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda kept: {key: array for key, array in kept.items() if key != name}


ARRAYS = [
    *[
        Case(f"arrays {title}", {"arrays": change}, Refused(ValueError, message), members)
        for title, change, message, members in [
            ("of version 99", _arrays_with(version=np.asarray(99)), "Unknown version [99]", EVERY),
            ("of version 0", _arrays_with(version=np.asarray(0)), "Unknown version [0]", EVERY),
            ("of two versions", _arrays_with(version=np.asarray([1, 1])), "Unknown version [1, 1]", BASIC),
            ("of no version", _arrays_without("version"), "'version' or 'rule' is missing", EVERY),
            ("of a version in words", _arrays_with(version=np.asarray("1")), "Unknown version", BASIC),
            ("without a rule", _arrays_without("rule"), "'version' or 'rule' is missing", EVERY),
            (
                "with a rule in text",
                _arrays_with(rule=np.asarray("lion")),
                "not the bytes of a name",
                BASIC,
            ),
            ("of another rule", _arrays_with(rule=np.frombuffer(b"sgd", np.uint8)), "'sgd', not", EVERY),
            ("of nothing", lambda _: {}, "'version' or 'rule' is missing", EVERY),
            ("without a moment", _arrays_without("exp_avg/bias"), "'exp_avg/bias' is missing", ADAPTED),
            ("without an average", _arrays_without("emotion/short"), "'emotion/short' is", EMOTIONAL),
            ("without a history", _arrays_without("emotion/history"), "history' is missing", EMOTIONAL),
            ("with a moment too much", _arrays_with(exp_avg__x=np.ones(1)), "exp_avg/x", EVERY),
            ("with an emotion too much", _arrays_with(emotion__joy=np.ones(())), "emotion/joy", EVERY),
            ("with a moment of one number", _arrays_with(exp_avg__bias=np.ones(())), "shape ()", ADAPTED),
            ("with a moment too long", _arrays_with(exp_avg__bias=np.ones(4)), "the shape (4,)", ADAPTED),
            ("with a history too short", _arrays_with(emotion__history=np.ones(31)), "(31,)", EMOTIONAL),
            ("with whole moments", _arrays_with(exp_avg__bias=np.ones(3, int)), "holds int64", ADAPTED),
            ("with complex moments", _arrays_with(exp_avg__bias=np.ones(3, complex)), "complex", ADAPTED),
            ("with words for moments", _arrays_with(exp_avg__bias=np.full(3, "1")), "holds <U1", ADAPTED),
            ("with objects for moments", _arrays_with(exp_avg__bias=np.full(3, None)), "object", ADAPTED),
            ("with None for a moment", _arrays_with(exp_avg__bias=None), "the shape ()", ADAPTED),
            ("with a count of floats", _arrays_with(emotion__felt=np.asarray(1.5)), "float64", EMOTIONAL),
            ("with a truth for a count", _arrays_with(emotion__felt=np.asarray(True)), "bool", EMOTIONAL),
            ("with a number for a signal", _arrays_with(emotion__should_stop=np.asarray(1)), "int", BASIC),
            ("with an average NaN", _arrays_with(emotion__long=np.asarray(NAN)), "not finite", EMOTIONAL),
            ("with an infinite scalar", _arrays_with(emotion__scalar=np.asarray(INF)), "finite", EMOTIONAL),
            ("with a NaN in history", _arrays_with(emotion__history=np.full(32, NAN)), "finite", EMOTIONAL),
            ("with a count below 0", _arrays_with(emotion__felt=np.asarray(-1)), "below 0", EMOTIONAL),
        ]
    ],
    *[
        Case(f"arrays that are {title}", {"arrays": change}, Refused(TypeError, "Named arrays are needed"))
        for title, change in {
            "a list": lambda arrays: list(arrays.values()),
            "None": lambda _: None,
            "a path": lambda _: "state.safetensors",
            "one array": lambda arrays: arrays["version"],
        }.items()
    ],
    *[
        Case(
            f"arrays of {name}",
            {"arrays": lambda _, name=name: _to_arrays(_stepped(name)[0])},
            Refused(ValueError, "those of another optimizer"),
            members,
        )
        for name, members in {
            "emo_sens": ("emo_airy", "emo_cats", "emo_clan", "emo_neco", "emo_zeal", *REF),
            "emo_cats": ("emo_sens", "emo_airy", "emo_clan", "emo_neco", "emo_zeal", *REF),
            "emo_airy": ("emo_sens", "emo_cats", "emo_zeal"),
            REF[0]: EMOTIONAL,
        }.items()
    ],
]

KINDS = {
    "options": OPTIONS,
    "names": NAMES,
    "inner": INNER,
    "params": PARAMS,
    "losses": LOSSES,
    "collected": COLLECTED,
    "gradients": GRADIENTS,
    "groups": GROUPS,
    "states": STATES,
    "arrays": ARRAYS,
}


# What executes the data.


def _params() -> list[Parameter]:
    weight = Parameter(torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]]))
    bias = Parameter(torch.tensor([0.1, 0.2, 0.3]))
    weight.grad = torch.tensor([[0.1, 0.2, 0.3], [-0.4, 0.5, 0.6]])
    bias.grad = torch.tensor([1.0, -1.0, 0.5])
    return [weight, bias]


FACTORIES: dict[str, Callable[..., Any]] = {
    **{name: functools.partial(emo_torch.create_optimizer, name) for name in EVERY},
    "emotional": lambda params, **options: emo_torch.Emotional(torch.optim.SGD(params, 0.1), **options),
    "early_stop": lambda _, **options: emo_torch.EarlyStop(**options),
    "runaway": lambda params, **options: emo_torch.scale_by_runaway(
        torch.optim.SGD(params, 0.1), **options
    ),
}


def _stepped(member: str) -> tuple[Any, list[Parameter]]:
    """Returns a member after two steps, and its parameters."""
    params = _params()
    optimizer = FACTORIES[member](params)
    if member in EVERY:
        for loss in (1.0, 1.2):
            optimizer.step(loss=loss)
    return optimizer, params


@functools.cache
def _third(member: str) -> Any:
    """Returns all of a member after three steps that nothing disturbed."""
    optimizer, params = _stepped(member)
    optimizer.step(loss=1.4)
    return _all_of(optimizer, params)


def _to_arrays(optimizer: Any) -> dict[str, Any]:
    named = zip(("weight", "bias"), optimizer.param_groups[0]["params"], strict=True)
    return emo_torch.to_arrays(optimizer, list(named))


def _bits(tree: Any) -> Any:
    """Returns a tree with each tensor's dtype, shape and bits in its place."""
    if isinstance(tree, Tensor):
        return str(tree.dtype), tuple(tree.shape), tree.detach().contiguous().numpy().tobytes()
    if isinstance(tree, dict):
        return {key: _bits(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_bits(value) for value in tree]
    return repr(tree)


def _all_of(optimizer: Any, params: list[Parameter]) -> Any:
    grads = [param.grad for param in params]
    return _bits([optimizer.state_dict(), params, grads])


class Ended(NamedTuple):
    """A step that was taken, beside one that a good loss and good gradients made, for a look at both."""

    optimizer: Any
    params: list[Parameter]
    before: Any
    twin: Any
    twins: list[Parameter]


def _is_finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors if not tensor.is_meta)


def _tensors(ended: Ended) -> list[Tensor]:
    states = [value for state in ended.optimizer.state.values() for value in state.values()]
    return [*ended.params, *states]


def _holds_the_loss(ended: Ended) -> bool:
    before, after = ended.before.emotion, ended.optimizer.emotion
    return (
        int(after.held) == int(before.held) + 1
        and (after.short, after.long, after.felt) == (before.short, before.long, before.felt)
        and bool(after.scalar == before.scalar)
        and _is_finite(*_tensors(ended))
    )


def _feels(loss: float) -> Callable[[Ended], bool]:
    def looks_so(ended: Ended) -> bool:
        twin = pickle.loads(pickle.dumps(ended.before))
        params = twin.param_groups[0]["params"]
        for param, other in zip(params, _params(), strict=True):
            param.grad = other.grad
        twin.step(loss=torch.tensor(loss))
        return bool(_all_of(twin, params) == _all_of(ended.optimizer, ended.params))

    return looks_so


def _sits_the_loss_out(ended: Ended) -> bool:
    held = ended.optimizer.divergence.held - ended.before.divergence.held
    return int(held) == 1 and _is_finite(*_tensors(ended))


def _spoils_its_own_leaf_alone(ended: Ended) -> bool:
    (weight, bias), (twin, _) = ended.params, ended.twins
    return (
        _bits([weight, ended.optimizer.state[weight]]) == _bits([twin, ended.twin.state[twin]])
        and _bits(list(ended.optimizer.emotion)) == _bits(list(ended.twin.emotion))
        and not _is_finite(*ended.optimizer.state[bias].values())
    )


def _sits_the_leaf_out(ended: Ended) -> bool:
    bias, before = ended.params[1], ended.before.param_groups[0]["params"][1]
    state, kept = ended.optimizer.state[bias], ended.before.state[before]
    return _bits([bias, state]) == _bits([before, kept]) and _is_finite(*ended.params)


def _skips_the_step(ended: Ended) -> bool:
    before = ended.before
    return bool(
        _bits([ended.optimizer.state_dict(), ended.params])
        == _bits([before.state_dict(), before.param_groups[0]["params"]])
    )


def _takes_a_step(ended: Ended) -> bool:
    if not isinstance(ended.optimizer, emo_torch.EmoOptimizer):
        return int(ended.optimizer.divergence.steps) > 0
    emotion = ended.optimizer.emotion
    return int(emotion.felt) > 0 and int(emotion.held) == 0 and _is_finite(emotion.scalar)


def _trains(ended: Ended) -> bool:
    return _takes_a_step(ended) and _is_finite(*_tensors(ended))


BEHAVIOURS: dict[str, Callable[[Ended], bool]] = {
    # The averages, their count and the scalar are as before, one more is counted as held; all is finite.
    "holds the loss": _holds_the_loss,
    # As a scalar tensor of that value.
    "feels 2.5": _feels(2.5),
    "feels 3": _feels(3.0),
    # Counted as held; all is finite.
    "sits the loss out": _sits_the_loss_out,
    # The parameter's moments are no longer finite, as with torch.optim.AdamW; all others, and the emotion,
    # are those of a step with a good gradient. The guard is a gradient scaler, or a look at the norm.
    "spoils its own leaf alone": _spoils_its_own_leaf_alone,
    # Its parameter, moments and smoothed norm stay.
    "sits the leaf out": _sits_the_leaf_out,
    # Nothing changes: the scaler does not call `step`.
    "skips the step": _skips_the_step,
    # The emotion is finite.
    "takes a step": _takes_a_step,
    # The same, and all is finite.
    "trains": _trains,
}


def _make(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> None:
    """Makes an optimizer; what a group may have, a group is added with, too."""
    if optimizer is not None and not case.name.startswith(ONES_OWN) and member in EVERY:
        with pytest.raises(case.end.error, match=case.end.message.split(":")[0]):
            optimizer.add_param_group({"params": [_fresh()], **case.given})
    FACTORIES[member](params, **case.given)


def _by_name(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> None:
    del member, optimizer
    emo_torch.create_optimizer(case.given["name"], params)


def _wrap(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> None:
    del member, optimizer, params
    emo_torch.Emotional(case.given["inner"]())


def _begin(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> Ended:
    """Makes a member, and takes one step."""
    del optimizer, params
    made = FACTORIES[member](case.given["params"]())
    made.step(loss=1.0)
    return Ended(made, made.param_groups[0]["params"], None, None, [])


def _step(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> Ended:
    """Takes one step with what the case gives in the place of what is good."""
    given = dict(case.given)
    before = pickle.loads(pickle.dumps(optimizer))
    twin, twins = _stepped(member)
    twin.step(loss=1.4)
    given.pop("grads", lambda _: None)(params)
    given.pop("groups", lambda _: None)(optimizer)
    for way in ("observe", "watch"):
        getattr(optimizer, way)(*given.pop(way)) if way in given else None
    step = optimizer.step
    if given.pop("guarded", False):
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        scaler.scale(torch.ones(()))
        step = functools.partial(scaler.step, optimizer)
    step(**({} if "closure" in given else {"loss": 1.4}) | given)
    return Ended(optimizer, params, before, twin, twins)


def _load(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> None:
    del member, params
    optimizer.load_state_dict(case.given["state"](optimizer.state_dict()))


def _load_arrays(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> None:
    del member
    named = list(zip(("weight", "bias"), params, strict=True))
    emo_torch.from_arrays(case.given["arrays"](_to_arrays(optimizer)), optimizer, named)


RUNNERS: dict[str, Callable[..., Any]] = {
    "options": _make,
    "names": _by_name,
    "inner": _wrap,
    "params": _begin,
    "states": _load,
    "arrays": _load_arrays,
}


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        pytest.param(kind, case, id=f"{kind}: {case.name}")
        for kind, cases in KINDS.items()
        for case in cases
    ],
)
def test_every_fault_ends_in_the_error_or_behaviour_that_it_names(kind: str, case: Case) -> None:
    execute: Callable[..., Any] = RUNNERS.get(kind, _step)
    for member in case.members or BASIC[:1]:
        optimizer, params = _stepped(member)
        if isinstance(case.end, str):
            assert BEHAVIOURS[case.end](execute(case, member, optimizer, params)), member
            continue
        if member not in EVERY:  # A piece, which keeps nothing that a wrong option could change.
            with pytest.raises(case.end.error, match=case.end.message):
                execute(case, member, None, params)
            continue
        before, group = _all_of(optimizer, params), dict(optimizer.param_groups[0])
        grads = [param.grad for param in params]
        with pytest.raises(case.end.error) as caught:
            execute(case, member, optimizer, params)
        assert type(caught.value) is case.end.error, member
        assert case.end.message in str(caught.value), member
        # What somebody changed in a group or in the gradients is taken back; the error changed nothing.
        optimizer.param_groups[:] = [group] if kind == "groups" else optimizer.param_groups
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        assert _all_of(optimizer, params) == before, member
        optimizer.step(loss=1.4)
        assert _all_of(optimizer, params) == _third(member), member


def test_there_are_200_cases_at_least_and_no_two_of_one_name() -> None:
    names = [(kind, case.name) for kind, cases in KINDS.items() for case in cases]
    assert len(names) == len(set(names)) >= 200
    ends = {case.end for cases in KINDS.values() for case in cases}
    assert ends >= set(BEHAVIOURS)
    assert {member for cases in KINDS.values() for case in cases for member in case.members} >= set(EVERY)
