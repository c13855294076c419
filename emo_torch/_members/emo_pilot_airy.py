"""EmoPilotAiry: factors and a momentum in the place of Adam's moments, steered as EmoPilot steers."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from emo_torch._members.options import options_of
from emo_torch._pieces.replicas import LossGroup
from emo_torch._pieces.rounding import Rounding
from emo_torch._pieces.weight_decay import WeightDecayMode
from emo_torch._rules.family_rules import PILOT_FACTORS
from emo_torch._rules.recipe import Recipe
from emo_torch._step.piloted import PilotedOptimizer


class EmoPilotAiry(PilotedOptimizer):
    r"""Steps in Adafactor's direction with a momentum, as long as EmoPilot's scalars say.

    For 2 or more dimensions, with means that keep dimensions:

    .. math::
        R &\leftarrow b_2 R + (1-b_2) \operatorname{mean}_{\text{all but first}} g^2, \quad
            C \leftarrow b_2 C + (1-b_2) \operatorname{mean}_{\text{first}} g^2, \quad
            v = \frac{R\,C}{\operatorname{mean} R} \\
        u &= \frac{g}{\sqrt{v / (1 - b_2^t)} + \epsilon}, \qquad
            m \leftarrow m + (1-b_1)\Bigl(\frac{u}{\max(1, \mathrm{RMS}(u))} - m\Bigr) \\
        p &\leftarrow p - \eta_p\Bigl(\frac{m}{1 - b_1^t} + wd\,p\Bigr)

    For 0 or 1 dimensions v is the running average of :math:`g^2`. The gated gradient g, the step
    :math:`\eta_p`, the averaged weights A, `eval()` and `train()` are `EmoPilot`'s; the agreement is the
    cosine of the gradient and m. The state has two thirds of the size of `EmoPilot`'s.

    Args:
        params: the parameters, or groups of parameters with their own options.
        lr: eta, a number >= 0 or a tensor of one element.
        betas: decay rates of the momentum and of the second moment, each in [0, 1).
        eps: added to the root, >= 0.
        weight_decay: wd, >= 0.
        min_courage: the least courage, >= 0.
        max_courage: the largest courage, >= `min_courage`; with 1 (for fine-tuning) the learning rate in
            use is never above `lr`, and there is no warm-up.
        gate_limit: how many times its running average the norm of a gradient may be, >= 0.
        average: whether to keep the averaged weights A; without them the state is half as large.
        weight_decay_mode: "decoupled" (p - eta_p wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the floating-point dtype of the moments; `None` for the parameters' dtype, float32 at
            least.
        rounding: how a step is rounded into parameters below float32: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        maximize: whether to maximize the loss; the sign of the given loss is turned, too.
        foreach: whether to step with all tensors at once; `None` for the choice of torch.optim.
        capturable: whether a step may become part of a CUDA graph; the loss is a tensor then.
        fused: whether to step in compiled code, which takes dense tensors on the CPU; `None`: yes, if
            possible and if `foreach` is `None`.
        process_group: the processes over which the loss is averaged, so that replicas take the same steps:
            `None` for all processes, `False` for this process alone.

    Raises:
        ValueError: for a hyperparameter out of its range.
        RuntimeError: from `step`, in eval mode.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = emo_torch.EmoPilotAiry(model.parameters())
        >>> losses = []
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     losses.append(optimizer.step(loss=loss).item())
        >>> losses[-1] < 0.1 * losses[0]
        True
        >>> optimizer.eval()  # The model now holds the averaged weights.
        >>> optimizer.train()

    Source: ours; the direction is Adafactor's (Shazeer and Stern, 2018).
    """

    recipe = Recipe((PILOT_FACTORS,), filter=None)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        min_courage: float = 0.03,
        max_courage: float = 1000.0,
        gate_limit: float = 2.5,
        average: bool = True,
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
