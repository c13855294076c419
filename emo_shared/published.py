"""States of the published optimizers, read into the named arrays that both packages exchange.

The published files are the work of muooon: EmoNavi, EmoFact and EmoLynx v2.0 and v3.6.1, EmoSens, EmoAiry
and EmoCats v2.0, and the five of v3.9.1. The classes EmoNavi, EmoFact and EmoLynx of pytorch_optimizer are
read, too.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from emo_shared.arrays import Arrays, in_dtype
from emo_shared.published_form import (
    Kind,
    averages_of,
    check_form,
    check_taker,
    flag_of,
    number_of,
    own_state,
)

WINDOW = 32
"""The number of scalars that the stop signal of the first two generations reads."""


_ADAM = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
_LION = {"exp_avg": "exp_avg"}
_FACTORS = {**_ADAM, "exp_avg_r": "row", "exp_avg_c": "column"}
_OF_SQUARES = ("exp_avg_sq", "exp_avg_r", "exp_avg_c")
"""The published names of averages that are never negative."""
# These members step by the sign of the gradient. The states of pytorch_optimizer have `exp_avg`, too.
_UNUSED = dict.fromkeys(_FACTORS, "")

KINDS: dict[str, Kind] = {
    "emo_navi": Kind("EmoNavi v2.0", "v2.0", _ADAM, "uncorrected_adam"),
    "emo_fact": Kind("EmoFact v2.0", "v2.0", _FACTORS, "factored_moments"),
    "emo_lynx": Kind("EmoLynx v2.0", "v2.0", _LION, "lion"),
    "emo_sens": Kind("EmoSens v2.0", "v2.0", _ADAM, "uncorrected_adam"),
    "emo_airy": Kind("EmoAiry v2.0", "v2.0", _FACTORS, "factored_moments"),
    "emo_cats": Kind("EmoCats v2.0", "v2.0", _LION, "lion"),
    "emo_navi36": Kind("EmoNavi v3.6.1", "v3.6.1", _ADAM, "uncorrected_adam"),
    "emo_fact36": Kind("EmoFact v3.6.1", "v3.6.1", _UNUSED, "sign"),
    "emo_lynx36": Kind("EmoLynx v3.6.1", "v3.6.1", _LION, "lion"),
    "emo_sens3": Kind("EmoSens v3.9.1", "v3.9.1", _ADAM, "uncorrected_adam"),
    "emo_airy3": Kind("EmoAiry v3.9.1", "v3.9.1", _UNUSED, "sign"),
    "emo_cats3": Kind("EmoCats v3.9.1", "v3.9.1", _LION, "lion"),
    "emo_tion": Kind("EmoTion v3.9.1", "v3.9.1", _LION, "fresh_sign"),
    "emo_void": Kind("EmoVoid v3.9.1", "v3.9.1", {}, "sign_under_a_norm"),
}
"""The published optimizer of each member, by the names of the registries."""


class Published(NamedTuple):
    """The contents of a published state.

    Attributes:
        arrays: the named arrays, as `to_arrays` of either package returns them.
        options: for each parameter group, its options in the file, by the names of PyTorch.
        notes: the parts that could not be carried over, one sentence each.
    """

    arrays: Arrays
    options: list[dict[str, Any]]
    notes: tuple[str, ...]


def read_published(
    state_dict: Mapping[Any, Any],
    member: str,
    expected: Arrays,
    names: Sequence[str],
    params: Mapping[str, np.ndarray[Any, Any]],
    *,
    is_whole: bool = True,
) -> Published:
    """Reads the `state_dict()` of a published optimizer.

    Args:
        state_dict: the result of the published `state_dict()`, with NumPy arrays in the place of tensors.
        member: the name of the member that takes the state, as in the registries.
        expected: the arrays of a fresh state of this member.
        names: the names of all parameters, in the order of the published optimizer.
        params: the parameters by name: a shadow that the file lacks starts as a copy of its parameter.
        is_whole: whether the member sums the norms over the parameters of the first group only.

    Raises:
        TypeError: for anything but a mapping.
        ValueError: for a state of another optimizer or version, and for a missing or damaged part.
    """
    if member not in KINDS:
        raise ValueError(f"{member} cannot load a published state. These members can: {', '.join(KINDS)}")
    kind = KINDS[member]
    check_taker(expected, member, kind)
    state, groups = check_form(state_dict, kind, names)
    notes: list[str] = []
    arrays = dict(expected)
    per_param = {name: own_state(state, index, kind) for index, name in enumerate(names)}
    if kind.version == "v2.0":
        memory = _emotion_v2(state, per_param, notes)
    elif kind.version == "v3.6.1":
        memory = _drive(state, notes)
    else:
        memory = _pulse(state_dict["emo_internal"], averages_of(state["ema"], "state['ema']"), notes)
        memory |= _norm(state_dict["emo_internal"], member, is_whole and len(groups) == 1, notes)
    for name, value in memory.items():
        if name in expected:
            arrays[name] = np.asarray(value, expected[name].dtype)
    _put_moments(arrays, per_param, kind, notes)
    _put_shadows(arrays, per_param, params, kind, notes)
    return Published(arrays, [_options(group, kind, state_dict, notes) for group in groups], tuple(notes))


def _emotion_v2(
    state: Mapping[Any, Any], per_param: Mapping[str, Mapping[str, Any]], notes: list[str]
) -> dict[str, Any]:
    """Returns the one emotion of the optimizer, from the emotions that v2.0 has for each parameter."""
    found = {
        name: averages_of(own["ema"], f"the 'ema' of {name!r}", ("short", "long"))
        for name, own in per_param.items()
        if "ema" in own
    }
    pairs = Counter((ema["short"], ema["long"]) for ema in found.values())
    if not pairs:
        raise ValueError("The state is damaged: no parameter of this optimizer has an 'ema' in it")
    (short, long), _ = pairs.most_common(1)[0]
    others = [name for name, ema in found.items() if (ema["short"], ema["long"]) != (short, long)]
    if others:
        notes.append(
            "The published file has an emotion for every parameter, and they differ. There is one here: "
            f"the emotion of most parameters. The emotions of {', '.join(others)} are left out."
        )
    scalar = math.tanh(5.0 * (short - long))
    # The published window has an entry for every parameter and step.
    window = _window(state.get("scalar_hist", ()))
    per_step = len(found)
    steps = [window[-1 - per_step * back] for back in range(len(window) // per_step)][::-1]
    if per_step > 1 or len(steps) == 0:
        notes.append(
            f"The published window of the stop signal has an entry for each of {per_step} parameters and "
            f"each step. It holds {len(steps)} whole steps: the signal waits until there are {WINDOW}."
        )
    return {"emotion/short": short, "emotion/long": long, **_history(steps or [scalar], scalar)}


def _drive(state: Mapping[Any, Any], notes: list[str]) -> dict[str, Any]:
    """Returns the emotion of v3.6.1."""
    averages = averages_of(state["ema"], "state['ema']")
    scalar = _relative(averages)
    if "scalar_hist" not in state:
        notes.append(
            f"The state has no window of scalars: the stop signal waits until there are {WINDOW} steps."
        )
    window = _window(state.get("scalar_hist", ())) or [scalar]
    return {**{f"emotion/{name}": value for name, value in averages.items()}, **_history(window, scalar)}


def _relative(averages: Mapping[str, float]) -> float:
    return math.tanh((averages["long"] - averages["short"]) / max(averages["long"], 1e-5))


def _window(history: Any) -> list[float]:
    if not isinstance(history, Sequence | np.ndarray | deque) or isinstance(history, str | bytes):
        raise ValueError(f"The state is damaged: 'scalar_hist' is {history!r}, where a list is needed")
    window = [number_of(each, "'scalar_hist'") for each in history]
    if any(abs(each) > 1.0 for each in window):
        raise ValueError("The state is damaged: 'scalar_hist' has numbers outside of [-1, 1]")
    return window[-WINDOW:]


def _history(window: Sequence[float], scalar: float) -> dict[str, Any]:
    """Returns the counts and the stop signal for a window of scalars; the file does not have them."""
    full = np.zeros(WINDOW)
    full[WINDOW - len(window) :] = window
    is_quiet = len(window) == WINDOW and np.abs(full).mean() < 0.05 and full.var() < 0.005
    return {
        "emotion/felt": len(window),
        "emotion/scalar": scalar,
        "emotion/history": full,
        "emotion/should_stop": bool(is_quiet),
    }


def _pulse(internal: Any, averages: dict[str, float], notes: list[str]) -> dict[str, Any]:
    """Returns the pulse of the third generation."""
    needed = ("emoScope", "dNR_hist", "noise_est", "d_est", "should_stop")
    if not isinstance(internal, Mapping) or any(name not in internal for name in needed):
        raise ValueError(f"The state is damaged: 'emo_internal' must have {', '.join(needed)}")
    if "c_est" not in internal:
        notes.append(
            "The state has no 'c_est': it is older than v3.9.1, whose rule goes on with 'c_est' at 0."
        )
    numbers = {
        name: number_of(internal.get(key, 0.0), f"emo_internal[{key!r}]")
        for name, key in (
            ("level", "dNR_hist"),
            ("noise", "noise_est"),
            ("distance", "d_est"),
            ("course", "c_est"),
        )
    }
    scope = number_of(internal["emoScope"], "emo_internal['emoScope']")
    pulse = numbers["level"] * scope * max(100.0 ** min(numbers["course"], 100.0), 0.01) * 1e-4
    numbers |= {**averages, "scalar": _relative(averages), "pulse": max(min(pulse, 3e-3 * scope), 1e-8)}
    memory: dict[str, Any] = {f"pulse/{name}": value for name, value in numbers.items()}
    return {
        **memory,
        "pulse/felt": 1,
        "pulse/should_stop": flag_of(internal["should_stop"], "'should_stop'"),
    }


def _norm(internal: Mapping[str, Any], member: str, is_same_sum: bool, notes: list[str]) -> dict[str, Any]:
    """Returns the kept sum of norms of EmoTion and EmoVoid."""
    if member not in ("emo_tion", "emo_void"):
        return {}
    kept = internal.get("prev_gl1")
    memory: dict[str, Any] = {}
    if kept is not None and is_same_sum:
        memory["norm/kept"] = number_of(kept, "emo_internal['prev_gl1']")
    elif kept is not None:
        notes.append(
            "The published sum of norms ('prev_gl1') is over the first parameter group, frozen parameters "
            "included. Here it is over all parameters that need a gradient, and starts at its first value."
        )
    if member == "emo_void":
        memory["norm/counter"] = min(int(number_of(internal.get("_step_count", 0), "'_step_count'")), 56)
        memory["norm/was_quiet"] = flag_of(internal["should_stop"], "'should_stop'")
    return memory


def _put_moments(
    arrays: Arrays, per_param: Mapping[str, Mapping[str, Any]], kind: Kind, notes: list[str]
) -> None:
    """Puts the moments of all parameters into the arrays."""
    for name, own in per_param.items():
        if not own:
            continue
        for theirs, ours in kind.moments.items():
            target = f"{ours}/{name}"
            if not ours or target not in arrays:
                continue
            if theirs not in own:
                raise ValueError(f"The state is damaged: the parameter {name!r} has no {theirs!r} in it")
            arrays[target] = _like(
                own[theirs], arrays[target], f"{theirs!r} of {name!r}", is_of_squares=theirs in _OF_SQUARES
            )
    blank = [name for name, own in per_param.items() if not own]
    if blank and any(value for value in kind.moments.values()):
        notes.append(
            f"The state has nothing for {', '.join(blank)}: these parameters start with a new state."
        )


def _put_shadows(
    arrays: Arrays,
    per_param: Mapping[str, Mapping[str, Any]],
    params: Mapping[str, np.ndarray[Any, Any]],
    kind: Kind,
    notes: list[str],
) -> None:
    """Puts the shadows of all parameters into the arrays."""
    has_shadow = {name: "shadow" in own for name, own in per_param.items()}
    targets = [name for name in per_param if f"shadow/{name}" in arrays]
    if any(has_shadow.values()) and len(targets) < sum(has_shadow.values()):
        notes.append(
            "The state has shadows, and this optimizer is made without `use_shadow=True`: left out."
        )
    if not targets:
        return
    if not any(has_shadow.values()):
        if kind.version != "v2.0":
            notes.append("The state has no shadows: they become copies of the parameters at the next step.")
        return
    arrays["emotion/shadow_exists"] = np.asarray(True)
    for name in targets:
        array, target = arrays[f"shadow/{name}"], f"'shadow' of {name!r}"
        arrays[f"shadow/{name}"] = (
            _like(per_param[name]["shadow"], array, target)
            if has_shadow[name]
            else np.asarray(params[name], array.dtype)
        )


def _like(
    value: Any, array: np.ndarray[Any, Any], name: str, *, is_of_squares: bool = False
) -> np.ndarray[Any, Any]:
    """Returns an array of the file in the dtype of another one of the same shape."""
    given = np.asarray(value)
    if given.shape != array.shape:
        raise ValueError(
            f"The state has other shapes: {name} is {given.shape}, and {array.shape} is needed"
        )
    if given.dtype.kind == "V" and given.dtype.name.startswith(("bfloat", "float")):
        given = given.astype(np.float32)  # NumPy alone does not have these dtypes.
    if given.dtype.kind != "f":
        raise ValueError(f"The state is damaged: {name} is of {given.dtype}, not of floating-point numbers")
    if not np.isfinite(given).all() or (is_of_squares and (given < 0.0).any()):
        wrong = "negative numbers" if np.isfinite(given).all() else "numbers that are not finite"
        raise ValueError(f"The state is damaged: {name} has {wrong}")
    return in_dtype(given, array.dtype, name)


def _options(
    group: Mapping[str, Any], kind: Kind, state_dict: Mapping[Any, Any], notes: list[str]
) -> dict[str, Any]:
    """Returns the options of a group of the file that mean the same here, by PyTorch's names."""
    options = {name: group[name] for name in ("lr", "eps", "weight_decay") if name in group}
    if "betas" in group:
        betas = group["betas"]
        if not isinstance(betas, list | tuple) or len(betas) != 2:
            raise ValueError(
                f"The state is damaged: 'betas' is {betas!r}, where a pair of numbers is needed"
            )
        options["betas"] = tuple(number_of(beta, "'betas'") for beta in betas)
    if kind.version == "v3.9.1":
        internal = state_dict["emo_internal"]
        options["lr"] = number_of(internal["emoScope"], "'emoScope'")  # The group has the last pulse there.
        if "stopcoef" in internal:
            options["stopcoef"] = number_of(internal["stopcoef"], "'stopcoef'")
        if kind.title.startswith(("EmoTion", "EmoVoid")):
            options.pop("weight_decay", None)  # Without effect in the published code.
    if "weight_decouple" in group:
        _note_library(group, kind, len(state_dict["param_groups"]), notes)
        options["weight_decay_mode"] = "decoupled" if group["weight_decouple"] else "l2"
        if group.get("fixed_decay") and group["weight_decouple"]:
            options["weight_decay_mode"] = "absolute"
    return options


def _note_library(group: Mapping[str, Any], kind: Kind, groups: int, notes: list[str]) -> None:
    """Notes how the class of this name in pytorch_optimizer differs from the rule here."""
    found = []
    if kind.title.startswith("EmoFact") and kind.version == "v3.6.1":
        found.append(
            "steps parameters of 0 or 1 dimensions by the sign of a momentum, and not of the gradient"
        )
    if group.get("use_shadow"):
        found.append("decays before the shadow pulls, and moves the shadow when it pulls (`shadow_weight`)")
    if groups > 1:
        found.append("moves the averages once for every parameter group; here it is once a step")
    known = {note for note in notes if note.startswith("pytorch_optimizer")}
    notes.extend(note for note in (f"pytorch_optimizer {each}." for each in found) if note not in known)
