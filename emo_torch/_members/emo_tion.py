"""EmoTion v3.9.1: the sign of a momentum that moves faster where the weights move."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from emo_torch._members.options import options_of
from emo_torch._pieces.pulse import LossUnit
from emo_torch._pieces.replicas import LossGroup
from emo_torch._pieces.rounding import Rounding
from emo_torch._pieces.weight_decay import WeightDecayMode
from emo_torch._rules.family_rules import FRESH_SIGN
from emo_torch._rules.recipe import Recipe
from emo_torch._step.later_optimizers import FreshOptimizer


class EmoTion(FreshOptimizer):
    r"""Steps by the sign of a momentum, with the pulse as the learning rate: EmoTion v3.9.1.

    .. math::
        G &= \sum \lVert p \rVert_1, \quad d = \frac{|G - G'|}{G' + 10^{-8}}, \quad
            f = \max(\tanh(d / 0.03),\; 1 - b_1), \quad G' \leftarrow G\,d \\
        m &\leftarrow (1 - (1-b_1) f)\,m + (1-b_1) f\,g \\
        p &\leftarrow p - pulse\,\operatorname{sign}(m)

    The first step has f = 1 and keeps G. The sum is over all parameters, in all groups, that need a
    gradient (see `sum_of_norms`). The published code sums over the first group alone.
    `feel_pulse` has the formulas of the pulse.

    Args:
        params: the parameters, or groups of parameters with their own options.
        lr: the scope S of the pulse, a number >= 0 or a tensor of one element; the learning rate of each
            step is the pulse (see `pulse`), about 1e-4 S. The scope is never overwritten; a schedule may
            change it. A scope of 0 still makes a pulse of 1e-8, as published.
        betas: the decay rate of the momentum, and a number without effect, as published, each in [0, 1).
        eps: as published, >= 0; without effect.
        weight_decay: wd, >= 0; the published code ignores it.
        stopcoef: the bound of the stop signal on the medium average of the loss, >= 0.
        use_shadow: whether to pull the weights back to their shadow, by the rule of v3.9.1.
        steady: whether a loss above its trend may only lower the pulse; an addition of this package, as are
            `spike_limit` and `loss_unit` (see `feel_pulse`).
        spike_limit: how many times the old short average a loss counts at most, > 1; `None` for no limit.
        loss_unit: the unit of the loss, a number > 0 or "first" for the size of the first loss; `None` as
            published.
        notify: whether to log the stop signal once, by the logger "emo_torch"; every step then waits for
            the device.
        weight_decay_mode: "decoupled" (p - pulse wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the floating-point dtype of the moments; `None` for the parameters' dtype, float32 at
            least; "8bit" for codes of 8 bits (see `docs/low_precision.md`).
        rounding: how a step is rounded into parameters below float32: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        maximize: whether to maximize the loss; the sign of the given loss is turned, too.
        foreach: whether to step with all tensors at once; `None` for the choice of torch.optim.
        capturable: whether a step may become part of a CUDA graph; the loss is a tensor then.
        fused: whether to step in compiled code, which takes dense tensors of float32, float64, bfloat16
            and float16 on the CPU; `None`: yes, if possible and if `foreach` is `None`.
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
        >>> optimizer = emo_torch.EmoTion(model.parameters(), lr=10.0)
        >>> losses = []
        >>> for _ in range(30):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     losses.append(optimizer.step(loss=loss).item())
        >>> losses[-1] < losses[0]
        True

    Source: EmoTion v3.9.1 by muooon.
    """

    recipe = Recipe((FRESH_SIGN,), filter=None)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.995),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        stopcoef: float = 0.04,
        use_shadow: bool = False,
        steady: bool = False,
        spike_limit: float | None = None,
        loss_unit: LossUnit = None,
        notify: bool = False,
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
