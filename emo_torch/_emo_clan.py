"""EmoClan: the rule of EmoNavi, EmoFact or EmoLynx, whichever suits the emotion."""

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
    multi_tensor_scale_by_lion,
    multi_tensor_scale_by_uncorrected_adam,
    scale_by_factored_moments,
    scale_by_lion,
    scale_by_uncorrected_adam,
)
from emo_torch._shadow_system import ShadowRatio
from emo_torch._switch import multi_tensor_switch_by_emotion, switch_by_emotion

LION_BETAS = (0.9, 0.99)
"""The decay rates of Lion's rule here, whatever those of the others are."""


def choose_rule(scalar: Tensor) -> Tensor:
    """Returns 2 (Lion) above 0.6, 1 (factors) above 0.3, else 0 (Adam), for the size of a scalar."""
    size = scalar.abs()
    return (size > 0.3).long() + (size > 0.6).long()


class EmoClan(EmoOptimizer):
    r"""Steps by one of three rules, chosen by how strong the emotion is.

    .. math::
        s &= \tanh(5\,(short - long)) \\
        p &\leftarrow p - \eta\,wd\,p \\
        p &\leftarrow p - \eta\,u, \qquad u = \begin{cases}
            \text{lion}(g;\, 0.9,\, 0.99) & |s| > 0.6 \\
            \text{factored moments}(g;\, b_1,\, b_2,\, \epsilon) & 0.3 < |s| \le 0.6 \\
            \text{uncorrected adam}(g;\, b_1,\, b_2,\, \epsilon) & |s| \le 0.3
        \end{cases}

    The rules are `scale_by_lion`, `scale_by_factored_moments` and `scale_by_uncorrected_adam`. Each
    keeps its own moments, which move only on the steps on which it is chosen: together 3 numbers a
    weight, and 2 more for vectors.

    Args:
        params: the parameters, or groups of them, which may have options of their own.
        lr: eta, a number >= 0 or a tensor of one element.
        betas: decay rates of the first moment and of the factors, and of the second moment, each in [0, 1).
        eps: what is added to roots and means, >= 0.
        weight_decay: wd, >= 0.
        use_shadow: whether to pull the weights back to their shadow (see `blend_with_shadow`).
        shadow_ratio: r(s): "v2.0", "v1.0", or a function from a scalar tensor to a ratio in [0, 1].
        shadow_rate: how far the shadow follows the parameters, in (0, 1].
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
        >>> optimizer = emo_torch.EmoClan(model.parameters(), lr=1e-2)
        >>> losses = []
        >>> for _ in range(30):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     losses.append(optimizer.step(loss=loss).item())
        >>> losses[-1] < losses[0]
        True

    Source: EmoClan v2.0 by muooon.
    """

    rule = "adam_factors_or_lion"
    shadow_effect = False

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
        """Returns the names of a parameter's moments: each rule has its own."""
        kinds = ("row", "column") if param.ndim >= 2 else ("exp_avg", "exp_avg_sq")
        factors = tuple(f"fact_{kind}" for kind in kinds)
        return ("navi_exp_avg", "navi_exp_avg_sq", *factors, "lynx_exp_avg")

    def init_moments(self, param: Tensor, dtype: torch.dtype) -> State:
        """Returns the moments of a parameter that has seen no gradient."""
        factors = init_factored_moments(param, dtype)
        return {
            "navi_exp_avg": torch.zeros_like(param, dtype=dtype),
            "navi_exp_avg_sq": torch.zeros_like(param, dtype=dtype),
            **{f"fact_{name}": factor for name, factor in factors.items()},
            "lynx_exp_avg": torch.zeros_like(param, dtype=dtype),
        }

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
        WAYS.step(params, grads, states, feeling=feeling, group=group)


def _moments_of(rule: str, moments: State) -> State:
    return {name.removeprefix(rule): moment for name, moment in moments.items() if name.startswith(rule)}


def _single_tensor_emoclan(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    feeling: Feeling,
    group: Group,
) -> None:
    betas, eps = group["betas"], group["eps"]
    lion_b1, lion_b2 = LION_BETAS

    def navi(grad: Tensor, moments: State) -> Tensor:
        return scale_by_uncorrected_adam(grad, **moments, b1=betas[0], b2=betas[1], eps=eps)

    def fact(grad: Tensor, moments: State) -> Tensor:
        return scale_by_factored_moments(grad, moments, b1=betas[0], b2=betas[1], eps=eps)

    def lynx(grad: Tensor, moments: State) -> Tensor:
        return scale_by_lion(grad, **moments, b1=lion_b1, b2=lion_b2)

    def rule(grad: Tensor, moments: State) -> Tensor:
        own = [_moments_of(name, moments) for name in ("navi_", "fact_", "lynx_")]
        return switch_by_emotion(grad, own, (navi, fact, lynx), choose_rule(feeling.scalar).to(grad.device))

    single_tensor(params, grads, states, rule, feeling=feeling, group=group, shadow_effect=False)


def _multi_tensor_emoclan(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    feeling: Feeling,
    group: Group,
) -> None:
    betas, eps = group["betas"], group["eps"]
    lion_b1, lion_b2 = LION_BETAS

    def navi(grads: list[Tensor], moments: list[State]) -> list[Tensor]:
        exp_avgs = [moment["exp_avg"] for moment in moments]
        exp_avg_sqs = [moment["exp_avg_sq"] for moment in moments]
        return multi_tensor_scale_by_uncorrected_adam(
            grads, exp_avgs, exp_avg_sqs, b1=betas[0], b2=betas[1], eps=eps
        )

    def fact(grads: list[Tensor], moments: list[State]) -> list[Tensor]:
        return multi_tensor_scale_by_factored_moments(grads, moments, b1=betas[0], b2=betas[1], eps=eps)

    def lynx(grads: list[Tensor], moments: list[State]) -> list[Tensor]:
        exp_avgs = [moment["exp_avg"] for moment in moments]
        return multi_tensor_scale_by_lion(grads, exp_avgs, b1=lion_b1, b2=lion_b2)

    def rule(grads: list[Tensor], moments: list[State]) -> list[Tensor]:
        own = [[_moments_of(name, moment) for moment in moments] for name in ("navi_", "fact_", "lynx_")]
        chosen = choose_rule(feeling.scalar).to(grads[0].device)
        return multi_tensor_switch_by_emotion(grads, own, (navi, fact, lynx), chosen)

    multi_tensor(params, grads, states, rule, feeling=feeling, group=group, shadow_effect=False)


def _fused_emoclan(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    feeling: Feeling,
    group: Group,
) -> list[int]:
    betas, eps = group["betas"], group["eps"]
    rules = (
        FusedRule("uncorrected_adam", betas, eps, "navi_"),
        FusedRule("factored_moments", betas, eps, "fact_"),
        FusedRule("lion", LION_BETAS, prefix="lynx_"),
    )
    what = FusedStep(rules, "all", choose_rule(feeling.scalar))
    return fused(params, grads, states, what, feeling=feeling, group=group)


WAYS = Ways(_single_tensor_emoclan, _multi_tensor_emoclan, _fused_emoclan)
