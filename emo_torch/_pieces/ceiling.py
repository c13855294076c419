"""A ceiling on the step of a parameter, from the size of its elements."""

import torch
from torch import Tensor

LEAST_CEILING = 0.0016 * (1.0 - 1e-6)
"""A number just below the least ceiling: a learning rate of at most this number has no ceiling."""


def step_ceiling(mean_square: Tensor) -> Tensor:
    r"""Returns the largest step of a parameter whose direction has elements of about 1.

    .. math:: C = 0.08\,\min\bigl(0.1,\, \max(0.02,\, \mathrm{RMS}(p))\bigr)

    Args:
        mean_square: the mean of the squared elements of the parameter, >= 0, shape `[]`.

    Returns:
        The ceiling C, in [0.0016, 0.008], shape `[]`.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> for size in (0.0, 0.05, 1.0):
        ...     print(f"{emo_torch.step_ceiling(torch.tensor(size**2)):.4f}")
        0.0016
        0.0040
        0.0080

    Source: ours (EmoPilot), after Adafactor (Shazeer and Stern, 2018), LARS and LAMB (You et al.).
    """
    return 0.08 * torch.sqrt(mean_square).clamp(0.02, 0.1)
