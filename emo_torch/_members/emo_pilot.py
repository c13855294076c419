"""EmoPilot: Adam's direction, with a step length that the losses and gradients steer."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from emo_torch._members.options import options_of
from emo_torch._pieces.replicas import LossGroup
from emo_torch._pieces.rounding import Rounding
from emo_torch._pieces.weight_decay import WeightDecayMode
from emo_torch._rules.family_rules import PILOT
from emo_torch._rules.recipe import Recipe
from emo_torch._step.piloted import PilotedOptimizer


class EmoPilot(PilotedOptimizer):
    r"""Steps in Adam's direction, with a step length that the losses and the gradients steer.

    .. math::
        g &\leftarrow g\,\min(1,\, 2.5\,N / \lVert g \rVert) \\
        k &\leftarrow \text{courage}(k, a, s), \qquad
            a \leftarrow \frac{\langle g,\, m_{prev} \rangle}{\lVert g \rVert\,\lVert m_{prev} \rVert} \\
        u &= \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon} \\
        p &\leftarrow p - \eta_p\,(u + wd\,p), \qquad
            \eta_p = k\,\min\bigl(\eta,\, 0.08\,\min(0.1, \max(0.02, \mathrm{RMS}(p)))\bigr) \\
        A &\leftarrow A + \min\bigl(1,\, \tfrac{9}{t+8}\bigr)\,(p - A)

    N is the running average of the gradient's norm (see `gate`), s the scale-free emotion (see
    `feel_relative`), k the courage (see `move_courage`), a the agreement, which moves the courage of the
    next step, RMS the root of the mean square of one parameter. Train on p; `eval()` puts A into the
    parameters, `train()` takes A out again. A step whose loss or gradient is not finite is skipped: nothing
    moves, and no state changes. So is a step whose learning rate in a tensor is not finite.

    The learning rate is a start, not a tuned value: a warm-up brings a smaller one to the usual step
    within about 20 steps (see `move_courage`), unless `max_courage` forbids it. A schedule multiplies the
    step by its learning rate over its largest learning rate so far; the results are best without a
    schedule.

    Change weights between two steps in place under `torch.no_grad()`, as `torch.nn.init` does. A write to a
    part of a parameter through `param.data` or NumPy can reach RMS(p) one step late in compiled code.

    Args:
        params: the parameters, or groups of parameters with their own options.
        lr: eta, a number >= 0 or a tensor of one element.
        betas: decay rates of the first and the second moment, each in [0, 1).
        eps: added to the root, >= 0.
        weight_decay: wd, >= 0.
        min_courage: the least courage, >= 0.
        max_courage: the largest courage, >= `min_courage`; with 1 (for fine-tuning) the learning rate in
            use is never above `lr`, and there is no warm-up.
        gate_limit: how many times its running average the norm of a gradient may be, >= 0.
        average: whether to keep the averaged weights A; without them the state is a third smaller.
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
        >>> optimizer = emo_torch.EmoPilot(model.parameters())
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

    Source: ours; nearest published: MoMo (arXiv 2305.07583), hypergradient descent (Baydin et al., 2018).
    """

    recipe = Recipe((PILOT,), filter=None)

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
