"""Checks of the arguments of users, made before anything is changed."""

import ctypes
import inspect
import math
from collections.abc import Iterator, Mapping, Sized
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from emo_shared.choices import check_choice as check_choice
from emo_shared.choices import check_function as check_function
from emo_shared.choices import check_seed as check_seed
from emo_shared.choices import number_in
from emo_shared.eight_bit import EIGHT_BIT
from emo_torch._checks.errors import LOSS_MISSING, LossMissingError
from emo_torch._sharded import whole


def _known(name: str, value: Any, *, is_rate: bool = False) -> float:
    """Returns an option as a number, or raises an error if it is not a number that a step can use."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or (value.ndim > 0 and not is_rate):
            raise ValueError(f"Invalid {name}: shape {tuple(value.shape)}; a tensor must have the shape ()")
        if value.is_complex() or value.dtype == torch.bool or value.is_meta:
            raise TypeError(f"Invalid {name}: {value!r}; it must be a real number")
        if value.requires_grad and not is_rate:
            raise TypeError(f"Invalid {name}: {value!r}; an option gets no gradient. Pass value.detach()")
        return float(value.detach())
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Invalid {name}: {value!r}; it must be a number{number_in(value)}")
    if not isinstance(value, int | float | np.integer | np.floating):  # PyTorch refuses a Fraction.
        raise TypeError(f"Invalid {name}: {value!r}; pass float(value)")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_learning_rate(lr: float | Tensor) -> None:
    """Raises an error unless the learning rate is finite and >= 0, a tensor of one element or a number."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    number = _known("learning rate", lr, is_rate=True)
    if not 0.0 <= number < math.inf:
        given = number if isinstance(lr, Tensor) else lr
        raise ValueError(f"Invalid learning rate: {given}; it must be finite and at least 0")


def check_scheduled_rate(lr: Any) -> None:
    """Raises an error unless a scheduled rate is a finite number, or a tensor of one element; no sync."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or lr.is_complex() or lr.dtype == torch.bool:
            raise TypeError(
                f"Invalid learning rate: a tensor of the shape {tuple(lr.shape)} and {lr.dtype}; it must "
                "be a real number, or a real tensor with one element"
            )
    elif not math.isfinite(_known("learning rate", lr)):
        raise ValueError(f"Invalid learning rate: {lr}; it must be finite")


def check_peak(peak: Any) -> None:
    """Raises an error unless the largest learning rate so far is a number >= 0 or a tensor; no sync."""
    if isinstance(peak, Tensor) and peak.numel() == 1 and peak.is_floating_point():
        return
    if isinstance(peak, Tensor) or not 0.0 <= _known("peak_lr", peak) < math.inf:
        raise ValueError(f"Invalid peak_lr value: {peak!r}; it must be a finite number >= 0")


def check_decay_rates(betas: tuple[float, float]) -> None:
    """Raises an error unless the decay rates of the averages are two, in [0, 1)."""
    if not isinstance(betas, tuple | list):
        raise TypeError(f"Invalid betas: {betas!r}; it must be a pair of numbers")
    if len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas}; there must be two of them")
    for index, beta in enumerate(betas):
        if not 0.0 <= _known(f"beta parameter at index {index}", beta) < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}; it must be in [0, 1)")


def check_factor(name: str, value: float) -> None:
    """Raises an error unless the weight of a new value in an average is in (0, 1]."""
    if not 0.0 < _known(name, value) <= 1.0:
        raise ValueError(f"Invalid {name} value: {value}; it must be in (0, 1]")


def check_not_negative(name: str, value: float) -> None:
    """Raises an error unless a number is finite and at least 0."""
    if not 0.0 <= _known(name, value) < math.inf:
        raise ValueError(f"Invalid {name} value: {value}; it must be finite and at least 0")


def check_at_most_one(name: str, value: float) -> None:
    """Raises an error unless a share is in [0, 1]."""
    if not 0.0 <= _known(name, value) <= 1.0:
        raise ValueError(f"Invalid {name} value: {value}; it must be in [0, 1]")


def check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    """Raises a `ValueError` if the first of two numbers is above the second."""
    if low > high:
        raise ValueError(f"Invalid {low_name} value: {low}; it must not be above {high_name}, {high}")


def check_max_steps(value: int | None) -> None:
    """Raises an error unless the length of a run is a whole number >= 1, or not known."""
    number = None if value is None else _known("ref_max_steps", value)
    if number is not None and not (1 <= number < 2**31 and number == int(number)):
        raise ValueError(f"Invalid ref_max_steps: {value}; it must be a whole number >= 1, or None")


def check_flag(name: str, value: object, *, may_be_none: bool = False) -> None:
    """Raises a `TypeError` unless a switch is on or off, or left open where that may be."""
    if not isinstance(value, bool) and not (may_be_none and value is None):
        choices = "True, False or None" if may_be_none else "True or False"
        raise TypeError(f"Invalid {name}: {value!r}; it must be {choices}")


def check_bounds(name: str, value: Any) -> None:
    """Raises an error unless bounds are `None` or a smaller and a larger number."""
    if value is None:
        return
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"Invalid {name}: {value!r}; it must be a pair, the least and the largest value")
    if not _known(name, value[0]) <= _known(name, value[1]):
        raise ValueError(f"Invalid {name}: {value!r}; the first must not be above the second")


def check_shadow_ratio(value: object) -> None:
    """Raises a `ValueError` unless the shadow's ratio is "v2.0", "v1.0" or a function of the scalar."""
    if not callable(value) and value not in ("v2.0", "v1.0"):
        raise ValueError(
            f"Invalid shadow_ratio: {value!r}; it must be 'v2.0', 'v1.0' or a function of the scalar"
        )


