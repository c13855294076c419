"""EmoZeal: row and column averages, and a first step where |s| > 0.1."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from emo_torch._members.options import options_of
from emo_torch._pieces.replicas import LossGroup
from emo_torch._pieces.rounding import Rounding
from emo_torch._pieces.shadow_system import ShadowRatio
from emo_torch._pieces.weight_decay import WeightDecayMode
from emo_torch._rules.family_rules import CAUTIOUS_SIGN, FACTORS, NONE, SOFTSIGN
from emo_torch._rules.recipe import FirstStep, Recipe
from emo_torch._step.emo_optimizer import EmoOptimizer


def choose_first_step(scalar: Tensor) -> Tensor:
    """Returns 2 (sign) above 0.6, 1 (softsign) above 0.1, else 0 (none), for the size of a scalar."""
    size = scalar.abs()
    return (size > 0.1).long() + (size > 0.6).long()


class EmoZeal(EmoOptimizer):
    r"""Steps by averages over rows and columns, after a first step by sign or softsign where `|s| > 0.1`.

    For 2 or more dimensions, with :math:`w = (1-b_1)\,g`:

    .. math::
        s &= \tanh(5\,(short - long)) \\
        p &\leftarrow p - \eta \begin{cases}
            \operatorname{sign}(w) & |s| > 0.6 \\
            \frac{w}{1 + |w|}\,(\lVert g \rVert_2 + \epsilon) & 0.1 < |s| \le 0.6 \\
            0 & |s| \le 0.1
        \end{cases} \\
        p &\leftarrow p - \eta\,wd\,p \\
        r &\leftarrow b_1 r + (1-b_1)\sqrt{R}, \quad c \leftarrow b_1 c + (1-b_1)\sqrt{C} \\
        p &\leftarrow p - \eta\,\frac{g}{\sqrt{r c} + \epsilon}

    See `scale_by_factored_moments` for R, C and vectors, which have no first step. Where weight decay
    is "l2", :math:`g + wd\,p` takes the place of g in both steps, the first one and the factored one.
    The published first step has a momentum that stays 0, so the state keeps none.

    Args:
        params: the parameters, or groups of parameters with their own options.
        lr: eta, a number >= 0 or a tensor of one element.
        betas: decay rates, each in [0, 1): of the factors and of the vectors' first moment (1 - b1 of g is
            softened), and of the vectors' second moment.
        eps: the number added to means, roots and the norm, >= 0.
        weight_decay: wd, >= 0.
        use_shadow: whether to pull the weights back to their shadow (see `blend_with_shadow`).
        shadow_ratio: r(s): "v2.0", "v1.0", or a function from a scalar tensor to a ratio in [0, 1].
        shadow_rate: how far the shadow follows the parameters, in (0, 1].
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: the factor of the difference of the averages, per unit of the loss, >= 0.
        weight_decay_mode: "decoupled" (p - eta wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the moments' floating-point dtype; `None` for the parameters' dtype, float32 at least.
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
        >>> optimizer = emo_torch.EmoZeal(model.parameters(), lr=1e-2)
        >>> losses = []
        >>> for _ in range(30):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     losses.append(optimizer.step(loss=loss).item())
        >>> losses[-1] < losses[0]
        True

    Source: EmoZeal v2.0 by muooon.
    """

    recipe = Recipe(
        (FACTORS,),
        filter=None,
        first=FirstStep((NONE, SOFTSIGN, CAUTIOUS_SIGN), choose_first_step, least_ndim=2),
        title="factored_moments_after_signs",
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        use_shadow: bool = False,
        shadow_ratio: ShadowRatio = "v2.0",
        shadow_rate: float = 0.05,
        short_factor: float = 0.3,
        long_factor: float = 0.01,
        gain: float = 5.0,
        weight_decay_mode: WeightDecayMode = "decoupled",
        moment_dtype: torch.dtype | None = None,
        rounding: Rounding = "nearest",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        process_group: LossGroup = None,
    ) -> None:
        super().__init__(params, options_of(locals()), process_group=process_group)
