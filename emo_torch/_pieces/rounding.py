"""Rounding: how small steps change parameters of low precision."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from emo_torch._checks.validation import check_choice, check_seed
from emo_torch._sharded import local_part, places

Rounding = Literal["nearest", "kahan", "stochastic"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)
"""The ways to round an update into a parameter."""

_LOW = 2**32 - 1
"""The lower 32 bits of an int64: torch has no arithmetic for uint32."""


def check_rounding(options: dict[str, Any]) -> None:
    """Raises a `ValueError` unless a group's rounding, if it has one, is a known one."""
    check_choice("rounding", options.get("rounding", "nearest"), ROUNDINGS)


def is_narrow(param: Tensor) -> bool:
    """Returns whether a parameter has less than float32's precision, so that rounding acts on it."""
    return param.is_floating_point() and param.element_size() < 4


def round_bits(value: Tensor, dtype: torch.dtype, draws: Tensor | None = None) -> Tensor:
    """Rounds float32 values to values of a narrower dtype; their dtype stays float32.

    On the bits, since compilers may leave out a cast that is undone: XLA with
    `xla_allow_excess_precision`, which is its default, and PyTorch's inductor. A value beyond
    the range of the dtype stays unchanged.

    Args:
        value: the values to round, float32.
        dtype: the narrower dtype, such as bfloat16.
        draws: random numbers, 32 bits of an int64 in the value's shape: up or down, as likely as the
            value is near. `None` for the nearest, and the even one of two.
    """
    info = torch.finfo(dtype)
    dropped = 23 + round(math.log2(info.eps))
    # Below its normal numbers a dtype is evenly spaced, as float32 is in the binade of the least.
    least = info.smallest_normal
    is_even = least > 2.0**-126
    shift = torch.full_like(value, least).copysign(value) * (value.abs() < least) if is_even else None
    bits = (value if shift is None else value + shift).view(torch.int32)
    if draws is None:
        added = ((bits >> dropped) & 1) + ((1 << (dropped - 1)) - 1)
    else:
        added = (draws >> (32 - dropped)).to(torch.int32)
    rounded = ((bits + added) & -(1 << dropped)).view(torch.float32)
    rounded = rounded if shift is None else rounded - shift
    return torch.where(value.isfinite(), rounded, value)


def scramble(number: Tensor) -> Tensor:
    """Turns whole numbers into others that look random: a one-to-one hash of 32 bits (of an int64)."""
    # "lowbias32" of Chris Wellons' hash prospector, with multipliers that int64 can multiply by.
    number = ((number ^ (number >> 16)) * 0x21F0AAAD) & _LOW
    number = ((number ^ (number >> 15)) * 0x735A2D97) & _LOW
    return number ^ (number >> 15)


def rounding_keys(step: Tensor, count: int, seed: int = 0) -> Tensor:
    """Returns a key for each of `count` parameters, different in every step.

    Args:
        step: the count of steps, a whole number of shape `[]`; nothing waits for its device.
        count: how many parameters there are.
        seed: a whole number in [0, 2^32).

    Returns:
        The keys, 32 bits of an int64, shape `[count]`, on the step's device.

    Raises:
        ValueError: for a seed out of its range.

    Example:
        >>> import torch
        >>> from emo_torch import rounding_keys
        >>> print(rounding_keys(torch.tensor(1), 2).tolist() == rounding_keys(torch.tensor(2), 2).tolist())
        False
    """
    check_seed(seed)
    of_seed = scramble(torch.full((), seed, dtype=torch.int64, device=step.device))
    of_step = scramble((of_seed + step) & _LOW)
    return scramble((of_step + torch.arange(count, device=step.device)) & _LOW)


def _counters(key: Tensor, like: Tensor) -> Tensor:
    """Returns a number for every element of this process, in its shape; `scramble` makes it random."""
    return (places(like) + key) & _LOW


def round_with_kahan(update: Tensor, param: Tensor, compensation: Tensor) -> Tensor:
    r"""Rounds an update to the dtype of a narrow parameter, and adds the rounding error to the next step.

    With y in float32, Kahan's summation:

    .. math::
        y = u + c, \quad u' = \operatorname{round}(y), \quad
        c \leftarrow \operatorname{round}(y - (\operatorname{round}(p + u') - p))

    In bfloat16 a step below half a unit of the last place, :math:`2^{-9}` to :math:`2^{-8}` of p,
    changes nothing, however often it is repeated. Here such steps add up in `c` until they change p. `c`
    takes as much memory as the parameters, and keeps about as many digits as 16 bits of mantissa. Elements
    whose update is exactly 0 stay as they are. float16 itself holds no `c` below :math:`3 \cdot 10^{-8}`:
    smaller steps are lost, as without `c`.

    Args:
        update: u, the numbers to add, float32, any shape.
        param: p, bfloat16 or float16, same shape; read, not moved.
        compensation: c, the sum that rounding has left out so far, in the parameter's dtype and shape;
            zeros at first; moved in place.

    Returns:
        The update u' that the parameter is to be moved by, in its dtype: `param.add_(update)`.

    Example:
        >>> import torch
        >>> from emo_torch import round_with_kahan
        >>> param, compensation = torch.ones(2, 1, dtype=torch.bfloat16)
        >>> compensation.zero_()
        tensor([0.], dtype=torch.bfloat16)
        >>> for _ in range(100):
        ...     _ = param.add_(round_with_kahan(torch.tensor([-1e-3]), param, compensation))
        >>> print(param)
        tensor([0.8984], dtype=torch.bfloat16)

    Source: Kahan, 1965; Zamirai et al., "Revisiting BFloat16 Training", 2020.
    """
    before, rest = param.to(update.dtype), compensation.to(update.dtype)
    wanted = update + rest
    rounded = round_bits(wanted, param.dtype)
    moved = round_bits(before + rounded, param.dtype)
    is_still = update == 0.0  # An element without an update is not moved by its compensation either.
    compensation.copy_(torch.where(is_still, rest, wanted - (moved - before)))
    return rounded.masked_fill(is_still, 0.0).to(param.dtype)


