"""The bridge to `emo_optax`: an optimizer's state as plain named arrays, in files and back."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emo_shared.arrays import ARRAYS_VERSION, Arrays, check_arrays
from emo_torch._rules.moments import decoded, store_in
from emo_torch._step.loss_optimizer import LossOptimizer

_BESIDE = ("shadow", "compensation", "average")
"""Names in the state of a parameter that are not moments."""


def to_arrays(optimizer: LossOptimizer, named_params: Iterable[tuple[str, Tensor]]) -> Arrays:
    """Returns the state of a member of the family as named NumPy arrays that `emo_optax` reads, too.

    A parameter's moments are named after it, as in `exp_avg/layers.0.weight`. Narrow floats come out
    as float32, which NumPy has everywhere.

    Members with the same rule have the same state, and can exchange it: `EmoNavi` with `EmoSens`,
    `EmoFact` with `EmoAiry`, and `EmoLynx` with `EmoCats`.

    Args:
        optimizer: the optimizer.
        named_params: the names of its parameters, such as `model.named_parameters()`.

    Returns:
        The arrays: `version`, `rule`, `emotion/...` (or `pilot/...`, `divergence/...`), and `exp_avg/...`,
        `exp_avg_sq/...`, `exp_avg_norm/...`, `row/...`, `column/...`, `step/...`, `shadow/...`,
        `average/...`, `compensation/...` for each parameter that has them.

    Raises:
        ValueError: for an `Emotional`, whose inner optimizer has another kind of state; in eval mode;
            for a parameter without a name, for a name that two parameters have, for shadows that were not
            all made, and for groups of EmoPilot whose largest learning rates so far have another ratio than
            their learning rates.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = emo_torch.EmoCats(model.parameters())
        >>> arrays = emo_torch.to_arrays(optimizer, model.named_parameters())
        >>> print(arrays["exp_avg/weight"], arrays["emotion/felt"])
        [[0. 0.]] 0
    """
    _check_peaks(optimizer)
    return _arrays_of(optimizer, list(named_params))


def _arrays_of(optimizer: LossOptimizer, named: list[tuple[str, Tensor]]) -> Arrays:
    arrays: Arrays = {
        "version": np.asarray(ARRAYS_VERSION, np.int32),
        "rule": np.frombuffer(optimizer.rule.encode(), np.uint8),
    }
    if not all(group.get("train_mode", True) for group in optimizer.param_groups):
        raise ValueError(
            "The parameters hold the averaged weights, because `optimizer.eval()` was called: call "
            "`optimizer.train()` first"
        )
    for name, tensor in optimizer.named_memory().items():
        arrays[name] = _to_array(tensor)
    peak = optimizer.param_groups[0].get("peak_lr")
    if peak is not None:
        arrays["pilot/peak"] = np.asarray(float(peak), arrays["pilot/norm"].dtype)
    if not any(group.get("use_shadow") for group in optimizer.param_groups):
        arrays.pop("emotion/shadow_exists", None)
        arrays.pop("emotion/shadow_ratio", None)
    divisor = optimizer.param_groups[0].get("weight_decay_divisor")
    if divisor is not None:
        arrays["weight_decay_divisor"] = np.asarray(divisor, arrays["emotion/scalar"].dtype)
    by_name = dict(named)
    for name, state in _named_states(optimizer, named).items():
        for key in (*optimizer.moment_names(by_name[name]), *_BESIDE):
            if key in state:
                arrays[f"{key}/{name}"] = _to_array(decoded(key, state))
        made = state.get("shadow_exists")
        if made is not None and bool(made) != bool(arrays["emotion/shadow_exists"]):
            raise ValueError(
                f"The shadow of {name!r} was created at another step than the other shadows. emo_optax has "
                "one flag for all shadows and cannot hold this state"
            )
    return arrays


def from_arrays(
    arrays: Mapping[str, np.ndarray[Any, Any]],
    optimizer: LossOptimizer,
    named_params: Iterable[tuple[str, Tensor]],
) -> None:
    """Loads named arrays into an optimizer.

    Members with the same rule have the same state, and can exchange it: `EmoNavi` with `EmoSens`,
    `EmoFact` with `EmoAiry`, and `EmoLynx` with `EmoCats`.

    Args:
        arrays: the result of `to_arrays`, of this package or of `emo_optax`.
        optimizer: an optimizer of the same rule, over the same parameters.
        named_params: the names of its parameters, such as `model.named_parameters()`.

    Raises:
        TypeError: for anything but a dictionary of arrays.
        ValueError: for an unknown version, another rule, and arrays that are missing, too many,
            of another shape, of another kind (such as whole numbers for floats), or damaged, each by its
            name; for optimizers that `to_arrays` refuses; all before anything is changed.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = emo_torch.EmoCats(model.parameters())
        >>> arrays = emo_torch.to_arrays(optimizer, model.named_parameters())
        >>> arrays["exp_avg/weight"] = arrays["exp_avg/weight"] + 1.0
        >>> emo_torch.from_arrays(arrays, optimizer, model.named_parameters())
        >>> print(optimizer.state[model.weight]["exp_avg"])
        tensor([[1., 1.]])
    """
    named = list(named_params)
    check_arrays(arrays, _arrays_of(optimizer, named))
    states = _named_states(optimizer, named)
    for name, tensor in optimizer.named_memory().items():
        if name in arrays:
            _put(tensor, arrays[name])
    if "weight_decay_divisor" in arrays:
        for group in optimizer.param_groups:
            group["weight_decay_divisor"] = float(arrays["weight_decay_divisor"])
    if "pilot/peak" in arrays:
        peaks = _peaks_of(optimizer, float(arrays["pilot/peak"]))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["peak_lr"] = peak
    by_name = dict(named)
    for name, state in states.items():
        for key in (*optimizer.moment_names(by_name[name]), *_BESIDE):
            if key in state:
                moment = decoded(key, state)
                _put(moment, arrays[f"{key}/{name}"])
                if moment is not state[key]:
                    store_in(key, moment, state)
        if "shadow_exists" in state:
            _put(state["shadow_exists"], arrays["emotion/shadow_exists"])
        optimizer.state[by_name[name]].update(state)


def _peaks_of(optimizer: LossOptimizer, first: float) -> list[float]:
    """Returns the largest learning rate so far of each group, in proportion to the learning rates."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    return [first if rates[0] in (rate, 0.0) else first * rate / rates[0] for rate in rates]


