"""EmoAiry: row and column averages in place of second moments, steered by emotion."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from emo_torch._emotional import (
    EmoOptimizer,
    Feeling,
    Group,
    State,
    Ways,
    fused,
    multi_tensor,
    single_tensor,
)
from emo_torch._fused import FusedRule, FusedStep
from emo_torch._replicas import LossGroup
from emo_torch._rules import (
    init_factored_moments,
    multi_tensor_scale_by_factored_moments,
    scale_by_factored_moments,
)
from emo_torch._shadow_effect import Keep, keep_rows_and_columns, keeps_all
from emo_torch._shadow_system import ShadowRatio


class EmoAiry(EmoOptimizer):
    r"""Steps by the gradient over its rows' and columns' size, as far as the emotion allows.

    For 2 or more dimensions, with means that keep dimensions:

    .. math::
        s &= \tanh(5\,(short - long)) \\
        p &\leftarrow p - \eta\,wd\,p \\
        R &= \operatorname{mean}_{\text{all but first}} g^2 + \epsilon, \quad
        C = \operatorname{mean}_{\text{first}} g^2 + \epsilon \\
        r &\leftarrow b_1 r + (1-b_1)\sqrt{R}, \quad c \leftarrow b_1 c + (1-b_1)\sqrt{C} \\
        p &\leftarrow p - \eta\,(1-|s|)\,[\,R^{1/3}, C^{1/3} > \theta\,(1+|s|)\,]\,
            \frac{g}{\sqrt{r c} + \epsilon}

    For 0 or 1 dimensions: EmoSens' moments, where :math:`(g^2)^{1/3} > \theta\,(1+|s|)`.

    Args:
        params: the parameters, or groups of them, which may have options of their own.
        lr: eta, a number >= 0 or a tensor of one element.
        betas: decay rates, each in [0, 1): of the factors and the vectors' first moment, and of the
            vectors' second moment.
        eps: what is added to the means and to the root, >= 0; keeps steps small where gradients are
            below its root in size.
        weight_decay: wd, >= 0.
        use_shadow: whether to pull the weights back to their shadow (see `blend_with_shadow`).
        shadow_ratio: r(s): "v2.0", "v1.0", or a function from a scalar tensor to a ratio in [0, 1].
        shadow_rate: how far the shadow follows the parameters, in (0, 1].
        theta: the filter's threshold on the cube root of the gradient's size, >= 0; 0 for none.
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: what the difference of the averages is multiplied by, per unit of the loss, >= 0.
        weight_decay_mode: "decoupled" (p - eta wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the moments' floating-point dtype; `None` for the parameters', float32 at
            least.
        rounding: how parameters below float32 take on a step: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        maximize: whether to go up instead of down; the loss, too, turns its sign.
        foreach: whether to step with all tensors at once; `None` for what torch.optim would choose.
        capturable: whether a step may become part of a CUDA graph; the loss is a tensor then.
        fused: whether to step in compiled code, which takes dense float32 and float64 on the CPU, and
            bfloat16 too on CUDA, by Triton; `None` for yes on the CPU, where that can be and `foreach`
            says nothing.
        process_group: the processes over which the loss is averaged, so that replicas step alike:
            `None` for all of them, `False` for this one alone.

    Raises:
        ValueError: for a hyperparameter out of its range.
        RuntimeError: for `fused=True` where it cannot be.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = emo_torch.EmoAiry(model.parameters(), lr=1e-2)
        >>> losses = []
        >>> for _ in range(30):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     losses.append(optimizer.step(loss=loss).item())
        >>> losses[-1] < losses[0]
        True

    Source: EmoAiry v2.0 by muooon.
    """

    rule = "factored_moments"

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
        theta: float = 1e-4,
        short_factor: float = 0.3,
        long_factor: float = 0.01,
        gain: float = 5.0,
        weight_decay_mode: str = "decoupled",
        moment_dtype: torch.dtype | None = None,
        rounding: str = "nearest",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        process_group: LossGroup = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "weight_decay_mode": weight_decay_mode,
            "weight_decay_divisor": None,
            "use_shadow": use_shadow,
            "shadow_rate": shadow_rate,
            "theta": theta,
            "short_factor": short_factor,
            "long_factor": long_factor,
            "gain": gain,
            "moment_dtype": moment_dtype,
            "rounding": rounding,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "fused": fused,
        }
        super().__init__(params, defaults, shadow_ratio=shadow_ratio, process_group=process_group)

    def moment_names(self, param: Tensor) -> tuple[str, ...]:
        """Returns the names of a parameter's moments."""
        return ("row", "column") if param.ndim >= 2 else ("exp_avg", "exp_avg_sq")

    def init_moments(self, param: Tensor, dtype: torch.dtype) -> State:
        """Returns the moments of a parameter that has seen no gradient."""
        return init_factored_moments(param, dtype)

    def keep_of(self, group: Group) -> Keep:
        """Returns which elements the filter keeps in a group."""
        return keep_rows_and_columns(group["eps"])

    def step_tensors(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[State],
        *,
        feeling: Feeling,
        group: Group,
    ) -> None:
        """Moves those parameters of a group that have a gradient."""
        WAYS.step(params, grads, states, feeling=feeling, group=group, shadow_effect=self.shadow_effect)


def _single_tensor_emoairy(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    feeling: Feeling,
    group: Group,
    shadow_effect: bool = True,
) -> None:
    b1, b2 = group["betas"]

    def rule(grad: Tensor, moments: State) -> Tensor:
        return scale_by_factored_moments(grad, moments, b1=b1, b2=b2, eps=group["eps"])

    keep = keep_rows_and_columns(group["eps"])
    single_tensor(
        params,
        grads,
        states,
        rule,
        keep=keep,
        feeling=feeling,
        group=group,
        shadow_effect=shadow_effect,
    )


def _multi_tensor_emoairy(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    feeling: Feeling,
    group: Group,
    shadow_effect: bool = True,
) -> None:
    b1, b2 = group["betas"]

    def rule(grads: list[Tensor], moments: list[State]) -> list[Tensor]:
        return multi_tensor_scale_by_factored_moments(grads, moments, b1=b1, b2=b2, eps=group["eps"])

    keep = keep_rows_and_columns(group["eps"])
    multi_tensor(
        params,
        grads,
        states,
        rule,
        keep=keep,
        feeling=feeling,
        group=group,
        shadow_effect=shadow_effect,
    )


def _fused_emoairy(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    feeling: Feeling,
    group: Group,
    shadow_effect: bool = True,
) -> list[int]:
    rule = FusedRule("factored_moments", group["betas"], group["eps"])
    keep = keep_rows_and_columns(group["eps"])
    is_vacuous = shadow_effect and keeps_all(keep, torch.empty(0, 0), group["theta"])
    kept = "matrices" if is_vacuous else "rows_and_columns"
    what = FusedStep((rule,), kept if shadow_effect else "all")
    return fused(params, grads, states, what, feeling=feeling, group=group)


WAYS = Ways(_single_tensor_emoairy, _multi_tensor_emoairy, _fused_emoairy)
