"""Damaged states and arrays, as data for `_fault_campaign_test.py`."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import Parameter

import emo_torch
from emo_shared.fault_case_test import BASIC, EMOTIONAL, EVERY, INF, NAN, REF, SWITCHING, Case, Refused
from emo_torch._fault_options_test import _params

# States that `load_state_dict` is given.


def _state_with(**values: Any) -> Callable[[dict[str, Any]], Any]:
    """Returns a function that puts values into the state of the second parameter, a vector of 3."""

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


def _saved_by(member: str) -> Refused:
    return Refused(ValueError, f"The state is another kind of optimizer's: {member} saved it")


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
NO_STATE = Refused(TypeError, "loads the result of its `state_dict()`")
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
            (
                "of emo_cats",
                _of_another("emo_cats"),
                _saved_by("EmoCats"),
                ("emo_sens", "emo_airy", "emo_clan", *REF),
            ),
            (
                "of emo_sens",
                _of_another("emo_sens"),
                _saved_by("EmoSens"),
                ("emo_airy", "emo_cats", "emo_neco", *REF),
            ),
            (
                "of emo_airy",
                _of_another("emo_airy"),
                _saved_by("EmoAiry"),
                ("emo_sens", "emo_cats", "emo_clan", *REF),
            ),
            ("of emo_clan", _of_another("emo_clan"), _saved_by("EmoClan"), BASIC),
            ("of ref_adamw", _of_another(*REF), _saved_by("RefAdamWMiniScheduleFree"), EMOTIONAL),
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
                Refused(ValueError, "a state cannot hold a function"),
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


def _to_arrays(optimizer: Any) -> dict[str, Any]:
    named = zip(("weight", "bias"), optimizer.param_groups[0]["params"], strict=True)
    return emo_torch.to_arrays(optimizer, list(named))