def multi_tensor_round_with_kahan(
    updates: list[Tensor], params: list[Tensor], compensations: list[Tensor]
) -> list[Tensor]:
    """Like `round_with_kahan`, for many tensors of one device and dtype."""
    joined = _join(compensations)
    rounded = round_with_kahan(_join(updates), _join(params), joined)
    torch._foreach_copy_(compensations, _part(joined, compensations))
    return _part(rounded, params)


def round_stochastically(update: Tensor, param: Tensor, key: Tensor) -> Tensor:
    r"""Rounds a narrow parameter up or down at random, so that it is right on average.

    .. math::
        u' = \begin{cases} \lceil p + u \rceil - p & \text{with probability }
            \frac{p + u - \lfloor p + u \rfloor}{\lceil p + u \rceil - \lfloor p + u \rfloor} \\
            \lfloor p + u \rfloor - p & \text{else} \end{cases}

    between the two neighbours in the parameter's dtype. In bfloat16 a step below half a unit of the
    last place, :math:`2^{-9}` to :math:`2^{-8}` of p, changes nothing where it is rounded to the
    nearest; here it changes some elements by a whole unit. It needs no memory, and adds noise of about
    that unit. Elements whose update is exactly 0 stay as they are. If a step is longer than half of the new
    parameter, the step is first rounded to the nearest value, as without stochastic rounding.

    The random numbers are a hash of the key and the element's place in the parameter: the same on every
    device, in a resumed run, and in `emo_optax`.

    Args:
        update: u, the numbers to add, float32, any shape.
        param: p, bfloat16 or float16, same shape; read, not moved.
        key: the key of the parameter in this step, shape `[]` (see `rounding_keys`).

    Returns:
        The update u' that the parameter is to be moved by, in its dtype: `param.add_(update)`.

    Example:
        >>> import torch
        >>> from emo_torch import round_stochastically, rounding_keys
        >>> param = torch.ones(1000, dtype=torch.bfloat16)
        >>> for step in range(100):
        ...     (key,) = rounding_keys(torch.tensor(step), 1)
        ...     _ = param.add_(round_stochastically(torch.full([1000], -1e-3), param, key))
        >>> print(f"{param.float().mean():.2f}")
        0.90

    Source: Gupta et al., "Deep Learning with Limited Numerical Precision", 2015; Zamirai et al.,
    "Revisiting BFloat16 Training", 2020.
    """
    return _stochastically(update, param, _counters(key, param))


def multi_tensor_round_stochastically(
    updates: list[Tensor], params: list[Tensor], keys: list[Tensor]
) -> list[Tensor]:
    """Like `round_stochastically`, for many tensors of one device and dtype."""
    counters = [_counters(key, param) for key, param in zip(keys, params, strict=True)]
    return _multi_tensor_stochastically(updates, params, counters)


def _multi_tensor_stochastically(
    updates: list[Tensor], params: list[Tensor], counters: list[Tensor]
) -> list[Tensor]:
    return _part(_stochastically(_join(updates), _join(params), _join(counters)), params)


def _stochastically(update: Tensor, param: Tensor, counters: Tensor) -> Tensor:
    before = param.to(update.dtype)
    moved = round_bits(before + update, param.dtype, scramble(counters))
    return round_bits(moved - before, param.dtype).to(param.dtype)


def add_rounded(
    params: list[Tensor],
    updates: list[Tensor],
    extras: list[Tensor],
    *,
    rounding: str,
    foreach: bool,
) -> None:
    """Moves narrow parameters of one device and dtype, in place.

    Args:
        params: the parameters.
        updates: the numbers to add to them, float32.
        extras: the compensations for "kahan", the keys for "stochastic".
        rounding: which of the two.
        foreach: whether to move all of them at once.
    """
    if rounding == "stochastic":
        extras = [_counters(key, param) for key, param in zip(extras, params, strict=True)]
    # Each element is rounded alone, so that the local part of a sharded tensor is enough.
    params, updates, extras = (list(map(local_part, tensors)) for tensors in (params, updates, extras))
    if foreach:
        multi = multi_tensor_round_with_kahan if rounding == "kahan" else _multi_tensor_stochastically
        torch._foreach_add_(params, multi(updates, params, extras))
        return
    single = round_with_kahan if rounding == "kahan" else _stochastically
    for param, update, extra in zip(params, updates, extras, strict=True):
        param.add_(single(update, param, extra))


def _join(tensors: list[Tensor]) -> Tensor:
    """Returns the elements of all tensors in one: there is no multi-tensor operation on bits."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _part(joined: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Splits joined elements into tensors of the given shapes."""
    parts = joined.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
