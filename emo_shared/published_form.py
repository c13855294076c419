"""The form of the states of published optimizers: their versions, and parts that are missing or damaged."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from emo_shared.arrays import Arrays


class Kind(NamedTuple):
    """The published optimizer whose state a member can take.

    Attributes:
        title: the published name and version.
        version: "v2.0", "v3.6.1" or "v3.9.1".
        moments: from the published names of a parameter's state to the names here; "" for a part that the
            member here does not keep.
        rule: the name of the member's rule in the arrays.
    """

    title: str
    version: str
    moments: Mapping[str, str]
    rule: str


def check_form(
    state_dict: Mapping[Any, Any], kind: Kind, names: Sequence[str]
) -> tuple[Mapping[Any, Any], list[Mapping[str, Any]]]:
    """Returns the state and the groups of a state; raises an error for a state of another version."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"The state_dict() of a published optimizer is needed, and this is {state_dict!r}")
    state, groups = state_dict.get("state"), state_dict.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, Sequence) or not groups:
        raise ValueError("This is not a state_dict() of an optimizer: 'state' or 'param_groups' is missing")
    found = _version(state_dict, state)
    if found != kind.version:
        raise ValueError(f"{_VERSION_MESSAGES[found]} This optimizer takes the state of {kind.title}.")
    lists: list[Any] = [group.get("params") if isinstance(group, Mapping) else None for group in groups]
    if any(not isinstance(each, list | tuple) for each in lists):
        raise ValueError("The state is damaged: each of its 'param_groups' must have a list of 'params'")
    count = sum(map(len, lists))
    if count != len(names):
        raise ValueError(f"The state has {count} parameters, and this optimizer has {len(names)}")
    beyond = [key for key in state if isinstance(key, int) and not 0 <= key < count]
    if beyond:
        raise ValueError(f"The state is damaged: no group has the parameters {beyond}")
    return state, list(groups)


_VERSION_MESSAGES = {
    "v2.0": "The state is one of v2.0: every parameter has its own 'ema'. Take EmoNavi, EmoFact, EmoLynx, "
    "EmoSens, EmoAiry or EmoCats.",
    "v3.1": "The state is one of v3.0 to v3.3, whose rules are not here: 'ema' has no 'medium'.",
    "v3.6.1": "The state has three averages and no 'emo_internal': it is one of v3.6.1, of "
    "pytorch_optimizer from 3.10 on (take EmoNavi36, EmoFact36 or EmoLynx36), or of EmoSens v3.7, whose "
    "rule is not here.",
    "v3.9.1": "The state is one of the third generation: it has 'emo_internal'. Take EmoSens3, EmoAiry3, "
    "EmoCats3, EmoTion or EmoVoid.",
    "none": "The state is no state of a published Emo optimizer after a step: there is no 'ema' in it.",
}


def _version(state_dict: Mapping[Any, Any], state: Mapping[Any, Any]) -> str:
    """Returns the version whose keys a state has."""
    if "ema" in state and "emo_internal" in state_dict:
        return "v3.9.1"
    if "ema" in state:
        return "v3.6.1" if "medium" in state["ema"] else "v3.1"
    own = [value for value in state.values() if isinstance(value, Mapping) and "ema" in value]
    return "v2.0" if own else "none"


def own_state(state: Mapping[Any, Any], index: int, kind: Kind) -> Mapping[str, Any]:
    """Returns the state of a parameter; an empty state if the parameter has none."""
    own: Mapping[str, Any] = state.get(index, {})
    if not isinstance(own, Mapping):
        raise ValueError(
            f"The state is damaged: the state of parameter {index} is {own!r}, where a mapping is needed"
        )
    known = {*kind.moments, "shadow", "ema"}
    extra = sorted(str(key) for key in own if key not in known)
    if extra:
        raise ValueError(f"The state is another optimizer's: {kind.title} has no {', '.join(extra)}")
    return own


def number_of(value: Any, name: str) -> float:
    """Returns a finite number of the file."""
    number = math.nan
    if np.size(value) == 1 and not isinstance(value, str | bytes):
        with contextlib.suppress(TypeError, ValueError):
            number = float(np.asarray(value, np.float64).reshape(-1)[0])
    if not math.isfinite(number):
        raise ValueError(f"The state is damaged: {name} is {value!r}, where a finite number is needed")
    return number


def averages_of(
    ema: Any, name: str, needed: Sequence[str] = ("short", "medium", "long")
) -> dict[str, float]:
    """Returns averages of the loss of the file, by their names."""
    if not isinstance(ema, Mapping) or any(each not in ema for each in needed):
        raise ValueError(
            f"The state is damaged: {name} must be a mapping with {', '.join(needed)}, and is {ema!r}"
        )
    return {each: number_of(ema[each], f"{name}[{each!r}]") for each in needed}


def flag_of(value: Any, name: str) -> bool:
    """Returns a truth of the file."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"The state is damaged: {name} is {value!r}, where True or False is needed")
    return bool(array.reshape(()))


def check_taker(expected: Arrays, member: str, kind: Kind) -> None:
    """Raises a `ValueError` unless the arrays of a state are the arrays of the member that is named."""
    marks = {"v2.0": "emotion/felt", "v3.6.1": "emotion/medium", "v3.9.1": "pulse/felt"}
    has = [version for version, mark in marks.items() if mark in expected]
    rule = bytes(np.asarray(expected["rule"])).decode()
    if rule != kind.rule or has[-1:] != [kind.version]:
        raise ValueError(
            f"The new state is not a state of {member}: make the optimizer {member}, and load into its new "
            "state"
        )


def check_steps(steps: Any) -> None:
    """Raises an error unless the number of steps of a published run is a whole number >= 0."""
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
        raise TypeError(f"Invalid steps: {steps!r}; it must be a whole number")
    if not 0 <= steps < 2**31:
        raise ValueError(f"Invalid steps: {steps}; it must be >= 0 and below 2**31")


def check_new(arrays: Arrays) -> None:
    """Raises a `ValueError` for the arrays of an optimizer that has taken steps."""
    counts = ("emotion/felt", "emotion/held", "pulse/felt", "pulse/held")
    if any(int(arrays[name]) for name in counts if name in arrays):
        raise ValueError(
            "This optimizer has taken steps or loaded a state, and parts of its state would remain. "
            "Load the published state into a new optimizer, before its first step"
        )
