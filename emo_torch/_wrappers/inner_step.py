"""Two ways to scale the step of an inner optimizer: by its learning rate, or by moving back afterwards."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emo_torch._kernels.find import PLAIN
from emo_torch._kernels.least import which_are_below
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.shadow_effect import Keep, keep_elements, keeps_all, step_scale
from emo_torch._pieces.shadow_system import blend_with_shadow, multi_tensor_blend_with_shadow
from emo_torch._rules.recipe import Group, State
from emo_torch._sharded import copy_all, local_part
from emo_torch._step.ways import by_device_and_dtype

_is_cpu, _dtype = attrgetter("is_cpu"), attrgetter("dtype")


def scale_change(
    params: list[Tensor],
    befores: list[Tensor],
    scale: Tensor,
    *,
    kept: list[Tensor] | None = None,
    foreach: bool = False,
) -> None:
    """Moves parameters to a point between their old and their new values, in place, without a sync.

    Args:
        params: the parameters after the step, any shapes, changed in place.
        befores: the parameters before the step.
        scale: the factor of the step, shape `[]`: 1 keeps the new values to the last bit, 0 restores the
            old.
        kept: the elements that may move, as booleans in the parameters' shapes; `None` for all.
        foreach: whether to move all tensors of one device and dtype at once.
    """
    for indices in by_device_and_dtype(params).values():
        narrow = [params[index] for index in indices]
        dtype = wide_dtype(narrow[0])
        part = scale.to(device=narrow[0].device, dtype=dtype)
        starts = [befores[index].to(dtype) for index in indices]
        ends = [param.to(dtype) for param in narrow]
        if foreach:
            moved = list(torch._foreach_lerp(starts, ends, [part] * len(starts)))
        else:
            moved = [start.lerp(end, part) for start, end in zip(starts, ends, strict=True)]
        if kept is not None:
            masks = [kept[index] for index in indices]
            moved = [
                torch.where(mask, there, start)
                for mask, there, start in zip(masks, moved, starts, strict=True)
            ]
        copy_all(narrow, moved)


@contextmanager
def scaled_rate(groups: list[Group], scalar: Tensor) -> Iterator[None]:
    """Multiplies the learning rates of groups by 1 - |s|, for as long as it lasts.

    At the end, also after an exception, every group has the same object as its learning rate as before.

    Args:
        groups: parameter groups with an `"lr"`, a number or a tensor of one element.
        scalar: the emotion scalar s, shape `[]`. If a rate is a number or on another device, the step waits
            for it.
    """
    saved = [group["lr"] for group in groups]
    factor: float | None = None
    try:
        for group, lr in zip(groups, saved, strict=True):
            if isinstance(lr, Tensor) and lr.device == scalar.device:
                group["lr"] = (lr * step_scale(scalar)).to(lr.dtype)
                continue
            factor = _step_scale_of(scalar) if factor is None else factor
            if isinstance(lr, Tensor):
                group["lr"] = (lr * factor).to(lr.dtype)
            elif factor != 1.0:
                group["lr"] = lr * factor
        yield
    finally:
        for group, lr in zip(groups, saved, strict=True):
            group["lr"] = lr


class Resting(NamedTuple):
    """Elements of a tensor that a step must leave alone.

    Attributes:
        owner: the parameter, or the tensor of its state.
        places: the positions of these elements, as an index of each axis.
        values: the values of the elements, shape `[count]`.
    """

    owner: Tensor
    places: tuple[Tensor, ...]
    values: Tensor


def find_resting(params: list[Tensor], keep: Keep, theta: float, scalar: Tensor) -> list[Resting]:
    """Returns the elements of parameters that the filter stops, in one pass over the gradients.

    Args:
        params: parameters with a gradient, any shapes.
        keep: which elements the filter keeps.
        theta: the threshold, >= 0; 0 for no filter, and no pass.
        scalar: the emotion scalar, shape `[]`.
    """
    if keep is keep_elements and theta == 0.0:
        return []
    found: list[Resting] = []
    is_search = keep is keep_elements and are_plain_on_cpu(params)
    buckets = [list(range(len(params)))] if is_search else by_device_and_dtype(params).values()
    for indices in buckets:
        some = [params[index] for index in indices]
        dtype = wide_dtype(some[0])
        if is_search or (keep is keep_elements and some[0].device.type == "cpu"):
            grads = [param.grad for param in some if param.grad is not None]
            bound = _bound(theta, scalar, dtype)
            below = which_are_below(grads if is_search else list(map(local_part, grads)), bound)
            if not any(below):
                continue
            some = [param for param, is_below in zip(some, below, strict=True) if is_below]
        tolerance = (theta * (1.0 + scalar.abs())).to(device=some[0].device, dtype=dtype)
        for param in some:
            grad = param.grad.to(dtype)  # type: ignore[union-attr]
            if not keeps_all(keep, grad, theta):
                index = local_part(keep(grad, tolerance)).logical_not().nonzero(as_tuple=True)
                if index[0].numel():
                    found.append(store_stopped(param, index))
    return found


def _step_scale_of(scalar: Tensor) -> float:
    """Returns `step_scale` as a number, rounded as PyTorch rounds it, without a call of PyTorch."""
    real: Any = ctypes.c_double if scalar.dtype == torch.float64 else ctypes.c_float
    return float(real(1.0 - abs(scalar.item())).value)


def _bound(theta: float, scalar: Tensor, dtype: torch.dtype) -> float:
    """Returns the cube of theta (1 + |s|), rounded as PyTorch rounds it."""
    if scalar.dtype == dtype:
        real: Any = ctypes.c_double if dtype == torch.float64 else ctypes.c_float
        number = real(real(theta).value * real(1.0 + abs(scalar.item())).value).value
        return float(real(real(number * number).value * number).value)
    tolerance = (theta * (1.0 + scalar.abs())).to(dtype)
    return float(tolerance * tolerance * tolerance)


def are_plain_on_cpu(params: list[Tensor]) -> bool:
    """Returns whether parameters and gradients are plain tensors of one dtype on the CPU."""
    grads = [param.grad for param in params]
    return (
        set(map(type, params)) <= PLAIN
        and set(map(type, grads)) == {Tensor}
        and all(map(_is_cpu, params))
        and len(set(map(_dtype, params)) | set(map(_dtype, grads))) == 1
    )


def store_stopped(owner: Tensor, places: tuple[Tensor, ...]) -> Resting:
    """Stores the elements of a tensor that must not move."""
    return Resting(owner, places, _with_axes(owner)[places])


def put_back(resting: list[Resting]) -> None:
    """Restores the elements that the filter stops."""
    for each in resting:
        _with_axes(each.owner).index_put_(each.places, each.values)


def _with_axes(owner: Tensor) -> Tensor:
    """Returns this process's part of a tensor, with an axis if it has none."""
    own = local_part(owner)
    return own if own.ndim else own.unsqueeze(0)


