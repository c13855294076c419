"""Wrong losses, gradients and changed parameters, as data for `_fault_campaign_test.py`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import emo_optax
from emo_optax._fault_options_test import Tree
from emo_shared.fault_case_test import BASIC, EMOTIONAL, EVERY, INF, NAN, REF, Case, Refused

# The arguments of a step.


class Measured:
    """A number of somebody else's making, which NumPy makes no array of."""

    def __float__(self) -> float:
        return 2.5


LOSS_MISSING = Refused(emo_optax.LossMissingError, "reads the loss of every step, and none was given")
SCALAR = Refused(ValueError, "`value` must be a scalar, the loss of the whole step")
REAL = Refused(TypeError, "`value` must be the loss, a real number")

LOSSES = [
    Case("no loss", {"value": None}, LOSS_MISSING, EMOTIONAL),
    Case("no loss for one that needs none", {"value": None}, "takes a step", REF),
    *[
        Case(f"a loss that is {title}", {"value": loss}, end, members)
        for end, members, losses in [
            (
                REAL,
                BASIC,
                {
                    "a string": "1.0",
                    "a word": "nan",
                    "bytes": b"1",
                    "a truth": True,
                    "a truth of NumPy": np.True_,
                    "a truth of JAX": jnp.asarray(True),
                    "complex": 1j,
                    "complex of NumPy": np.complex128(1.0),
                    "complex of JAX": jnp.asarray(1j),
                    "a dict": {"loss": 1.0},
                    "a set": {1.0},
                    "an object": object(),
                    "a number that has no dtype": Measured(),
                    "a function": abs,
                    "a function of JAX": jnp.mean,
                    "a class": float,
                    "a date": np.datetime64("2020-01-01"),
                    "a ragged list": [[1.0], 1.0],
                    "a shape": jax.ShapeDtypeStruct((), jnp.float32),
                    "an array of objects": np.asarray(None),
                },
            ),
            (
                SCALAR,
                EVERY[::3],
                {
                    "of shape (1,)": jnp.ones(1),
                    "of shape (2,)": jnp.ones(2),
                    "of shape (0,)": jnp.ones(0),
                    "of shape (1, 1)": jnp.ones((1, 1)),
                    "of shape (2, 2) of NumPy": np.ones((2, 2)),
                    "of shape (1,) of NumPy": np.ones(1),
                    "a list": [1.0],
                    "a list of two": [1.0, 2.0],
                    "a tuple": (1.0,),
                    "an empty list": [],
                },
            ),
            (
                "holds the loss",
                EMOTIONAL[::4],
                {
                    "NaN": NAN,
                    "NaN of JAX": jnp.asarray(NAN),
                    "infinite": INF,
                    "infinite below 0": -INF,
                    "infinite in float16": jnp.asarray(INF, jnp.float16),
                    "too large for float32": 1e300,
                    "too large below 0": -1e300,
                    "too large, of NumPy": np.float64(1e39),
                    "a whole number too large": 10**400,
                    "NaN of NumPy": np.asarray(NAN),
                },
            ),
            (
                "feels 2.5",
                BASIC,
                {
                    "an array": jnp.asarray(2.5),
                    "a float": 2.5,
                    "of float16": jnp.asarray(2.5, jnp.float16),
                    "of bfloat16": jnp.asarray(2.5, jnp.bfloat16),
                    "of NumPy": np.float64(2.5),
                    "an array of NumPy": np.asarray(2.5),
                },
            ),
            ("feels 3", BASIC, {"whole": 3, "whole of JAX": jnp.asarray(3), "whole of NumPy": np.int8(3)}),
            ("sits the loss out", REF, {"NaN, without an emotion": NAN, "infinite, without one": INF}),
        ]
        for title, loss in losses.items()  # type: ignore[attr-defined]
    ],
    *[
        Case(f"a validation loss that is {title}", {"val_value": loss}, end, REF)
        for title, loss, end in [
            ("a string", "1.0", Refused(TypeError, "`val_value` must be the loss")),
            ("of shape (2,)", jnp.ones(2), Refused(ValueError, "`val_value` must be a scalar")),
            ("a truth", True, Refused(TypeError, "`val_value` must be the loss")),
            ("NaN", NAN, "sits the loss out"),
        ]
    ],
]


def _with(**leaves: Any) -> Callable[[Tree], Tree]:
    """Returns a function that replaces leaves of a tree by their names."""
    return lambda tree: {**tree, **leaves}


def _without(name: str) -> Callable[[Tree], Tree]:
    return lambda tree: {key: leaf for key, leaf in tree.items() if key != name}


ANOTHER_TREE = Refused(ValueError, "The gradients have another tree structure than the parameters")
ANOTHER_SHAPE = Refused(ValueError, "The gradient of params['weight'] has the shape")

