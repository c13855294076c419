"""Averages over rows and columns, the rule of EmoAiry."""

import torch
from torch import Tensor

from emo_torch._pieces.shadow_effect import row_and_column_means
from emo_torch._rules.adam import multi_tensor_scale_by_uncorrected_adam, scale_by_uncorrected_adam
from emo_torch._rules.moments import average, multi_tensor_average
from emo_torch._sharded import redistribute_like, zeros_for_mean


def scale_by_factors(
    grad: Tensor, row: Tensor, column: Tensor, *, b1: float = 0.9, eps: float = 1e-8
) -> Tensor:
    r"""Rescales by averages over rows and columns, the rule of EmoAiry for 2 or more dimensions.

    With means that keep dimensions:

    .. math::
        R &= \operatorname{mean}_{\text{all but first}} g^2 + \epsilon, \quad
        C = \operatorname{mean}_{\text{first}} g^2 + \epsilon \\
        r &\leftarrow b_1 r + (1-b_1)\sqrt{R}, \quad c \leftarrow b_1 c + (1-b_1)\sqrt{C}, \quad
        u = \frac{g}{\sqrt{r c} + \epsilon}

    The factors start at 0 and are not corrected: the first step is 10 times as long as the later
    ones. For 0 or 1 dimensions EmoAiry's rule is `scale_by_uncorrected_adam`.

    Args:
        grad: the gradient, of 2 or more dimensions, float32 or wider.
        row: the average over all axes but the first, shape `[n, 1, ...]`; moved in place.
        column: the average over the first axis, shape `[1, ...]`; moved in place.
        b1: decay rate of the factors, in [0, 1).
        eps: the number added to the means and to the root, >= 0.

    Returns:
        The update, in the gradient's shape and dtype.

    Example:
        >>> import torch
        >>> from emo_torch import scale_by_factors
        >>> print(scale_by_factors(torch.ones(2, 3), torch.zeros(2, 1), torch.zeros(1, 3)))
        tensor([[10.0000, 10.0000, 10.0000],
                [10.0000, 10.0000, 10.0000]])

    Source: EmoAiry v2.0 by muooon; Shazeer and Stern, 2018, for the factors.
    """
    if grad.numel() == 0:  # A mean over nothing is NaN: an empty tensor's factors rest.
        return torch.zeros_like(grad)
    row_mean, column_mean = row_and_column_means(grad.square())
    average(row, (row_mean + eps).sqrt_(), b1)
    average(column, (column_mean + eps).sqrt_(), b1)
    return grad / redistribute_like(row * column, grad).sqrt_().add_(eps)


def multi_tensor_scale_by_factors(
    grads: list[Tensor],
    rows: list[Tensor],
    columns: list[Tensor],
    *,
    b1: float = 0.9,
    eps: float = 1e-8,
) -> list[Tensor]:
    """Like `scale_by_factors`, for many tensors of one device and dtype."""
    # Means are computed for each tensor: there is no multi-tensor mean over an axis.
    filled = [index for index, grad in enumerate(grads) if grad.numel() > 0]
    means = [row_and_column_means(grads[index].square()) for index in filled]
    for factors, axis in ((rows, 0), (columns, 1)) if filled else ():
        roots = [pair[axis] for pair in means]
        torch._foreach_add_(roots, eps)
        torch._foreach_sqrt_(roots)
        multi_tensor_average([factors[index] for index in filled], roots, b1)
    denominators = [
        redistribute_like(row * column, grad)
        for row, column, grad in zip(rows, columns, grads, strict=True)
    ]
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, eps)
    return list(torch._foreach_div(grads, denominators))


def init_factored_moments(param: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns the moments of `scale_by_factored_moments` for a parameter that has seen no gradient."""
    if param.ndim < 2:
        return {name: torch.zeros_like(param, dtype=dtype) for name in ("exp_avg", "exp_avg_sq")}
    row = zeros_for_mean(param, tuple(range(1, param.ndim)), dtype)
    return {"row": row, "column": zeros_for_mean(param, (0,), dtype)}


def scale_by_factored_moments(
    grad: Tensor, moments: dict[str, Tensor], *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> Tensor:
    """Rescales by factors or, below 2 dimensions, by Adam's moments: the rule of EmoAiry.

    Args:
        grad: the gradient, any shape, float32 or wider.
        moments: `"row"` and `"column"` (see `scale_by_factors`), or `"exp_avg"` and `"exp_avg_sq"` (see
            `scale_by_uncorrected_adam`); moved in place.
        b1: decay rate of the factors, and of the vectors' first moment, in [0, 1).
        b2: decay rate of the vectors' second moment, in [0, 1).
        eps: the number added to the means and to the root, >= 0.

    Returns:
        The update, in the gradient's shape and dtype.

    Example:
        >>> import torch
        >>> from emo_torch import scale_by_factored_moments
        >>> moments = {"exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}
        >>> print(scale_by_factored_moments(torch.tensor([2.0]), moments))
        tensor([3.1623])

    Source: EmoAiry v2.0 by muooon.
    """
    if grad.ndim >= 2:
        return scale_by_factors(grad, moments["row"], moments["column"], b1=b1, eps=eps)
    return scale_by_uncorrected_adam(grad, moments["exp_avg"], moments["exp_avg_sq"], b1=b1, b2=b2, eps=eps)


def multi_tensor_scale_by_factored_moments(
    grads: list[Tensor],
    moments: list[dict[str, Tensor]],
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> list[Tensor]:
    """Like `scale_by_factored_moments`, for many tensors of one device and dtype."""
    updates: dict[int, Tensor] = {}
    matrices = [index for index, grad in enumerate(grads) if grad.ndim >= 2]
    vectors = [index for index, grad in enumerate(grads) if grad.ndim < 2]
    if matrices:
        rows = [moments[index]["row"] for index in matrices]
        columns = [moments[index]["column"] for index in matrices]
        scaled = multi_tensor_scale_by_factors(
            [grads[index] for index in matrices], rows, columns, b1=b1, eps=eps
        )
        updates.update(zip(matrices, scaled, strict=True))
    if vectors:
        exp_avgs = [moments[index]["exp_avg"] for index in vectors]
        exp_avg_sqs = [moments[index]["exp_avg_sq"] for index in vectors]
        scaled = multi_tensor_scale_by_uncorrected_adam(
            [grads[index] for index in vectors], exp_avgs, exp_avg_sqs, b1=b1, b2=b2, eps=eps
        )
        updates.update(zip(vectors, scaled, strict=True))
    return [updates[index] for index in range(len(grads))]
