"""The signal that training has gone quiet. It stops nothing by itself."""

from torch import Tensor

WINDOW = 32
"""The number of the last scalars, one a step, that the signal reads."""


def went_quiet(
    history: Tensor,
    felt: Tensor,
    *,
    mean_below: float = 0.05,
    variance_below: float = 0.005,
) -> Tensor:
    r"""Returns whether the emotion has been close to 0, and steady, over the last 32 losses.

    .. math::
        \frac{1}{32} \sum_i |s_i| < 0.05 \quad\text{and}\quad
        \frac{1}{32} \sum_i (s_i - \bar{s})^2 < 0.005

    Args:
        history: the last 32 scalars, oldest first; shape `[32]`, floating point, each in [-1, 1].
        felt: how many losses have been felt; shape `[]`, integer. Below 32 the result is false.
        mean_below: the bound on the mean of the absolute scalars, in (0, 1].
        variance_below: the bound on their variance (over 32, not 31), in (0, 1].

    Returns:
        A boolean tensor of shape `[]`.

    Example:
        >>> import torch
        >>> from emo_torch import went_quiet
        >>> print(went_quiet(torch.full((32,), 0.01), torch.tensor(32)))
        tensor(True)
        >>> print(went_quiet(torch.full((32,), 0.01), torch.tensor(31)))
        tensor(False)

    Source: the early-stop notice of EmoNavi and EmoSens v2.0, with a window of 32 steps; the
    published code appends once per parameter tensor.
    """
    mean = history.abs().mean()
    variance = (history - history.mean()).square().mean()
    return (felt >= WINDOW) & (mean < mean_below) & (variance < variance_below)