def _check_peaks(optimizer: LossOptimizer) -> None:
    """Raises a `ValueError` for groups of which the arrays cannot hold the largest learning rate so far."""
    peaks = [group["peak_lr"] for group in optimizer.param_groups if group.get("peak_lr") is not None]
    if not peaks:
        return
    for index, (peak, kept) in enumerate(zip(peaks, _peaks_of(optimizer, peaks[0]), strict=True)):
        if not math.isclose(peak, kept, rel_tol=1e-5):
            raise ValueError(
                f"Group {index} had a learning rate of up to {peak:g}. The arrays hold only the largest "
                f"learning rate of the first group, {peaks[0]:g}; in proportion to the learning rates now, "
                f"this group would have {kept:g}. Between optimizers of PyTorch use `state_dict()`"
            )


def _to_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu()
    is_narrow = tensor.is_floating_point() and tensor.element_size() < 4
    array: np.ndarray[Any, Any] = (tensor.float() if is_narrow else tensor.clone()).numpy()
    return array


def _put(tensor: Tensor, array: np.ndarray[Any, Any]) -> None:
    with torch.no_grad():
        # Through a dtype that torch reads from NumPy, for bfloat16, too.
        is_float, is_bool = tensor.is_floating_point(), tensor.dtype == torch.bool
        wide = np.float64 if is_float else np.bool_ if is_bool else np.int64
        tensor.copy_(torch.tensor(np.asarray(array, wide), device="cpu"))


def _named_states(
    optimizer: LossOptimizer, named_params: Iterable[tuple[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Returns each parameter's state by its name; a missing state is newly made."""
    names: dict[Tensor, str] = {}
    owners: dict[str, Tensor] = {}
    for name, param in named_params:
        if owners.setdefault(name, param) is not param:
            raise ValueError(f"Two parameters have the name {name!r} in named_params")
        names[param] = name
    states = {}
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param not in names:
                raise ValueError(
                    f"A parameter of the shape {tuple(param.shape)} has no name in named_params"
                )
            states[names[param]] = optimizer.full_state(param, group)
    return states
