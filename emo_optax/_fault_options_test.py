"""Wrong options, names, inner optimizers and parameters, as data for `_fault_campaign_test.py`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import emo_optax
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

Tree = Any


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
    """Returns the cases of an option that is a number: out of its range, or of another type."""
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
        Refused(ValueError, "do not pass it with weight_decay_mode='l2'"),
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
            ("of another tree", {"other": True}, Refused(ValueError, "Invalid mask: it has another tree")),
            ("with too much", {"weight": True, "x": True}, Refused(ValueError, "Invalid mask: it has")),
            ("of a list", [True], Refused(ValueError, "Invalid mask: it has another tree")),
            ("too deep", {"weight": {"x": True}}, Refused(ValueError, "Invalid mask: it has another tree")),
            ("of numbers", lambda _: {"weight": 1.0}, Refused(TypeError, "Invalid mask: mask['weight']")),
            ("that is a string", lambda _: "weight", Refused(TypeError, "must be True or False")),
            (
                "made of another tree",
                lambda _: {"other": True},
                Refused(ValueError, "Invalid mask: it has"),
            ),
            ("that is one truth", True, "trains"),
        ]
    ],
]


def _params() -> Tree:
    return {
        "weight": jnp.asarray([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]]),
        "bias": jnp.asarray([0.1, 0.2, 0.3]),
    }
