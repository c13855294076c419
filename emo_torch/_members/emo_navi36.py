"""EmoNavi v3.6.1: the moments of Adam, by emoDrive."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from emo_torch._members.options import options_of
from emo_torch._pieces.replicas import LossGroup
from emo_torch._pieces.rounding import Rounding
from emo_torch._pieces.weight_decay import WeightDecayMode
from emo_torch._rules.family_rules import ADAM
from emo_torch._rules.recipe import Recipe
from emo_torch._step.later_optimizers import DriveOptimizer


class EmoNavi36(DriveOptimizer):
    r"""Steps by the moments of Adam, times emoDrive: EmoNavi v3.6.1.

    .. math::
        s &= \tanh\left(\frac{long - short}{\max(long, 10^{-5})}\right) \\
        p &\leftarrow p - \eta\,wd\,p \\
        m &\leftarrow b_1 m + (1-b_1)\,g, \quad v \leftarrow b_2 v + (1-b_2)\,g^2 \\
        p &\leftarrow p - \eta\,e(s)\,\frac{m}{\sqrt{v} + \epsilon}

    `feel_drive` has the averages, and `drive_factor` the factor e of the update.

    Args:
        params: the parameters, or groups of parameters with their own options.
        lr: eta, a number >= 0 or a tensor of one element; 6e-5 is advised.
        betas: decay rates of the first and the second moment, each in [0, 1).
        eps: the number added to the root, >= 0.
        weight_decay: wd, >= 0.
        use_shadow: whether to pull the weights back to their shadow, by the rule of v3.6.1.
        weight_decay_mode: "decoupled" (p - eta wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the floating-point dtype of the moments; `None` for the parameters' dtype, float32 at
            least; "8bit" for codes of 8 bits (see `docs/low_precision.md`).
        rounding: how a step is rounded into parameters below float32: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        maximize: whether to maximize the loss; the sign of the given loss is turned, too.
        foreach: whether to step with all tensors at once; `None` for the choice of torch.optim.
        capturable: whether a step may become part of a CUDA graph; the loss is a tensor then.
        fused: whether to step in compiled code, as EmoSens does (on CUDA while `use_shadow` is off);
            `None`: yes on the CPU, if possible and if `foreach` is `None`.
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
        >>> optimizer = emo_torch.EmoNavi36(model.parameters(), lr=1e-3)
        >>> losses = []
        >>> for _ in range(30):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     losses.append(optimizer.step(loss=loss).item())
        >>> losses[-1] < losses[0]
        True

    Source: EmoNavi v3.6.1 by muooon.
    """

    recipe = Recipe((ADAM,), filter=None)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.995),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        use_shadow: bool = False,
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
