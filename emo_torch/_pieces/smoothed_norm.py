"""The learning rate of one tensor, from the smoothed norm of its gradients."""

import torch
from torch import Tensor

NO_NORM = -1.0
"""The value of a smoothed norm before the first norm."""


def smooth_norm(before: Tensor, norm: Tensor, schedulefree_alpha: float = 0.05) -> Tensor:
    r"""Averages the norm of a tensor's gradients.

    .. math:: e \leftarrow (1-A)\,e + A\,\lVert g \rVert_2

    Args:
        before: e, shape `[]`; below 0 where there was no norm yet, and then e starts at `norm`.
        norm: the norm of this step, shape `[]`, same dtype; where it is not finite, e stays.
        schedulefree_alpha: A, in (0, 1].

    Returns:
        The new e, shape `[]`.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> e = emo_torch.smooth_norm(torch.tensor(-1.0), torch.tensor(2.0))
        >>> print(f"{emo_torch.smooth_norm(e, torch.tensor(4.0)):.2f}")
        2.10

    Source: RefAdamWMiniScheduleFree by muooon.
    """
    smoothed = (1.0 - schedulefree_alpha) * before + schedulefree_alpha * norm
    return torch.where(norm.isfinite(), torch.where(before < 0.0, norm, smoothed), before)


def learning_rate_from_norm(
    lr: float | Tensor, smoothed: Tensor, norm: Tensor, *, min_lr: float = 1e-6, max_lr: float = 1e-2
) -> Tensor:
    r"""Lengthens the steps where a gradient is smaller than usual, and shortens them where it is larger.

    .. math:: \eta' = \max(\min(\eta_{max}, \frac{\eta\,e}{\lVert g \rVert_2 + 10^{-12}}), \eta_{min})

    A gradient of zeros takes the largest learning rate, or the least one where all were zeros so far. A
    learning rate of 0 stays 0.

    Args:
        lr: eta, >= 0.
        smoothed: e, shape `[]`; not float16, in which 1e-12 is 0.
        norm: the norm of this step's gradient, shape `[]`, same dtype.
        min_lr: the least learning rate, >= 0.
        max_lr: the largest learning rate of a tensor, >= `min_lr`.

    Returns:
        The learning rate of this tensor and step, shape `[]`.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> print(f"{emo_torch.learning_rate_from_norm(1e-3, torch.tensor(2.0), torch.tensor(1.0)):.4f}")
        0.0020

    Source: RefAdamWMiniScheduleFree by muooon.
    """
    rate = (lr * smoothed / (norm + 1e-12)).clamp(min=min_lr, max=max_lr)
    return rate * (lr > 0.0)
