"""Damaged states and arrays, as data for `_fault_campaign_test.py`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import emo_optax
from emo_optax._fault_losses_test import STATE
from emo_optax._fault_options_test import Tree, _params
from emo_shared.fault_case_test import BASIC, EMOTIONAL, EVERY, INF, NAN, REF, Case, Refused


def _emotion_with(**changes: Callable[[jax.Array], Any]) -> Callable[[Tree], Tree]:
    """Returns a function that changes arrays of the emotion in a state."""

    def changed(node: Any) -> Any:
        if not isinstance(node, emo_optax.EmotionState):
            return node
        return node._replace(**{name: change(getattr(node, name)) for name, change in changes.items()})

    def change_all(state: Tree) -> Tree:
        return jax.tree.map(changed, state, is_leaf=lambda node: isinstance(node, emo_optax.EmotionState))

    return change_all


def _other_length(more: int) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that makes an array longer, or shorter where `more` is below 0."""
    return lambda old: jnp.zeros(old.shape[0] + more, old.dtype)


def _leaves_of_shape(shape: tuple[int, ...], new: Any) -> Callable[[Tree], Tree]:
    """Returns a function that replaces all arrays of a shape in a state."""
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
            ("with numbers of a history too short", _emotion_with(numbers=_other_length(-1)), EMOTIONAL),
            ("with numbers of a history too long", _emotion_with(numbers=_other_length(1)), EMOTIONAL),
            ("with one number", _emotion_with(numbers=lambda _: jnp.zeros(())), EMOTIONAL),
            ("with numbers that are whole", _emotion_with(numbers=lambda old: old.astype(int)), EMOTIONAL),
            ("with numbers that are truths", _emotion_with(numbers=lambda old: old != 0), EMOTIONAL),
            ("with numbers of a row", _emotion_with(numbers=lambda old: old[None]), EMOTIONAL),
            ("with numbers that are a word", _emotion_with(numbers=lambda _: "long"), EMOTIONAL),
            ("with counts of floats", _emotion_with(counts=lambda _: jnp.zeros(3)), EMOTIONAL),
            ("with counts None", _emotion_with(counts=lambda _: None), EMOTIONAL),
            ("with counts of shape (1,)", _emotion_with(counts=_other_length(-2)), EMOTIONAL),
            ("with counts that are truths", _emotion_with(counts=lambda old: old != 0), EMOTIONAL),
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
            Refused(ValueError, "belong to another optimizer"),
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