class RestingBeside:
    """The same elements of the tensors in which an optimizer tracks its parameters.

    A schedule-free optimizer, for example, keeps the parameters without averaging. A stopped element must
    not move there either, because the two would no longer fit together.
    """

    def __init__(self, resting: list[Resting], names: set[str], states: Any) -> None:
        self._known: list[Resting] = []
        self._new: list[tuple[Resting, str]] = []
        for each in resting:
            found = dict(_named_tensors(states.get(each.owner, {}), names))
            for name in names:
                if name not in found:
                    self._new.append((each, name))
                elif found[name].shape == each.owner.shape:
                    self._known.append(store_stopped(found[name], each.places))

    def put_back(self, states: Any) -> None:
        """Restores the elements; elements of tensors made in this step take the values of the parameter."""
        put_back(self._known)
        for each, name in self._new:
            for _, tensor in _named_tensors(states.get(each.owner, {}), {name}):
                if tensor.shape == each.owner.shape:
                    put_back([each._replace(owner=tensor, values=each.values.to(tensor.dtype))])


def _named_tensors(state: Any, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a state, however deep, that have one of the names."""
    for name, value in state.items():
        if isinstance(value, Tensor) and name in names:
            yield name, value
        elif isinstance(value, dict):
            yield from _named_tensors(value, names)


def which_move(params: list[Tensor], keep: Keep, theta: float, scalar: Tensor) -> list[Tensor]:
    """Returns which elements the filter lets move, as booleans in the shapes of the parameters."""
    tolerance = theta * (1.0 + scalar.abs())
    moving = []
    for param in params:
        grad = param.grad.to(wide_dtype(param))  # type: ignore[union-attr]
        if keeps_all(keep, grad, theta):
            moving.append(torch.ones_like(grad, dtype=torch.bool))
        else:
            moving.append(keep(grad, tolerance.to(device=grad.device, dtype=grad.dtype)))
    return moving


class Copies(NamedTuple):
    """Parameters and their shadows as they are before they are blended."""

    tensors: list[Tensor]
    values: list[Tensor]

    @staticmethod
    def of(params: list[Tensor], states: list[State]) -> "Copies":
        """Copies parameters and their shadows."""
        tensors = [*params, *(state[name] for state in states for name in ("shadow", "shadow_exists"))]
        return Copies(tensors, [tensor.detach().clone() for tensor in tensors])

    def put_back(self) -> None:
        """Restores their values."""
        copy_all(self.tensors, self.values)


def with_shadow(param: Tensor, states: Any) -> State:
    """Returns a parameter's state, with a shadow of the dtype that the model has now."""
    state: State = states.setdefault(param, {})
    dtype = wide_dtype(param)
    if "shadow" not in state:
        state["shadow"] = torch.zeros_like(param, dtype=dtype)
        state["shadow_exists"] = torch.zeros((), dtype=torch.bool, device=param.device)
    elif state["shadow"].dtype != dtype:
        state["shadow"] = state["shadow"].to(dtype)
    return state


def blend(
    params: list[Tensor], states: list[State], ratio: Tensor, *, shadow_rate: float, foreach: bool
) -> None:
    """Pulls parameters to their shadows, in place; each state has a shadow."""
    for indices in by_device_and_dtype(params).values():
        narrow = [params[index] for index in indices]
        weights = [param.to(wide_dtype(param)) for param in narrow]
        shadows = [states[index]["shadow"] for index in indices]
        exists = [states[index]["shadow_exists"] for index in indices]
        part = ratio.to(device=weights[0].device, dtype=weights[0].dtype)
        if foreach:
            multi_tensor_blend_with_shadow(weights, shadows, exists, part, shadow_rate=shadow_rate)
        else:
            for weight, shadow, exist in zip(weights, shadows, exists, strict=True):
                blend_with_shadow(weight, shadow, exist, part, shadow_rate=shadow_rate)
        if weights[0] is not narrow[0]:
            copy_all(narrow, weights)


class Averages(NamedTuple):
    """The averages that `torch.optim.ASGD` keeps of where its parameters were, and the rate of each."""

    params: list[Tensor]
    rates: list[Any]
    ends: list[Tensor]

    @staticmethod
    def before(params: list[Tensor], state: Any) -> "Averages":
        """Stores the rate at which each average will follow this step."""
        rates = [state[param]["mu"].clone() if "mu" in state.get(param, {}) else 1.0 for param in params]
        return Averages(params, rates, [])

    def stepped(self) -> None:
        """Stores the parameters after the whole step, which the averages have followed."""
        self.ends.extend(param.detach().clone() for param in self.params)

    def correct(self, state: Any) -> None:
        """Corrects the averages, so that they follow the parameters after the scaled step."""
        for param, rate, end in zip(self.params, self.rates, self.ends, strict=True):
            average = state[param]["ax"]
            average.add_((param - end) * rate)
