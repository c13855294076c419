"""What can be given wrongly, as data: each case ends in the error, or in the behaviour, that it names.

After an error, state, parameters and gradients are as before, to the bit, and the next good step is that
of a twin which never saw the fault.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

Tree = Any
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


# Options.

NOT_NUMBERS: list[Any] = ["0.1", None, True, [0.1], {}, 1j, np.complex64(1j), jnp.asarray(True), object]


def _option(
    name: str, values: list[Any], error: type[Exception], members: tuple[str, ...], title: str = ""
) -> list[Case]:
    end = Refused(error, f"Invalid {title or name}: ")
    return [
        Case(f"{name}={getattr(value, '__name__', repr(value))}", {name: value}, end, _two(members, index))
        for index, value in enumerate(values)
    ]


def _two(members: tuple[str, ...], turn: int) -> tuple[str, ...]:
    """Returns two of some members, or the one that there is: other ones at every turn."""
    return tuple(dict.fromkeys(members[(turn + more) % len(members)] for more in range(2)))


def _number(
    name: str, beyond: list[Any], members: tuple[str, ...], *, none: bool = False, title: str = ""
) -> list[Case]:
    """Returns the cases of an option that is a number: what is out of its range, and what is none."""
    strange = [value for value in NOT_NUMBERS if not (none and value is None)]
    strange = [value for value in strange if not (title or name == "weight_decay") or value is not object]
    beyond = [*beyond, NAN, np.float32(beyond[0]), jnp.asarray(beyond[0]), jnp.asarray([0.5, 0.5])]
    return [
        *_option(name, beyond[:-1], ValueError, members, title),
        *_option(name, beyond[-1:], ValueError, members),
        *_option(name, strange, TypeError, members),
    ]


OPTIONS = [
    *_number("learning_rate", [-1e-3, INF, -INF], (*BASIC, "emo_zeal", *REF), title="learning rate"),
    *_number("b1", [-0.1, 1.0, 1.5], (*BASIC, "emo_clan", *REF)),
    *_number("b2", [-0.1, 1.0, 1.5], (*BASIC, "emo_fact", *REF)),
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
    *_option("seed", [-1, 2**32, 0.5, "1", None, True], ValueError, ("stochastic",)),
    *_option("shadow_ratio", ["v3.0", "2.0", "", 0.5, None, True, ["v2.0"]], ValueError, EMOTIONAL),
    *_option("shadow_ratio", [jnp.asarray(0.5)], TypeError, EMOTIONAL),
    *_option("weight_decay_mode", ["L2", "adamw", "", None, 1, ["l2"]], ValueError, EVERY),
    *_option("rounding", ["up", "Kahan", "", None, True], ValueError, EVERY),
    *_option("moment_dtype", ["float33", "int8", jnp.int32, bool, "complex64", 5], ValueError, EVERY),
    *_option("moment_dtype", [jnp.ones(2)], TypeError, BASIC),
    *_option("use_shadow", ["yes", "False", None, 1, 0.5, []], TypeError, EMOTIONAL),
    *_option("decoupled_weight_decay", ["yes", None, 1, 0.0], TypeError, DIVIDING),
    *_option("shadow_effect", ["yes", None, 1], TypeError, ("emotional",)),
    *_option("keep", [None, 0.5, "rows"], TypeError, ("emotional",)),
    *_option("mask", ["weight", 0.5, {"weight": 1}, {"weight": "yes"}, [True, None, 0]], TypeError, EVERY),
    Case(
        "decay divided by a learning rate of 0",
        {"decoupled_weight_decay": True, "learning_rate": 0.0},
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
        for name, members in {"lr": EVERY, "betas": EVERY, "theta": SWITCHING, "gain": REF}.items()
    ],
]

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
        for name in (None, 5, ["emo_sens"], emo_optax.emo_sens)
    ],
]

INNER = [
    *[
        Case(f"inner {title}", {"inner": inner}, Refused(TypeError, "A transformation of Optax is needed"))
        for title, inner in {"None": None, "a function": optax.adam, "a name": "adam", "1e-3": 1e-3}.items()
    ],
    Case("inner emotional", {"inner": emo_optax.emo_sens()}, Refused(TypeError, "emotional already")),
]


# Parameters.

PARAMS = [
    *[
        Case(f"a leaf {title}", {"params": {"weight": jnp.ones(2), "other": leaf}}, end)
        for title, leaf, end in [
            ("of whole numbers", jnp.arange(3), Refused(TypeError, "params['other'] has the dtype int32")),
            ("of booleans", jnp.ones(3, bool), Refused(TypeError, "params['other'] has the dtype bool")),
            ("that is an int", 3, Refused(TypeError, "must be of floating-point numbers")),
            ("that is a truth", True, Refused(TypeError, "must be of floating-point numbers")),
            ("complex", jnp.ones(2, complex), Refused(ValueError, "two real parameters")),
            ("complex of NumPy", np.ones(2, complex), Refused(ValueError, "two real parameters")),
            ("that is a string", "weight", Refused(TypeError, "params['other'] must be an array")),
            ("that is a function", jnp.tanh, Refused(TypeError, "params['other'] must be an array")),
            ("of objects", np.asarray([None, 1]), Refused(TypeError, "params['other'] must be an array")),
            ("of shape ()", jnp.ones(()), "trains"),
            ("of shape (0,)", jnp.ones((0,)), "trains"),
            ("of shape (3, 0, 2)", jnp.ones((3, 0, 2)), "trains"),
            ("that is a float", 0.5, "trains"),
            ("of NumPy", np.ones(2, np.float32), "trains"),
            ("of float16", jnp.ones(2, jnp.float16), "trains"),
            ("None", None, "trains"),
            ("that is a list", [jnp.ones(2), {}], "trains"),
            ("that is infinite", jnp.asarray([INF, 1.0]), "takes a step"),
            ("that is NaN", jnp.asarray([NAN, 1.0]), "takes a step"),
        ]
    ],
    Case("no leaves at all", {"params": {}}, "trains", EVERY),
    Case("an array for a tree", {"params": jnp.ones(3)}, "trains", (*BASIC[:1], *REF)),
    Case("a tuple for a tree", {"params": (jnp.ones(3), (jnp.ones(1),))}, "trains", ("emo_airy",)),
    *[
        Case(f"a mask {title}", {"mask": mask, "params": {"weight": jnp.ones(2)}}, end, EVERY[::3])
        for title, mask, end in [
            ("of another tree", {"other": True}, Refused(ValueError, "Invalid mask: it is another tree")),
            ("with too much", {"weight": True, "x": True}, Refused(ValueError, "Invalid mask: it is")),
            ("of a list", [True], Refused(ValueError, "Invalid mask: it is another tree")),
            ("too deep", {"weight": {"x": True}}, Refused(ValueError, "Invalid mask: it is another tree")),
            ("of numbers", lambda _: {"weight": 1.0}, Refused(TypeError, "Invalid mask: mask['weight']")),
            ("that is a string", lambda _: "weight", Refused(TypeError, "must be True or False")),
            ("made of another tree", lambda _: {"other": True}, Refused(ValueError, "Invalid mask: it is")),
            ("that is one truth", True, "trains"),
        ]
    ],
]


# What a step is given.


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
    """Returns what puts leaves into a tree, in the place of those of their names."""
    return lambda tree: {**tree, **leaves}


def _without(name: str) -> Callable[[Tree], Tree]:
    return lambda tree: {key: leaf for key, leaf in tree.items() if key != name}


ANOTHER_TREE = Refused(ValueError, "The gradients are another tree than the parameters")
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
                ("with a leaf too much", _with(x=jnp.ones(1)), Refused(ValueError, "too much: ['x']")),
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
                    Refused(TypeError, "that of whole numbers"),
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
STATE = Refused(ValueError, "The state is not one of this optimizer for these parameters")


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


def _emotion_with(**fields: Any) -> Callable[[Tree], Tree]:
    """Returns what puts fields into the emotion in a state."""

    def change(state: Tree) -> Tree:
        return jax.tree.map(
            lambda node: node._replace(**fields) if isinstance(node, emo_optax.EmotionState) else node,
            state,
            is_leaf=lambda node: isinstance(node, emo_optax.EmotionState),
        )

    return change


def _leaves_of_shape(shape: tuple[int, ...], new: Any) -> Callable[[Tree], Tree]:
    """Returns what puts an array in the place of all of a shape in a state."""
    return lambda state: jax.tree.map(lambda leaf: new if jnp.shape(leaf) == shape else leaf, state)


def _of_another(name: str, **options: Any) -> Callable[[Tree], Tree]:
    return lambda _: emo_optax.create_optimizer(name, **options).init(_params())


def _as_dicts(state: Tree) -> Tree:
    """Returns a state with dicts for its tuples, as some checkpointers restore it."""
    if isinstance(state, tuple) and hasattr(state, "_asdict"):
        return {name: _as_dicts(field) for name, field in state._asdict().items()}
    if isinstance(state, tuple | list):
        return [_as_dicts(field) for field in state]
    return state


ADAPTED = (*BASIC, "emo_navi")  # Whose moments have the parameters' shapes.
STATES = [
    *[
        Case(f"a state {title}", {"state": change}, STATE, members)
        for title, change, members in [
            ("None", lambda _: None, EVERY),
            ("()", lambda _: (), EVERY),
            ("that is a word", lambda _: "state", EVERY),
            ("of adam", lambda _: optax.adam(1e-3).init(_params()), EVERY),
            ("of dicts", _as_dicts, EVERY),
            ("of plain arrays", emo_optax.to_arrays, EVERY),
            ("in a list", lambda state: [state], EVERY),
            ("that lost its last part", lambda state: type(state)(*state[:-1], ()), EVERY),
            ("of emo_cats", _of_another("emo_cats"), ("emo_sens", "emo_airy", "emo_clan", *REF)),
            ("of emo_sens", _of_another("emo_sens"), ("emo_airy", "emo_cats", "emo_neco", *REF)),
            ("of emo_airy", _of_another("emo_airy"), ("emo_sens", "emo_cats", "emo_clan", *REF)),
            ("of emo_clan", _of_another("emo_clan"), BASIC),
            ("of emo_neco", _of_another("emo_neco"), BASIC),
            ("of emo_zeal", _of_another("emo_zeal"), BASIC),
            ("of ref_adamw", _of_another(*REF), EMOTIONAL),
            ("with a shadow", _of_another("emo_sens", use_shadow=True), ("emo_sens",)),
            ("without a shadow", _of_another("emo_navi", use_shadow=False), ("emo_navi",)),
            ("with moments of one row", _leaves_of_shape((2, 3), jnp.zeros(3)), ("emo_sens", "emo_cats")),
            ("with moments of one number", _leaves_of_shape((3,), jnp.zeros(())), ADAPTED),
            ("with moments of shape (1,)", _leaves_of_shape((3,), jnp.zeros(1)), ADAPTED),
            ("with moments of more rows", _leaves_of_shape((3,), jnp.zeros((4, 3))), ADAPTED),
            ("with moments of another length", _leaves_of_shape((3,), jnp.zeros(4)), ADAPTED),
            ("with factors of another length", _leaves_of_shape((2, 1), jnp.zeros((5, 1))), ("emo_airy",)),
            ("with factors of one number", _leaves_of_shape((2, 1), jnp.zeros((1, 1))), ("emo_airy",)),
            ("with moments of whole numbers", _leaves_of_shape((3,), jnp.zeros(3, int)), ADAPTED),
            ("with moments of booleans", _leaves_of_shape((3,), jnp.zeros(3, bool)), ADAPTED),
            ("with moments None", _leaves_of_shape((3,), None), ADAPTED),
            ("with moments that are words", _leaves_of_shape((3,), "moment"), ADAPTED),
            ("with a history too short", _emotion_with(history=jnp.zeros(31)), EMOTIONAL),
            ("with a history too long", _emotion_with(history=jnp.zeros(33)), EMOTIONAL),
            ("with a history of one number", _emotion_with(history=jnp.zeros(())), EMOTIONAL),
            ("with a history of whole numbers", _emotion_with(history=jnp.zeros(32, int)), EMOTIONAL),
            ("with a count of floats", _emotion_with(felt=jnp.zeros(())), EMOTIONAL),
            ("with a count None", _emotion_with(felt=None), EMOTIONAL),
            ("with a count of shape (1,)", _emotion_with(held=jnp.zeros(1, int)), EMOTIONAL),
            ("with an average of whole numbers", _emotion_with(short=jnp.zeros((), int)), EMOTIONAL),
            ("with an average of shape (2,)", _emotion_with(long=jnp.zeros(2)), EMOTIONAL),
            ("with an average that is a word", _emotion_with(long="long"), EMOTIONAL),
            ("with a signal that is a number", _emotion_with(should_stop=jnp.zeros(())), EMOTIONAL),
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
            (
                "of another rule",
                _arrays_with(rule=np.frombuffer(b"sgd", np.uint8)),
                "its rule is 'sgd', not",
                EVERY,
            ),
            ("of nothing", lambda _: {}, "'version' or 'rule' is missing", EVERY),
            ("without a moment", _arrays_without("exp_avg/bias"), "'exp_avg/bias' is missing", ADAPTED),
            (
                "without an average",
                _arrays_without("emotion/short"),
                "'emotion/short' is missing",
                EMOTIONAL,
            ),
            ("without a history", _arrays_without("emotion/history"), "history' is missing", EMOTIONAL),
            ("with a moment too much", _arrays_with(exp_avg__x=np.ones(1)), "exp_avg/x", EVERY),
            ("with an emotion too much", _arrays_with(emotion__joy=np.ones(())), "emotion/joy", EVERY),
            (
                "with a moment of one number",
                _arrays_with(exp_avg__bias=np.ones(())),
                "the shape ()",
                ADAPTED,
            ),
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
            {"arrays": lambda _, name=name: emo_optax.to_arrays(_of_another(name)(None))},
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
    "gradients": GRADIENTS,
    "changed params": CHANGED_PARAMS,
    "states": STATES,
    "arrays": ARRAYS,
}


# What executes the data.

FACTORIES: dict[str, Callable[..., Any]] = {
    **{name: functools.partial(emo_optax.create_optimizer, name) for name in EVERY},
    "emotional": functools.partial(emo_optax.emotional, optax.sgd(0.1)),
    "early_stop": emo_optax.early_stop,
    "runaway": emo_optax.scale_by_runaway,
    "stochastic": emo_optax.round_stochastically,
}


def _params() -> Tree:
    return {
        "weight": jnp.asarray([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]]),
        "bias": jnp.asarray([0.1, 0.2, 0.3]),
    }


def _gradients() -> Tree:
    return {
        "weight": jnp.asarray([[0.1, 0.2, 0.3], [-0.4, 0.5, 0.6]]),
        "bias": jnp.asarray([1.0, -1.0, 0.5]),
    }


class Run(NamedTuple):
    """A member after two steps, and after a third one that nothing disturbed."""

    optimizer: Any
    step: Callable[..., Any]
    params: Tree
    state: Tree
    third: tuple[Tree, Tree]


@functools.cache
def _run(member: str, guarded: bool = False) -> Run:
    optimizer = FACTORIES[member](1e-2)
    if guarded:  # A branch, which would be compiled at every step outside of jit.
        optimizer = optax.apply_if_finite(optimizer, 5)
        optimizer = optimizer._replace(update=jax.jit(optimizer.update))
    step = jax.jit(optimizer.update)
    params = _params()
    state = optimizer.init(params)
    for loss in (1.0, 1.2):
        updates, state = step(_gradients(), state, params, value=loss)
        params = optax.apply_updates(params, updates)
    return Run(optimizer, step, params, state, step(_gradients(), state, params, value=1.4))


def _equal(tree: Tree, other: Tree) -> bool:
    """Returns whether two trees are equal to the last bit."""
    structure: Any = jax.tree.structure(tree)
    if structure != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(
        np.asarray(leaf).dtype == np.asarray(twin).dtype
        and np.asarray(leaf).tobytes() == np.asarray(twin).tobytes()
        for leaf, twin in pairs
    )


def _copied(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


class Ended(NamedTuple):
    """A step that was taken, for a behaviour to be looked at."""

    run: Run
    params: Tree
    updates: Tree
    state: Tree


def _is_finite(tree: Tree) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def _holds_the_loss(ended: Ended) -> bool:
    before = emo_optax.get_emotion(ended.run.state)
    after = emo_optax.get_emotion(ended.state)
    return (
        int(after.held) == int(before.held) + 1
        and (after.short, after.long, after.felt) == (before.short, before.long, before.felt)
        and bool(after.scalar == before.scalar)
        and _is_finite((ended.updates, ended.state))
    )


def _feels(loss: float) -> Callable[[Ended], bool]:
    def looks_so(ended: Ended) -> bool:
        _, expected = ended.run.optimizer.update(
            _gradients(), ended.run.state, ended.run.params, value=jnp.asarray(loss, jnp.float32)
        )
        return _equal(ended.state, expected)

    return looks_so


def _sits_the_loss_out(ended: Ended) -> bool:
    before = emo_optax.get_divergence(ended.run.state)
    after = emo_optax.get_divergence(ended.state)
    return int(after.held) == int(before.held) + 1 and _is_finite((ended.updates, ended.state))


def _spoils_its_own_leaf_alone(ended: Ended) -> bool:
    updates, state = ended.run.optimizer.update(_gradients(), ended.run.state, ended.run.params, value=1.4)
    return (
        _equal(ended.updates["weight"], updates["weight"])
        and _equal(emo_optax.get_emotion(ended.state), emo_optax.get_emotion(state))
        and not _is_finite(ended.state)
    )


def _sits_the_leaf_out(ended: Ended) -> bool:
    moments = emo_optax.to_arrays(ended.state)["exp_avg/bias"]
    before = emo_optax.to_arrays(ended.run.state)["exp_avg/bias"]
    return _equal(moments, before) and not np.any(ended.updates["bias"]) and _is_finite(ended.updates)


def _skips_the_step(ended: Ended) -> bool:
    return not any(map(np.any, jax.tree.leaves(ended.updates))) and _equal(
        ended.state.inner_state, ended.run.state.inner_state
    )


def _takes_a_step(ended: Ended) -> bool:
    shapes = jax.tree.map(
        lambda update, param: update.shape == jnp.shape(param), ended.updates, ended.params
    )
    counted = {True}
    if emo_optax.to_arrays(ended.state).get("emotion/felt") is not None:
        emotion = emo_optax.get_emotion(ended.state)
        counted = {bool(jnp.isfinite(emotion.scalar)), int(emotion.held) == 0}
    return jax.tree.all(shapes) and counted == {True}


def _trains(ended: Ended) -> bool:
    return _takes_a_step(ended) and _is_finite((ended.updates, ended.state))


BEHAVIOURS: dict[str, Callable[[Ended], bool]] = {
    # The averages, their count and the scalar are as before, one more is counted as held; all is finite.
    "holds the loss": _holds_the_loss,
    # As a scalar array of that value.
    "feels 2.5": _feels(2.5),
    "feels 3": _feels(3.0),
    # Counted as held; all is finite.
    "sits the loss out": _sits_the_loss_out,
    # The parameter's moments are no longer finite, as with optax.adam; all others, and the emotion, are
    # those of a step with a good gradient. The guard is `optax.apply_if_finite`.
    "spoils its own leaf alone": _spoils_its_own_leaf_alone,
    # Its parameter, moments and smoothed norm stay.
    "sits the leaf out": _sits_the_leaf_out,
    # Nothing changes but the guard's own count.
    "skips the step": _skips_the_step,
    # Updates have the parameters' shapes, and the emotion is finite.
    "takes a step": _takes_a_step,
    # The same, and all is finite.
    "trains": _trains,
}


def _make(case: Case, member: str) -> None:
    FACTORIES[member](**case.given)


def _by_name(case: Case, member: str) -> None:
    del member
    emo_optax.create_optimizer(case.given["name"])


def _wrap(case: Case, member: str) -> None:
    del member
    emo_optax.emotional(case.given["inner"]).init(_params())


def _begin(case: Case, member: str) -> Ended:
    """Makes a member, its state, and one step."""
    given = dict(case.given)
    params = given.pop("params")
    optimizer = FACTORIES[member](**given)
    state = optimizer.init(params)
    grads = jax.tree.map(lambda param: jnp.full(jnp.shape(param), 0.1), params)
    updates, after = optimizer.update(grads, state, params, value=1.0)
    return Ended(Run(optimizer, optimizer.update, params, state, ({}, {})), params, updates, after)


def _step(case: Case, member: str) -> Ended:
    """Takes one step with what the case gives in the place of what is good."""
    given = dict(case.given)
    run = _run(member, given.pop("guarded", False))
    params = given.pop("params", lambda tree: tree)(run.params)
    state = given.pop("state", lambda tree: tree)(run.state)
    grads = given.pop("grads", lambda tree: tree)(_gradients())
    updates, after = run.optimizer.update(grads, state, params, **{"value": 1.4, **given})
    return Ended(run, params, updates, after)


def _load(case: Case, member: str) -> None:
    run = _run(member)
    emo_optax.from_arrays(case.given["arrays"](emo_optax.to_arrays(run.state)), run.state)


RUNNERS: dict[str, Callable[[Case, str], Any]] = {
    "options": _make,
    "names": _by_name,
    "inner": _wrap,
    "params": _begin,
    "arrays": _load,
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
        if isinstance(case.end, str):
            assert BEHAVIOURS[case.end](execute(case, member)), member
            continue
        run = _run(member) if member in EVERY and execute in (_step, _load) else None
        before = None if run is None else _copied((run.params, run.state))
        with pytest.raises(case.end.error) as caught:
            execute(case, member)
        assert type(caught.value) is case.end.error, member
        assert case.end.message in str(caught.value), member
        if run is not None:
            assert _equal(before, _copied((run.params, run.state))), member
            third = run.step(_gradients(), run.state, run.params, value=1.4)
            assert _equal(third, run.third), member


def test_there_are_200_cases_at_least_and_no_two_of_one_name() -> None:
    names = [(kind, case.name) for kind, cases in KINDS.items() for case in cases]
    assert len(names) == len(set(names)) >= 200
    ends = {case.end for cases in KINDS.values() for case in cases}
    assert ends >= set(BEHAVIOURS)
    assert {member for cases in KINDS.values() for case in cases for member in case.members} >= set(EVERY)
