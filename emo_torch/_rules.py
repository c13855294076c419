"""The rules: from a gradient to a direction. None knows of emotion or of a learning rate.

Each moves its moments in place and returns the update; `multi_tensor_...` does the same for many
tensors of one device and dtype.
"""

import torch
from torch import Tensor

from emo_torch._shadow_effect import row_and_column_means
from emo_torch._sharded import laid_like, whole, zeros_for_mean


def store(name: str, moment: Tensor, kept: Tensor) -> None:
    """Puts a moment, by its name, into the tensor that it is kept in, rounded to that dtype.

    float16 has little range: what is too much for it becomes the most that it has, and a square does
    not become 0, by which the first moment would be divided, where it was not.
    """
    if moment is kept:
        return
    if kept.dtype == torch.float16:
        most, least = 65504.0, 2.0**-24
        moment = moment.clamp(-most, most)
        if name.endswith("exp_avg_sq"):
            moment = torch.where(moment > 0.0, moment.clamp(min=least), moment)
    kept.copy_(moment)


def _average(moment: Tensor, value: Tensor, decay: float) -> None:
    """Sets a moment to `decay moment + (1 - decay) value`."""
    moment.mul_(decay).add_(value, alpha=1.0 - decay)


def _multi_tensor_average(moments: list[Tensor], values: list[Tensor], decay: float) -> None:
    torch._foreach_mul_(moments, decay)
    torch._foreach_add_(moments, values, alpha=1.0 - decay)


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
        exp_avg_sq: the second moment, likewise.
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: what is added to the root, >= 0.

    Returns:
        The update, same shape and dtype.

    Example:
        >>> import torch
        >>> from emo_torch import scale_by_uncorrected_adam
        >>> print(scale_by_uncorrected_adam(torch.tensor([2.0]), torch.zeros(1), torch.zeros(1)))
        tensor([3.1623])

    Source: EmoSens v2.0 by muooon; Kingma and Ba, 2014.
    """
    _average(exp_avg, grad, b1)
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
    """Does what `scale_by_uncorrected_adam` does for many tensors of one device and dtype."""
    _multi_tensor_average(exp_avgs, grads, b1)
    torch._foreach_mul_(exp_avg_sqs, b2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=1.0 - b2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_add_(denominators, eps)
    return list(torch._foreach_div(exp_avgs, denominators))


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
    _average(exp_avg, grad, b2)
    return update


def multi_tensor_scale_by_lion(
    grads: list[Tensor], exp_avgs: list[Tensor], *, b1: float = 0.9, b2: float = 0.99
) -> list[Tensor]:
    """Does what `scale_by_lion` does for many tensors of one device and dtype."""
    updates = list(torch._foreach_mul(exp_avgs, b1))
    torch._foreach_add_(updates, grads, alpha=1.0 - b1)
    torch._foreach_sign_(updates)
    _multi_tensor_average(exp_avgs, grads, b2)
    return updates


def scale_by_cautious_sign(
    grad: Tensor, exp_avg: Tensor | None, *, b1: float = 0.9, b2: float = 0.99
) -> Tensor:
    r"""Takes the sign of an interpolated momentum where the gradient has the same, a rule of EmoNeco.

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
    sign = _interpolate(grad, exp_avg, b1, b2).sign_()
    return sign.mul_(sign == grad.sign())


def multi_tensor_scale_by_cautious_sign(
    grads: list[Tensor], exp_avgs: list[Tensor] | None, *, b1: float = 0.9, b2: float = 0.99
) -> list[Tensor]:
    """Does what `scale_by_cautious_sign` does for many tensors of one device and dtype."""
    updates = _multi_tensor_interpolate(grads, exp_avgs, b1, b2)
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

    The norm is that of the whole parameter, so the step grows with the parameter's size.

    Args:
        grad: the gradient, any shape, float32 or wider.
        exp_avg: the momentum, same shape and dtype, moved in place; `None` for none: m stays 0.
        b1: decay rate of the interpolation, in [0, 1).
        b2: decay rate of the momentum, in [0, 1).
        eps: what is added to the norm, >= 0.

    Returns:
        The update, same shape and dtype.

    Example:
        >>> import torch
        >>> from emo_torch import scale_by_softsign
        >>> print(scale_by_softsign(torch.tensor([30.0, -40.0]), torch.zeros(2)))
        tensor([ 37.5000, -40.0000])

    Source: EmoNeco v2.0 by muooon.
    """
    mixed = _interpolate(grad, exp_avg, b1, b2)
    length = whole(torch.linalg.vector_norm(grad)) + eps
    return mixed.div_(1.0 + mixed.abs()).mul_(length)


def multi_tensor_scale_by_softsign(
    grads: list[Tensor],
    exp_avgs: list[Tensor] | None,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-8,
) -> list[Tensor]:
    """Does what `scale_by_softsign` does for many tensors of one device and dtype."""
    updates = _multi_tensor_interpolate(grads, exp_avgs, b1, b2)
    denominators = torch._foreach_abs(updates)
    torch._foreach_add_(denominators, 1.0)
    torch._foreach_div_(updates, denominators)
    lengths = [whole(norm) for norm in torch._foreach_norm(grads)]
    torch._foreach_add_(lengths, eps)
    torch._foreach_mul_(updates, lengths)
    return updates


def _interpolate(grad: Tensor, exp_avg: Tensor | None, b1: float, b2: float) -> Tensor:
    """Returns `(1 - b1) grad + b1 exp_avg`, and moves the momentum by `b2`."""
    if exp_avg is None:
        return grad * (1.0 - b1)
    mixed = exp_avg.mul(b1).add_(grad, alpha=1.0 - b1)
    _average(exp_avg, grad, b2)
    return mixed


def _multi_tensor_interpolate(
    grads: list[Tensor], exp_avgs: list[Tensor] | None, b1: float, b2: float
) -> list[Tensor]:
    if exp_avgs is None:
        return list(torch._foreach_mul(grads, 1.0 - b1))
    mixed = list(torch._foreach_mul(exp_avgs, b1))
    torch._foreach_add_(mixed, grads, alpha=1.0 - b1)
    _multi_tensor_average(exp_avgs, grads, b2)
    return mixed


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
        eps: what is added to the means and to the root, >= 0.

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
    _average(row, (row_mean + eps).sqrt_(), b1)
    _average(column, (column_mean + eps).sqrt_(), b1)
    return grad / laid_like(row * column, grad).sqrt_().add_(eps)


def multi_tensor_scale_by_factors(
    grads: list[Tensor],
    rows: list[Tensor],
    columns: list[Tensor],
    *,
    b1: float = 0.9,
    eps: float = 1e-8,
) -> list[Tensor]:
    """Does what `scale_by_factors` does for many tensors of one device and dtype."""
    # Each shape wants means of its own: there is no multi-tensor mean over an axis.
    filled = [index for index, grad in enumerate(grads) if grad.numel() > 0]
    means = [row_and_column_means(grads[index].square()) for index in filled]
    for factors, axis in ((rows, 0), (columns, 1)) if filled else ():
        roots = [pair[axis] for pair in means]
        torch._foreach_add_(roots, eps)
        torch._foreach_sqrt_(roots)
        _multi_tensor_average([factors[index] for index in filled], roots, b1)
    denominators = [
        laid_like(row * column, grad) for row, column, grad in zip(rows, columns, grads, strict=True)
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
        eps: what is added to the means and to the root, >= 0.

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
    """Does what `scale_by_factored_moments` does for many tensors of one device and dtype."""
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
