"""Shadow-effect: before the update, which elements to move, and how far."""

from collections.abc import Callable

import torch
from torch import Tensor

from emo_torch._sharded import mean, redistribute_like

Keep = Callable[[Tensor, Tensor], Tensor]
"""A gradient and the tolerance theta (1 + |s|), a scalar of its dtype, to the elements that move."""


def keep_elements(gradient: Tensor, tolerance: Tensor) -> Tensor:
    r"""Keeps an element where its gradient is not negligible.

    .. math:: |g|^{1/3} \ge \theta\,(1 + |s|)

    Args:
        gradient: the gradient of one parameter, any shape, floating point.
        tolerance: theta (1 + |s|), shape `[]`, same dtype.

    Returns:
        Booleans in the gradient's shape.

    Example:
        >>> import torch
        >>> from emo_torch import keep_elements
        >>> print(keep_elements(torch.tensor([0.0, 1e-13, 2e-12]), torch.tensor(1e-4)))
        tensor([False, False,  True])

    Source: EmoSens and EmoCats v2.0 by muooon, with the cube on the other side, which saves a root
    for every element.
    """
    return gradient.abs() >= tolerance * tolerance * tolerance


def keep_rows_and_columns(eps: float = 1e-8) -> Keep:
    r"""Makes a test that keeps whole rows and columns, or an element of a vector.

    .. math::
        R^{1/3} > \theta\,(1+|s|) \text{ and } C^{1/3} > \theta\,(1+|s|), \qquad
        R = \operatorname{mean}_{\text{all but first}} g^2 + \epsilon, \quad
        C = \operatorname{mean}_{\text{first}} g^2 + \epsilon

    With 0 or 1 dimensions it is :math:`(g^2)^{1/3} > \theta\,(1+|s|)`. With the default `eps` and
    `theta` the test of rows and columns never fails: :math:`(10^{-8})^{1/3} = 2.2 \cdot 10^{-3}`.

    Args:
        eps: the number added to the means, >= 0.

    Returns:
        A function of a gradient and of the tolerance, for `filter_by_emotion`.

    Example:
        >>> import torch
        >>> from emo_torch import keep_rows_and_columns
        >>> keep = keep_rows_and_columns(eps=0.0)
        >>> print(keep(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor(1e-4)))
        tensor([[False,  True],
                [False,  True]])

    Source: EmoAiry v2.0 by muooon.
    """
    return _KeepRowsAndColumns(eps)


class _KeepRowsAndColumns:
    """The test that `keep_rows_and_columns` makes.

    Not a frozen dataclass, and without its own `__eq__` and `__hash__`: torch.compile of PyTorch 2.11
    and 2.12 fails where traced code makes such an object and does not read its fields.
    """

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def __repr__(self) -> str:
        return f"keep_rows_and_columns(eps={self.eps})"

    def __call__(self, gradient: Tensor, tolerance: Tensor) -> Tensor:
        if gradient.ndim < 2:
            return gradient.abs() > tolerance * tolerance.sqrt()
        if gradient.numel() == 0:
            return torch.zeros_like(gradient, dtype=torch.bool)
        rows, columns = row_and_column_means(gradient.square())
        bound = tolerance * tolerance * tolerance
        return redistribute_like((rows + self.eps > bound) & (columns + self.eps > bound), gradient)

    def keeps_all(self, gradient: Tensor, theta: float) -> bool:
        """Returns whether all elements move whatever the gradient and the emotion are.

        A mean is at least 0, and the tolerance at most 2 theta; the thousandth is for roundings.
        """
        return gradient.ndim >= 2 and self.eps > 1.001 * (2.0 * theta) ** 3


def keeps_all(keep: Keep, gradient: Tensor, theta: float) -> bool:
    """Returns whether a test is known to keep all of a gradient, so that it need not be made."""
    return isinstance(keep, _KeepRowsAndColumns) and keep.keeps_all(gradient, theta)


def row_and_column_means(squares: Tensor) -> tuple[Tensor, Tensor]:
    """Returns means over all axes but the first, and over the first, with dimensions kept."""
    return mean(squares, tuple(range(1, squares.ndim))), mean(squares, (0,))


def filter_by_emotion(update: Tensor, gradient: Tensor, tolerance: Tensor, keep: Keep) -> Tensor:
    r"""Lets an update through only where the gradient is not negligible.

    .. math:: u \leftarrow u \cdot [\,|g|^{1/3} \ge \theta\,(1+|s|)\,]

    With the default `theta` only elements under 1e-12 to 8e-12 in size are stopped: in float32 that
    is, in practice, exact zeros.

    Args:
        update: the update of one parameter, any shape, floating point.
        gradient: its gradient, same shape and dtype.
        tolerance: theta (1 + |s|), shape `[]`, same dtype.
        keep: which elements move, `keep_elements` or `keep_rows_and_columns(eps)`.

    Returns:
        The update, 0 where it is stopped.

    Example:
        >>> import torch
        >>> from emo_torch import filter_by_emotion, keep_elements
        >>> update, gradient = torch.ones(2), torch.tensor([1.0, 0.0])
        >>> print(filter_by_emotion(update, gradient, torch.tensor(1e-4), keep_elements))
        tensor([1., 0.])

    Source: EmoSens v2.0 by muooon.
    """
    return torch.where(
        keep(gradient, tolerance), update, torch.zeros((), dtype=update.dtype, device=update.device)
    )


def step_scale(scalar: Tensor) -> Tensor:
    """Returns 1 - |s|, the factor of a step, for an emotion scalar in [-1, 1].

    Args:
        scalar: the emotion scalar s in [-1, 1], a floating-point tensor of any shape.

    Example:
        >>> import torch
        >>> from emo_torch import step_scale
        >>> print(step_scale(torch.tensor(-0.75)))
        tensor(0.2500)
    """
    return 1.0 - scalar.abs()
