"""The cautious sign and the softsign of an interpolated momentum, the rules of EmoNeco."""

import torch
from torch import Tensor

from emo_torch._pieces.sums import multi_tensor_norm_of, norm_of
from emo_torch._rules.moments import interpolate, multi_tensor_interpolate


def scale_by_cautious_sign(
    grad: Tensor, exp_avg: Tensor | None, *, b1: float = 0.9, b2: float = 0.99
) -> Tensor:
    r"""Takes the sign of an interpolated momentum where the gradient has the same sign, a rule of EmoNeco.

    .. math::
        w = (1-b_1)\,g + b_1 m, \quad
        u = \operatorname{sign}(w)\,[\,\operatorname{sign}(w) = \operatorname{sign}(g)\,], \quad
        m \leftarrow b_2 m + (1-b_2)\,g

    Args:
        grad: the gradient, any shape, float32 or wider.
        exp_avg: the momentum, same shape and dtype, moved in place; `None` for none: m stays 0.
        b1: decay rate of the interpolation, in [0, 1).
        b2: decay rate of the momentum, in [0, 1).

    Returns:
        The update, same shape and dtype.

    Example:
        >>> import torch
        >>> from emo_torch import scale_by_cautious_sign
        >>> exp_avg = torch.zeros(2)
        >>> for gradient in (torch.tensor([9.0, 9.0]), torch.tensor([0.1, -0.1])):
        ...     update = scale_by_cautious_sign(gradient, exp_avg)
        >>> print(update)
        tensor([1., 0.])

    Source: EmoNeco v2.0 by muooon; Liang et al., 2024, for the caution.
    """
    sign = interpolate(grad, exp_avg, b1, b2).sign_()
    return sign.mul_(sign == grad.sign())


def multi_tensor_scale_by_cautious_sign(
    grads: list[Tensor], exp_avgs: list[Tensor] | None, *, b1: float = 0.9, b2: float = 0.99
) -> list[Tensor]:
    """Like `scale_by_cautious_sign`, for many tensors of one device and dtype."""
    updates = multi_tensor_interpolate(grads, exp_avgs, b1, b2)
    torch._foreach_sign_(updates)
    same = [update == sign for update, sign in zip(updates, torch._foreach_sign(grads), strict=True)]
    torch._foreach_mul_(updates, same)
    return updates


def scale_by_softsign(
    grad: Tensor, exp_avg: Tensor | None, *, b1: float = 0.9, b2: float = 0.99, eps: float = 1e-8
) -> Tensor:
    r"""Softens an interpolated momentum and gives it the gradient's length, a rule of EmoNeco.

    .. math::
        w = (1-b_1)\,g + b_1 m, \quad
        u = \frac{w}{1 + |w|}\,(\lVert g \rVert_2 + \epsilon), \quad
        m \leftarrow b_2 m + (1-b_2)\,g

    The norm is taken over the whole parameter, so the step grows with the parameter's size.

    Args:
        grad: the gradient, any shape, float32 or wider.
        exp_avg: the momentum, same shape and dtype, moved in place; `None` for none: m stays 0.
        b1: decay rate of the interpolation, in [0, 1).
        b2: decay rate of the momentum, in [0, 1).
        eps: the number added to the norm, >= 0.

    Returns:
        The update, same shape and dtype.

    Example:
        >>> import torch
        >>> from emo_torch import scale_by_softsign
        >>> print(scale_by_softsign(torch.tensor([30.0, -40.0]), torch.zeros(2)))
        tensor([ 37.5000, -40.0000])

    Source: EmoNeco v2.0 by muooon.
    """
    mixed = interpolate(grad, exp_avg, b1, b2)
    length = norm_of(grad) + eps
    return mixed.div_(1.0 + mixed.abs()).mul_(length)


def multi_tensor_scale_by_softsign(
    grads: list[Tensor],
    exp_avgs: list[Tensor] | None,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-8,
) -> list[Tensor]:
    """Like `scale_by_softsign`, for many tensors of one device and dtype."""
    updates = multi_tensor_interpolate(grads, exp_avgs, b1, b2)
    denominators = torch._foreach_abs(updates)
    torch._foreach_add_(denominators, 1.0)
    torch._foreach_div_(updates, denominators)
    lengths = multi_tensor_norm_of(grads)
    torch._foreach_add_(lengths, eps)
    torch._foreach_mul_(updates, lengths)
    return updates