def check_loss(loss: Any, dtype: torch.dtype, device: torch.device, name: str = "loss") -> Tensor:
    """Returns the loss as a tensor of shape `()` in the emotion's dtype, detached, without a sync.

    Raises:
        LossMissingError: if there is no loss.
        TypeError: if the loss is not a real number.
        ValueError: if the loss is not a scalar.
    """
    is_plain = type(loss) is float and device.type == "cpu" and dtype == torch.float32
    if is_plain and not torch.compiler.is_compiling():
        # In half of the time of `torch.tensor`; too large a number becomes infinite without a warning.
        return torch.from_numpy(np.array(ctypes.c_float(loss).value, np.float32))
    if loss is None:
        raise LossMissingError(LOSS_MISSING)
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(
                f"The {name} must be a scalar, the loss of the whole step, and has the shape "
                f"{tuple(loss.shape)}. Reduce it first, for example with `{name}.mean()`."
            )
        if loss.is_complex() or loss.dtype == torch.bool:
            raise TypeError(f"The {name} must be a real number, and has the dtype {loss.dtype}")
        if loss.is_meta or loss.layout != torch.strided:
            kind = "on the device 'meta', without a value" if loss.is_meta else f"of {loss.layout}"
            raise TypeError(f"The {name} must be a dense tensor with a value, and is {kind}")
        return whole(loss.detach()).to(device=device, dtype=dtype).reshape(())
    if getattr(loss, "ndim", 0) and getattr(loss, "size", 0) == 1 and hasattr(loss, "item"):
        loss = loss.item()  # As a tensor, an array of one element is one number.
    # NumPy's truths ("b") and complex numbers ("c"), too, can be made a float; times and words look so.
    kind = getattr(getattr(loss, "dtype", None), "kind", "f")
    can_be_float = isinstance(loss, Real) or hasattr(type(loss), "__float__")
    if isinstance(loss, bool) or not can_be_float or kind in "bcmMOSU" or np.ma.is_masked(loss):
        raise TypeError(f"The {name} must be a tensor or a real number, and is {loss!r}")
    try:
        number = float(loss)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError) as error:
        raise ValueError(f"The {name} must be a scalar, and is {loss!r}") from error
    return torch.tensor(number, dtype=dtype, device=device)


