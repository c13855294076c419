"""Rules that step by a sign: the rules of EmoAiry3 and EmoFact36, of EmoTion, and of EmoVoid.

EmoTion and EmoVoid read the sum of the L1 norms of all parameters, in all groups, in float32 at least.
Parameters that need no gradient (frozen parameters) count for nothing and are left alone.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from emo_torch._pieces.emotion import is_on_cpu, wide_dtype
from emo_torch._pieces.smoothed_norm import NO_NORM
from emo_torch._pieces.sums import norm_of
from emo_torch._sharded import local_part, mesh_of, sum_of_parts

HELD_STEPS = 55
"""EmoVoid holds the sum of the norms while its counter is not above this."""


def scale_by_sign(grad: Tensor) -> Tensor:
    r"""Takes the sign of the gradient, the rule of EmoVoid, EmoAiry v3.9.1 and EmoFact v3.6.1.

    .. math:: u = \operatorname{sign}(g)

    The published EmoAiry v3.9.1 and EmoFact v3.6.1 divide g by positive averages of its size, and take the
    sign of the quotient: the sign of g. The averages are not kept here. Where they overflow or the
    quotient underflows, the published code takes no step; here it does.

    Args:
        grad: the gradient, any shape, float32 or wider.

    Returns:
        The update, same shape and dtype.

    Example:
        >>> import torch
        >>> from emo_torch import scale_by_sign
        >>> print(scale_by_sign(torch.tensor([2.0, 0.0, -1e-30])))
        tensor([ 1.,  0., -1.])

    Source: EmoVoid and EmoAiry v3.9.1, and EmoFact v3.6.1, by muooon.
    """
    return grad.sign()


def multi_tensor_scale_by_sign(grads: list[Tensor]) -> list[Tensor]:
    """Like `scale_by_sign`, for many tensors of one device and dtype."""
    return list(torch._foreach_sign(grads))


def scale_by_fresh_sign(grad: Tensor, exp_avg: Tensor, change: Tensor, *, b1: float = 0.9) -> Tensor:
    r"""Takes the sign of a momentum that moves faster where the weights move, the rule of EmoTion.

    .. math::
        f = \max(\tanh(d / 0.03),\; 1 - b_1), \quad a = (1 - b_1)\,f, \quad
        m \leftarrow (1 - a)\,m + a\,g, \quad u = \operatorname{sign}(m)

    Args:
        grad: the gradient, any shape, float32 or wider.
        exp_avg: the momentum m, same shape and dtype; moved in place.
        change: d, the relative change of the sum of the norms (see `relative_change`), shape `[]`;
            infinite at the first step.
        b1: decay rate of the momentum, in [0, 1).

    Returns:
        The update, same shape and dtype.

    Example:
        >>> import torch
        >>> from emo_torch import scale_by_fresh_sign
        >>> exp_avg = torch.zeros(2)
        >>> print(scale_by_fresh_sign(torch.tensor([2.0, -3.0]), exp_avg, torch.tensor(float("inf"))))
        tensor([ 1., -1.])

    Source: EmoTion v3.9.1 by muooon.
    """
    share = fresh_share(change, b1).to(device=grad.device, dtype=grad.dtype)
    exp_avg.mul_(1.0 - share).add_(grad * share)
    return exp_avg.sign()


def multi_tensor_scale_by_fresh_sign(
    grads: list[Tensor], exp_avgs: list[Tensor], change: Tensor, *, b1: float = 0.9
) -> list[Tensor]:
    """Like `scale_by_fresh_sign`, for many tensors of one device and dtype."""
    share = fresh_share(change, b1).to(device=grads[0].device, dtype=grads[0].dtype)
    torch._foreach_mul_(exp_avgs, 1.0 - share)
    torch._foreach_add_(exp_avgs, torch._foreach_mul(grads, share))
    return list(torch._foreach_sign(exp_avgs))


def fresh_share(change: Tensor, b1: float) -> Tensor:
    """Returns a, the share of the gradient in the momentum of `scale_by_fresh_sign`, shape `[]`."""
    return (1.0 - b1) * torch.tanh(change / 0.03).clamp(min=1.0 - b1)


def relative_change(kept: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns the relative change of the sum of the norms, and the sum that EmoTion keeps.

    .. math:: d = \frac{|G - G'|}{G' + 10^{-8}}, \quad G' \leftarrow G\,d

    At the first step the change is infinite and G is kept.

    Args:
        kept: G', shape `[]`; -1 before any.
        norm: G, the sum of this step (see `sum_of_norms`), shape `[]`, same dtype.
    """
    is_first, before = kept < 0.0, kept.clamp(min=0.0)
    change = (norm - before).abs() / (before + 1e-8)
    infinite = torch.full_like(change, float("inf"))
    return torch.where(is_first, infinite, change), torch.where(is_first, norm, norm * change)


