"""EmoNeco: a cautious sign, or a softened momentum where 0.2 < |s| <= 0.5."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from emo_torch._members.options import options_of
from emo_torch._pieces.replicas import LossGroup
from emo_torch._pieces.rounding import Rounding
from emo_torch._pieces.shadow_system import ShadowRatio
from emo_torch._pieces.weight_decay import WeightDecayMode
from emo_torch._rules.family_rules import CAUTIOUS_SIGN, SOFTSIGN
from emo_torch._rules.recipe import Recipe
from emo_torch._step.emo_optimizer import EmoOptimizer


def choose_rule(scalar: Tensor) -> Tensor:
    """Returns 1 (softsign) for a scalar of a size in (0.2, 0.5], else 0 (cautious sign)."""
    size = scalar.abs()
    return ((size > 0.2) & (size <= 0.5)).long()


class EmoNeco(EmoOptimizer):
    r"""Steps by the cautious sign of a momentum, or by the softened momentum where `0.2 < |s| <= 0.5`.

    .. math::
        s &= \tanh(5\,(short - long)) \\
        p &\leftarrow p - \eta\,wd\,p \\
        w &= (1-b_1)\,g + b_1 m \\
        p &\leftarrow p - \eta \begin{cases}
            \frac{w}{1 + |w|}\,(\lVert g \rVert_2 + \epsilon) & 0.2 < |s| \le 0.5 \\
            \operatorname{sign}(w)\,[\,\operatorname{sign}(w) = \operatorname{sign}(g)\,] & \text{else}
        \end{cases} \\
        m &\leftarrow b_2 m + (1-b_2)\,g

    The norm is taken over each whole parameter, so the softened step grows with the parameter's size.

    Args:
        params: the parameters, or groups of parameters with their own options.
        lr: eta, a number >= 0 or a tensor of one element.
        betas: decay rates of the interpolation and of the momentum, each in [0, 1).
        eps: the number added to the norm, >= 0.
        weight_decay: wd, >= 0.
        decoupled_weight_decay: whether to divide wd by the lr that the optimizer is made with, which
            must not be 0.
        use_shadow: whether to pull the weights back to their shadow (see `blend_with_shadow`).
        shadow_ratio: r(s): "v2.0", "v1.0", or a function from a scalar tensor to a ratio in [0, 1].
        shadow_rate: how far the shadow follows the parameters, in (0, 1].
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: the factor of the difference of the averages, per unit of the loss, >= 0.
        weight_decay_mode: "decoupled" (p - eta wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the moments' floating-point dtype; `None` for the parameters' dtype, float32 at least;
            "8bit" for codes of 8 bits (see `docs/low_precision.md`).
        rounding: how a step is rounded into parameters below float32: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        maximize: whether to maximize the loss; the sign of the given loss is turned, too.
        foreach: whether to step with all tensors at once; `None` for the choice of torch.optim.
        capturable: whether a step may become part of a CUDA graph; the loss is a tensor then.
        fused: whether to step in compiled code, which takes dense tensors of float32, float64, bfloat16
            and float16 on the CPU, and of all but float16 on CUDA, by Triton; `None`: yes on the CPU, if
            possible and if `foreach` is `None`.
        process_group: the processes over which the loss is averaged, so that replicas take the same steps:
            `None` for all processes, `False` for this process alone.

    Raises:
        ValueError: for a hyperparameter out of its range.
        RuntimeError: for `fused=True` if compiled code cannot take the step.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = emo_torch.EmoNeco(model.parameters(), lr=1e-2)
        >>> losses = []
        >>> for _ in range(30):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     losses.append(optimizer.step(loss=loss).item())
        >>> losses[-1] < losses[0]
        True

    Source: EmoNeco v2.0 by muooon.
    """

    recipe = Recipe((CAUTIOUS_SIGN, SOFTSIGN), choose_rule, filter=None, title="cautious_sign_or_softsign")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        decoupled_weight_decay: bool = False,
        use_shadow: bool = False,
        shadow_ratio: ShadowRatio = "v2.0",
        shadow_rate: float = 0.05,
        short_factor: float = 0.3,
        long_factor: float = 0.01,
        gain: float = 5.0,
        weight_decay_mode: WeightDecayMode = "decoupled",
        moment_dtype: torch.dtype | Literal["8bit"] | None = None,
        rounding: Rounding = "nearest",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        process_group: LossGroup = None,
    ) -> None:
        super().__init__(params, options_of(locals()), process_group=process_group)