def check_has_graph(loss: Any) -> None:
    """Raises an error for a loss that no backward pass can reach."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"`watch` needs a tensor, and got {loss!r}. Pass a number to `observe`")
    if not loss.requires_grad:
        raise ValueError(
            "This loss has no graph, so no backward pass can reach it. Call `opt.observe(loss)` after the "
            "backward pass, or `opt.step(loss=loss)`"
        )


def check_parameters(owner: str, params: Any) -> Any:
    """Returns the parameters of an optimizer, a generator as a list; raises an error if there are none."""
    if isinstance(params, torch.nn.Module):
        raise TypeError(f"{owner} takes parameters, not a module: pass `model.parameters()`")
    given = list(params) if isinstance(params, Iterator) else params
    if isinstance(given, Sized) and not isinstance(given, Tensor) and len(given) == 0:
        raise ValueError(
            f"{owner} got an empty parameter list: either the model has no parameters, or a generator such "
            "as `model.parameters()`, which can be read only once, was read before. Call it again"
        )
    return given


def check_expanded(owner: str, params: Any) -> None:
    """Raises a `ValueError` for a parameter of which several elements share one place in memory."""
    # A generator can be read only once, so its parameters are not checked.
    for param in params if isinstance(params, list | tuple) else [params]:
        own = param[1] if isinstance(param, tuple) else param
        is_known = isinstance(own, Tensor) and not torch.nn.parameter.is_lazy(own)
        if not is_known or own.layout != torch.strided or own.numel() == 0:
            continue
        if any(size > 1 and step == 0 for size, step in zip(own.shape, own.stride(), strict=True)):
            raise ValueError(
                f"{owner} cannot step an expanded parameter, here of the shape {tuple(own.shape)}: its "
                "elements share their memory. Pass a parameter made from tensor.clone()"
            )


def has_duplicates(params: Any) -> bool:
    """Returns whether a parameter is listed twice."""
    return isinstance(params, list | tuple) and len(set(map(id, params))) < len(params)


def check_duplicates(params: Any, *, foreach: bool | None) -> None:
    """Raises a `ValueError` for `foreach=True` where a parameter is listed twice in the group."""
    if foreach and has_duplicates(params):
        raise ValueError(
            "foreach=True steps all parameters at once, and one parameter is listed twice in its group. "
            "Remove one of the two, or do not pass foreach: the parameter is then stepped twice"
        )


def check_fused(
    owner: str,
    params: Any,
    *,
    is_compiled: bool,
    has_triton: bool,
    has_kernel: bool,
    has_code: bool = True,
) -> None:
    """Raises a `RuntimeError` where parameters cannot be stepped in compiled code, which was asked for.

    Args:
        owner: the name of the optimizer.
        params: its parameters, or one, with or without names.
        is_compiled: whether there is compiled code for the CPU.
        has_triton: whether Triton is installed, which makes the code for CUDA.
        has_kernel: whether the optimizer has any for CUDA.
        has_code: whether the optimizer has any at all.
    """
    if not has_code:
        raise RuntimeError(f"{owner} has no compiled code for fused=True: do not pass fused")
    params = [params] if isinstance(params, Tensor) else list(params)
    tensors = [param[1] if isinstance(param, tuple) else param for param in params]
    wide = (torch.float32, torch.float64)
    taken = {
        "cpu": (*wide, torch.bfloat16, torch.float16),
        "cuda": (*wide, torch.bfloat16) if has_kernel else (),
    }
    strange = [
        f"{tensor.dtype} on {tensor.device}"
        for tensor in tensors
        if tensor.dtype not in taken.get(tensor.device.type, ())
    ]
    if strange:
        lists = (
            f"{', '.join(str(dtype).removeprefix('torch.') for dtype in dtypes)} on {place}"
            for place, dtypes in (("the CPU", taken["cpu"]), ("CUDA", taken["cuda"]))
            if dtypes
        )
        raise RuntimeError(
            f"{owner} with fused=True takes {'; '.join(lists)}; and not {strange[0]}: do not pass fused"
        )
    devices = {tensor.device.type for tensor in tensors}
    if not is_compiled and devices != {"cuda"}:
        raise RuntimeError(
            "fused=True needs the compiled code, which is missing. The logger 'emo_torch' gives the reason "
            "at the level WARNING. Do not pass fused, or install a C compiler and run `python -m "
            "emo_torch.build`."
        )
    if not has_triton and "cuda" in devices:
        raise RuntimeError(
            "fused=True needs Triton on CUDA, which is missing: pip install triton, or do not pass fused"
        )


def check_capture(owner: str, groups: list[dict[str, Any]], loss: Any) -> None:
    """Raises a `RuntimeError` for a step that a CUDA graph, being captured, could not repeat."""
    if torch.compiler.is_compiling() or not torch.cuda.is_available():
        return
    if not torch.cuda.is_current_stream_capturing():
        return
    if not all(group.get("capturable", True) for group in groups):
        raise RuntimeError(f"{owner} needs capturable=True in every group to be captured in a CUDA graph")
    if loss is not None and not (isinstance(loss, Tensor) and loss.is_cuda):
        raise RuntimeError(
            "A CUDA graph would use this number as the loss in every replay. Pass the loss as a tensor on "
            "the GPU, the same tensor in each replay"
        )


def check_moment_dtype(moment_dtype: torch.dtype | str | None) -> None:
    """Raises a `ValueError` unless the dtype is a floating-point one, "8bit", or `None` for the default."""
    if moment_dtype is None or (isinstance(moment_dtype, str) and moment_dtype == EIGHT_BIT):
        return
    if not isinstance(moment_dtype, torch.dtype) or not moment_dtype.is_floating_point:
        raise ValueError(
            f"Invalid moment_dtype: {moment_dtype!r}; it must be a floating-point dtype or {EIGHT_BIT!r}"
        )


def check_inner(inner: object) -> None:
    """Raises an error for an optimizer that cannot be made emotional, or scaled, from outside."""
    if not isinstance(inner, Optimizer):
        raise TypeError(
            f"The optimizer that moves the parameters must be a torch.optim.Optimizer, and is {inner!r}. "
            "Make it first, as in `torch.optim.AdamW(model.parameters(), lr=1e-3)`"
        )
    name = type(inner).__name__
    closure = inspect.signature(inner.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"{name} calls the closure itself, several times in a step, and records where its step moved "
            "the parameters. emo_torch changes the length of the step, so these records would be wrong. "
            "Use an optimizer whose closure is optional."
        )
    if getattr(inner, "defaults", {}).get("differentiable"):
        raise ValueError(
            f"{name} was made with differentiable=True, but emo_torch cannot differentiate through a step. "
            f"Make {name} with differentiable=False"
        )


def check_divisor(lr: float | Tensor, mode: str) -> None:
    """Raises a `ValueError` if weight decay cannot be divided by a learning rate."""
    if mode != "decoupled":
        raise ValueError(
            "decoupled_weight_decay=True needs weight_decay_mode='decoupled'; "
            f"do not pass it with weight_decay_mode={mode!r}"
        )
    if float(lr) == 0.0:
        raise ValueError(
            "decoupled_weight_decay=True divides the weight decay by the initial learning rate, and that "
            "is 0. Start with a positive learning rate, or use weight_decay_mode='absolute'."
        )


def check_group(group: Mapping[str, Any], modes: tuple[str, ...]) -> None:
    """Raises an error for the first invalid option of a parameter group."""
    check_learning_rate(group["lr"])
    check_not_negative("epsilon", group["eps"])
    check_decay_rates(group["betas"])
    check_not_negative("weight_decay", group["weight_decay"])
    check_not_negative("theta", group.get("theta", 0.0))  # Only a filter has one.
    check_flag("use_shadow", group["use_shadow"])
    check_factor("shadow_rate", group["shadow_rate"])
    check_factor("short_factor", group["short_factor"])
    check_factor("long_factor", group["long_factor"])
    check_not_negative("gain", group["gain"])
    check_choice("weight_decay_mode", group["weight_decay_mode"], modes)
    check_moment_dtype(group["moment_dtype"])
    check_ways(group)


def check_group_form(group: Any) -> None:
    """Raises an error unless a parameter group is a dictionary with parameters."""
    if not isinstance(group, dict):
        raise TypeError(f"param_group must be a dict with 'params' in it, and is {group!r}")
    if "params" not in group:
        raise ValueError(f"A parameter group needs 'params', and has {', '.join(map(repr, group))}")


def check_state_form(owner: str, state: Any) -> None:
    """Raises an error unless an object has the form of a result of `state_dict`."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{owner} loads the result of its `state_dict()`, and this is {state!r}")
    missing = [name for name in ("state", "param_groups") if name not in state]
    if missing:
        raise ValueError(f"This is not the state of an optimizer: {missing[0]!r} is missing")
    groups, states = state["param_groups"], state["state"]
    if not isinstance(groups, list | tuple) or not all(
        isinstance(group, dict) and isinstance(group.get("params"), list | tuple) for group in groups
    ):
        raise ValueError("The state is damaged: 'param_groups' must be a list of dicts with 'params'")
    if not isinstance(states, Mapping) or not all(isinstance(each, Mapping) for each in states.values()):
        raise ValueError("The state is damaged: 'state' must hold a dict for each parameter")


def check_ways(group: Mapping[str, Any]) -> None:
    """Raises an error if two ways to step are chosen, or if an option is neither on nor off."""
    check_flag("maximize", group["maximize"])
    check_flag("foreach", group["foreach"], may_be_none=True)
    check_flag("capturable", group["capturable"])
    check_flag("fused", group["fused"], may_be_none=True)
    if group["foreach"] and group["fused"]:
        raise ValueError("foreach=True and fused=True exclude each other: pass one of them, or neither")
