"""A gate on the norm of the gradient: an extreme gradient is cut to the usual size."""

import torch
from torch import Tensor


def gate(norm: Tensor, average: Tensor, step: Tensor, limit: float = 2.5) -> tuple[Tensor, Tensor]:
    r"""Returns the factor for the gradient, and the new running average of its norm.

    .. math::
        f &= \min(1,\, limit\,N / n) \\
        N &\leftarrow N + \max(0.05,\, 1/t)\,(f\,n - N), \qquad N = n \text{ at } t = 1

    An average of 0 gates nothing: a run may begin with gradients of 0.

    Args:
        norm: n, the norm of the whole gradient; finite, >= 0, shape `[]`.
        average: N, the running average of norms, shape `[]`.
        step: t, the number of this step, counted from 1, an integer tensor of shape `[]`.
        limit: how many times the average a norm may be, > 0.

    Returns:
        The factor f in [0, 1] and the average after this step, each of shape `[]`.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> factor, average = emo_torch.gate(torch.tensor(100.0), torch.tensor(1.0), torch.tensor(10))
        >>> print(f"{factor:.3f} {average:.2f}")
        0.025 1.15

    Source: ours (EmoPilot), after ZClip (arXiv 2504.02507) and AdaGC (arXiv 2502.11034).
    """
    most = limit * average
    is_cut = (norm > most) & (average > 0.0) & (step > 1)
    passed = torch.where(is_cut, most, norm)
    factor = torch.where(is_cut, most / norm, torch.ones_like(norm))
    rate = (1.0 / step.to(norm.dtype)).clamp(min=0.05)
    return factor, torch.where(step == 1, norm, average + rate * (passed - average))
