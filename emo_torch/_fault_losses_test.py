"""Wrong losses and gradients, as data for `_fault_campaign_test.py`."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

import emo_torch
from emo_shared.fault_case_test import BASIC, EMOTIONAL, EVERY, INF, NAN, REF, Case, Refused
from emo_torch._fault_options_test import META

# The arguments of a step.


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
    Case("watch a number", {"watch": (2.5,)}, Refused(TypeError, "Pass a number to `observe`")),
    Case(
        "watch without a graph", {"watch": (torch.ones(()),)}, Refused(ValueError, "This loss has no graph")
    ),
    Case("observe NaN", {"observe": (NAN,), "loss": None}, "holds the loss", EMOTIONAL),
    Case("observe a loss", {"observe": (2.5,), "loss": None}, "feels 2.5"),
    Case("observe beside a loss", {"observe": (7.0,), "loss": 2.5}, "feels 2.5"),
]


def _grads(*, weight: Any = 0, bias: Any = 0) -> Callable[[list[Parameter]], None]:
    """Returns a function that replaces gradients."""

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