class HeldNorm(NamedTuple):
    """The state that keeps the sum of the norms constant; every field is a tensor of shape `[]`.

    Attributes:
        kept: the kept sum of norms; -1 before any.
        counter: int32; the sum is held while it is 55 or less.
        was_quiet: the stop signal of the last step, bool.
    """

    kept: Tensor
    counter: Tensor
    was_quiet: Tensor


def init_held_norm(dtype: torch.dtype) -> HeldNorm:
    """Returns the state of EmoVoid before the first step."""
    return HeldNorm(
        kept=torch.full((), NO_NORM, dtype=dtype),
        counter=torch.zeros((), dtype=torch.int32),
        was_quiet=torch.zeros((), dtype=torch.bool),
    )


def is_over(state: HeldNorm, should_stop: Tensor) -> bool:
    """Returns whether no step needs the sum of this step, where a look costs nothing.

    Args:
        state: the state before this step.
        should_stop: the stop signal of this step, bool of shape `[]`.
    """
    is_known = not torch.compiler.is_compiling() and is_on_cpu(state.counter)
    if not is_known or int(state.counter) <= HELD_STEPS:
        return False
    return is_on_cpu(should_stop) and not (bool(should_stop) and not bool(state.was_quiet))


def hold_norm(state: HeldNorm, norm: Tensor, should_stop: Tensor) -> tuple[Tensor, HeldNorm]:
    r"""Returns the factor of all parameters that keeps the sum of their L1 norms, and the next state.

    .. math:: p \leftarrow \frac{G'}{G + 10^{-8}}\,p, \qquad G = \sum \lVert p \rVert_1

    The parameters are scaled while a counter is 55 or less. The counter starts at 0 and grows by 1 a step.
    If the stop signal rises, the counter is set to 55 after the step: one more step is scaled, to the sum
    of the step at which the signal rose. The first step only keeps G; later G' becomes the sum of the
    scaled parameters.

    Args:
        state: the state before this step.
        norm: G, the sum of this step (see `sum_of_norms`), shape `[]`; not used where `is_over`.
        should_stop: the stop signal of this step, bool of shape `[]`.

    Source: EmoVoid v3.9.1 by muooon.
    """
    is_first, is_held = state.kept < 0.0, state.counter <= HELD_STEPS
    ratio = state.kept.clamp(min=0.0) / (norm + 1e-8)
    ratio = torch.where(is_held & ~is_first, ratio, torch.ones_like(norm))
    counter = (state.counter + 1).clamp(max=HELD_STEPS + 1)
    rises = should_stop & ~state.was_quiet
    kept = torch.where(is_held | rises, norm * ratio, state.kept)
    counter = torch.where(rises, torch.full_like(counter, HELD_STEPS), counter)
    return ratio, HeldNorm(kept, counter, should_stop)


def sum_of_norms(params: list[Tensor]) -> Tensor:
    """Returns the sum of the L1 norms of all parameters, in float32, or float64 where a parameter is.

    Args:
        params: floating-point tensors of any shapes; DTensors count as a whole.

    Returns:
        The sum, shape `[]`, on the device of the first parameter; 0 without parameters.

    Example:
        >>> import torch
        >>> from emo_torch import sum_of_norms
        >>> print(sum_of_norms([torch.tensor([[1.0, -2.0]]), torch.tensor(0.5)]))
        tensor(3.5000)

    Source: EmoTion and EmoVoid v3.9.1 by muooon.
    """
    if not params:
        return torch.zeros(())
    dtype, device = wide_dtype(*params), local_part(params[0]).device
    buckets: dict[tuple[Any, ...], list[Tensor]] = {}
    for param in params:
        own = local_part(param.detach())
        key = (own.device, own.dtype, mesh_of(param), getattr(param, "placements", None))
        buckets.setdefault(key, []).append(param)
    total = torch.zeros((), dtype=dtype, device=device)
    for some in buckets.values():
        parts = [local_part(param.detach()) for param in some]
        # One pass over memory: the dtype of the sum is wide, and no wide copy is made.
        norms = [norm_of(part, 1.0, dtype=dtype) for part in parts if part.numel()]
        if not norms:
            norms = [torch.zeros((), dtype=dtype, device=parts[0].device)]
        total = total + sum_of_parts(torch.stack(norms).sum(), some[0]).to(device)
    return total
