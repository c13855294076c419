"""The sign of an interpolated momentum, the rule of EmoCats."""

import torch
from torch import Tensor

from emo_torch._rules.moments import average, multi_tensor_average


def scale_by_lion(grad: Tensor, exp_avg: Tensor, *, b1: float = 0.9, b2: float = 0.99) -> Tensor:
    r"""Takes the sign of an interpolated momentum, the rule of EmoCats.

    .. math:: u = \operatorname{sign}((1-b_1)\,g + b_1 m), \quad m \leftarrow b_2 m + (1-b_2)\,g

    Args:
        grad: the gradient, any shape, float32 or wider.
        exp_avg: the momentum, same shape and dtype; moved in place.
        b1: decay rate of the interpolation, in [0, 1).
        b2: decay rate of the momentum, in [0, 1).

    Returns:
        The update, same shape and dtype.

    Example:
        >>> import torch
        >>> from emo_torch import scale_by_lion
        >>> print(scale_by_lion(torch.tensor([2.0, 0.0, -3.0]), torch.zeros(3)))
        tensor([ 1.,  0., -1.])

    Source: EmoCats v2.0 by muooon; Chen et al., 2023.
    """
    update = exp_avg.mul(b1).add_(grad, alpha=1.0 - b1).sign_()
    average(exp_avg, grad, b2)
    return update


def multi_tensor_scale_by_lion(
    grads: list[Tensor], exp_avgs: list[Tensor], *, b1: float = 0.9, b2: float = 0.99
) -> list[Tensor]:
    """Like `scale_by_lion`, for many tensors of one device and dtype."""
    updates = list(torch._foreach_mul(exp_avgs, b1))
    torch._foreach_add_(updates, grads, alpha=1.0 - b1)
    torch._foreach_sign_(updates)
    multi_tensor_average(exp_avgs, grads, b2)
    return updates