GRADIENTS = [
    *[
        Case(f"gradients {title}", {"grads": change}, end, EVERY[index % 3 :: 3])
        for index, (title, change, end) in enumerate(
            [
                ("None", lambda _: None, ANOTHER_TREE),
                ("that are one array", lambda _: jnp.ones(3), ANOTHER_TREE),
                ("in a list", lambda grads: list(grads.values()), ANOTHER_TREE),
                ("in a tuple", lambda grads: tuple(grads.values()), ANOTHER_TREE),
                ("that are empty", lambda _: {}, ANOTHER_TREE),
                ("without a leaf", _without("bias"), Refused(ValueError, "missing: ['bias']")),
                ("with None for a leaf", _with(bias=None), Refused(ValueError, "missing: ['bias']")),
                ("with a leaf too much", _with(x=jnp.ones(1)), Refused(ValueError, "extra: ['x']")),
                ("with a deeper leaf", _with(bias={"x": jnp.ones(3)}), ANOTHER_TREE),
                ("with a leaf renamed", lambda grads: {"w": 1.0, "b": grads["bias"]}, ANOTHER_TREE),
                ("of shape ()", _with(weight=jnp.ones(())), ANOTHER_SHAPE),
                ("of shape (1,)", _with(weight=jnp.ones(1)), ANOTHER_SHAPE),
                ("of one row", _with(weight=jnp.ones(3)), ANOTHER_SHAPE),
                ("of one column", _with(weight=jnp.ones((2, 1))), ANOTHER_SHAPE),
                ("of a batch", _with(weight=jnp.ones((5, 2, 3))), ANOTHER_SHAPE),
                ("turned round", _with(weight=jnp.ones((3, 2))), ANOTHER_SHAPE),
                ("of no elements", _with(weight=jnp.ones((0, 3))), ANOTHER_SHAPE),
                ("that are a float", _with(weight=0.1), ANOTHER_SHAPE),
                ("that are complex", _with(bias=jnp.ones(3, complex)), Refused(ValueError, "is complex")),
                ("of booleans", _with(bias=jnp.ones(3, bool)), Refused(TypeError, "holds booleans")),
                ("that are words", _with(bias="123"), Refused(TypeError, "must be an array of real")),
                ("that are a function", _with(bias=abs), Refused(TypeError, "must be an array of real")),
                (
                    "of whole numbers' gradient",
                    _with(bias=np.zeros(3, jax.dtypes.float0)),
                    Refused(TypeError, "has the dtype float0"),
                ),
                ("of NumPy", _with(bias=np.ones(3)), "takes a step"),
                ("of float16", _with(bias=jnp.ones(3, jnp.float16)), "takes a step"),
                ("of whole numbers", _with(bias=jnp.arange(3)), "takes a step"),
                ("that are 0", lambda grads: jax.tree.map(jnp.zeros_like, grads), "takes a step"),
            ]
        )
    ],
    *[
        Case(f"{title}{of_whom}", {"grads": _with(bias=jnp.asarray([1.0, value, 1.0]))}, end, members)
        for title, value in {"NaN": NAN, "infinity": INF, "minus infinity": -INF}.items()
        for of_whom, end, members in [
            (" in a gradient", "spoils its own leaf alone", EMOTIONAL),
            (" in a gradient of one that looks at norms", "sits the leaf out", REF),
        ]
    ],
    *[
        Case(
            f"{title} in a gradient, guarded",
            {"grads": _with(bias=jnp.asarray([1.0, value, 1.0])), "guarded": True},
            "skips the step",
            ("emo_sens", *REF),
        )
        for title, value in {"NaN": NAN, "infinity": INF}.items()
    ],
    Case("a huge gradient", {"grads": _with(bias=jnp.full(3, 1e18))}, "takes a step", EVERY),
    Case("a tiny gradient", {"grads": _with(bias=jnp.full(3, 1e-30))}, "takes a step", EVERY),
]

PARAMS_MISSING = Refused(ValueError, "`params` was not given")
STATE = Refused(ValueError, "The state does not fit this optimizer and these parameters")


def _resized(tree: Tree) -> Tree:
    return {**tree, "bias": jnp.ones(5)}


CHANGED_PARAMS = [
    *[
        Case(f"parameters {title}", given, end, EVERY[index % 2 :: 2])
        for index, (title, given, end) in enumerate(
            [
                ("not given", {"params": lambda _: None}, PARAMS_MISSING),
                ("without a leaf", {"params": _without("bias")}, ANOTHER_TREE),
                ("that grew by a leaf", {"params": _with(x=jnp.ones(1))}, ANOTHER_TREE),
                (
                    "and gradients that grew",
                    {"params": _with(x=jnp.ones(1)), "grads": _with(x=jnp.ones(1))},
                    STATE,
                ),
                (
                    "and gradients that shrank",
                    {"params": _without("bias"), "grads": _without("bias")},
                    STATE,
                ),
                ("and gradients of another size", {"params": _resized, "grads": _resized}, STATE),
                (
                    "and gradients of one number",
                    {"params": _with(bias=jnp.ones(())), "grads": _with(bias=jnp.ones(()))},
                    STATE,
                ),
                (
                    "and gradients with one more dimension",
                    {"params": _with(bias=jnp.ones((4, 3))), "grads": _with(bias=jnp.ones((4, 3)))},
                    STATE,
                ),
                (
                    "and gradients of another container",
                    {"params": jax.tree.leaves, "grads": jax.tree.leaves},
                    STATE,
                ),
                (
                    "that became complex",
                    {"params": _with(bias=jnp.ones(3, complex))},
                    Refused(ValueError, "two real parameters"),
                ),
                (
                    "that became whole numbers",
                    {"params": _with(bias=jnp.arange(3))},
                    Refused(TypeError, "must be of floating-point numbers"),
                ),
                (
                    "that became words",
                    {"params": _with(bias="abc")},
                    Refused(TypeError, "must be an array"),
                ),
                ("that are NaN", {"params": _with(bias=jnp.full(3, NAN))}, "takes a step"),
                ("in float16", {"params": _with(bias=jnp.ones(3, jnp.float16))}, "takes a step"),
            ]
        )
    ],
]
