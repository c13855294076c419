"""Adam's moments without bias correction, the rule of EmoSens."""

import torch
from torch import Tensor

from emo_torch._rules.moments import average, multi_tensor_average


def scale_by_uncorrected_adam(
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Tensor:
    r"""Rescales by Adam's moments without bias correction, the rule of EmoSens.

    .. math::
        m \leftarrow b_1 m + (1-b_1)\,g, \quad v \leftarrow b_2 v + (1-b_2)\,g^2, \quad
        u = \frac{m}{\sqrt{v} + \epsilon}

    Without the correction the first steps are large: 3.2 times the learning rate at the first, up
    to 6.6 times near the twelfth, under a constant gradient. (`torch.optim.Adam` corrects.)

    Args:
        grad: the gradient, any shape, float32 or wider.
        exp_avg: the first moment, same shape and dtype; moved in place.
        exp_avg_sq: the second moment, same shape and dtype; moved in place.
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: the number added to the root, >= 0.

    Returns:
        The update, same shape and dtype.

    Example:
        >>> import torch
        >>> from emo_torch import scale_by_uncorrected_adam
        >>> print(scale_by_uncorrected_adam(torch.tensor([2.0]), torch.zeros(1), torch.zeros(1)))
        tensor([3.1623])

    Source: EmoSens v2.0 by muooon; Kingma and Ba, 2014.
    """
    average(exp_avg, grad, b1)
    exp_avg_sq.mul_(b2).addcmul_(grad, grad, value=1.0 - b2)
    return exp_avg / exp_avg_sq.sqrt().add_(eps)


def multi_tensor_scale_by_uncorrected_adam(
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> list[Tensor]:
    """Like `scale_by_uncorrected_adam`, for many tensors of one device and dtype."""
    multi_tensor_average(exp_avgs, grads, b1)
    torch._foreach_mul_(exp_avg_sqs, b2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=1.0 - b2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_add_(denominators, eps)
    return list(torch._foreach_div(exp_avgs, denominators))
