"""The rules of the family, as data. The formulas are in the files beside this one.

The order of `KERNELS` and `FIRST_STEP_RULES` is the order of the `enum`s in `_kernels/cpu.c`.
"""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from typing import Any

import torch
from torch import Tensor

from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.smoothed_norm import NO_NORM
from emo_torch._rules import adam, directions, factors, lion, sign_rules, signs
from emo_torch._rules.recipe import Rule, State, init_zeros


def _column(moments: list[State], name: str) -> list[Tensor] | None:
    """Returns one moment of each parameter; `None` where the rule is used without moments."""
    return [moment[name] for moment in moments] if name in moments[0] else None


def _adam(grad: Tensor, moments: State, **numbers: float) -> Tensor:
    return adam.scale_by_uncorrected_adam(grad, moments["exp_avg"], moments["exp_avg_sq"], **numbers)


def _multi_adam(grads: list[Tensor], moments: list[State], **numbers: float) -> list[Tensor]:
    exp_avgs = [moment["exp_avg"] for moment in moments]
    exp_avg_sqs = [moment["exp_avg_sq"] for moment in moments]
    return adam.multi_tensor_scale_by_uncorrected_adam(grads, exp_avgs, exp_avg_sqs, **numbers)


def _lion(grad: Tensor, moments: State, **numbers: float) -> Tensor:
    return lion.scale_by_lion(grad, moments["exp_avg"], **numbers)


def _multi_lion(grads: list[Tensor], moments: list[State], **numbers: float) -> list[Tensor]:
    return lion.multi_tensor_scale_by_lion(grads, [moment["exp_avg"] for moment in moments], **numbers)


def _cautious_sign(grad: Tensor, moments: State, **numbers: float) -> Tensor:
    return signs.scale_by_cautious_sign(grad, moments.get("exp_avg"), **numbers)


def _multi_cautious_sign(grads: list[Tensor], moments: list[State], **numbers: float) -> list[Tensor]:
    return signs.multi_tensor_scale_by_cautious_sign(grads, _column(moments, "exp_avg"), **numbers)


def _softsign(grad: Tensor, moments: State, **numbers: float) -> Tensor:
    return signs.scale_by_softsign(grad, moments.get("exp_avg"), **numbers)


def _multi_softsign(grads: list[Tensor], moments: list[State], **numbers: float) -> list[Tensor]:
    return signs.multi_tensor_scale_by_softsign(grads, _column(moments, "exp_avg"), **numbers)


def _sign(grad: Tensor, moments: State) -> Tensor:
    del moments
    return sign_rules.scale_by_sign(grad)


def _multi_sign(grads: list[Tensor], moments: list[State]) -> list[Tensor]:
    del moments
    return sign_rules.multi_tensor_scale_by_sign(grads)


def _fresh_sign(grad: Tensor, moments: State, **numbers: Any) -> Tensor:
    return sign_rules.scale_by_fresh_sign(grad, moments["exp_avg"], **numbers)


def _multi_fresh_sign(grads: list[Tensor], moments: list[State], **numbers: Any) -> list[Tensor]:
    exp_avgs = [moment["exp_avg"] for moment in moments]
    return sign_rules.multi_tensor_scale_by_fresh_sign(grads, exp_avgs, **numbers)


def _none(grad: Tensor, moments: State) -> Tensor:
    del moments
    return torch.zeros_like(grad)


def _multi_none(grads: list[Tensor], moments: list[State]) -> list[Tensor]:
    del moments
    return [torch.zeros_like(grad) for grad in grads]


def _init_ref(param: Tensor, dtype: torch.dtype) -> State:
    norm = torch.full((), NO_NORM, dtype=wide_dtype(param), device=param.device)
    return {**ADAM.init(param, dtype), "exp_avg_norm": norm}


def _init_pilot(param: Tensor, dtype: torch.dtype) -> State:
    step = torch.zeros((), dtype=torch.float32, device=param.device)
    return {**ADAM.init(param, dtype), "step": step}


def _init_pilot_factors(param: Tensor, dtype: torch.dtype) -> State:
    step = torch.zeros((), dtype=torch.float32, device=param.device)
    return {**LION.init(param, dtype), **factors.init_factored_moments(param, dtype), "step": step}


def _whole_step(*given: Any, **numbers: Any) -> Any:
    raise NotImplementedError(
        "This rule has no formula for a direction alone: its step includes the learning rate, so a recipe "
        "with emotion cannot use it"
    )


ADAM = Rule(
    "uncorrected_adam",
    lambda _: ("exp_avg", "exp_avg_sq"),
    init_zeros("exp_avg", "exp_avg_sq"),
    _adam,
    _multi_adam,
    kernel="ADAM",
    may_be_8bit=True,
)
LION = Rule(
    "lion",
    lambda _: ("exp_avg",),
    init_zeros("exp_avg"),
    _lion,
    _multi_lion,
    reads=("b1", "b2"),
    kernel="LION",
    may_be_8bit=True,
)
CAUTIOUS_SIGN = Rule(
    "cautious_sign",
    LION.moments,
    LION.init,
    _cautious_sign,
    _multi_cautious_sign,
    reads=("b1", "b2"),
    kernel="CAUTIOUS",
    may_be_8bit=True,
)
SOFTSIGN = Rule(
    "softsign", LION.moments, LION.init, _softsign, _multi_softsign, kernel="SOFTSIGN", may_be_8bit=True
)
FACTORS = Rule(
    "factored_moments",
    lambda ndim: ("row", "column") if ndim >= 2 else ("exp_avg", "exp_avg_sq"),
    factors.init_factored_moments,
    factors.scale_by_factored_moments,
    factors.multi_tensor_scale_by_factored_moments,
    kernel="FACTORS",
)
REF = Rule(
    "ref",
    ADAM.moments,
    _init_ref,
    _whole_step,
    _whole_step,
    kernel="REF",
    on_cuda=False,
    scalars=("exp_avg_norm",),
)
SIGN = Rule("sign", lambda _: (), init_zeros(), _sign, _multi_sign, reads=(), kernel="SIGN")
FRESH_SIGN = Rule(
    "fresh_sign",
    LION.moments,
    LION.init,
    _fresh_sign,
    _multi_fresh_sign,
    reads=("b1", "change"),
    kernel="FRESH",
    may_be_8bit=True,
)
PILOT = Rule(
    "pilot",
    ADAM.moments,
    _init_pilot,
    _whole_step,
    _whole_step,
    kernel="PILOT",
    on_cuda=False,
    scalars=("step",),
    turn=directions.turn_by_adam,
)
PILOT_FACTORS = Rule(
    "pilot_factors",
    lambda ndim: ("exp_avg", "row", "column") if ndim >= 2 else ("exp_avg", "exp_avg_sq"),
    _init_pilot_factors,
    _whole_step,
    _whole_step,
    kernel="PILOT_FACTORS",
    on_cuda=False,
    scalars=("step",),
    turn=directions.turn_by_factors,
)
NONE = Rule("none", lambda _: (), init_zeros(), _none, _multi_none, reads=())
"""No step at all: one of the first steps of EmoZeal."""

LION_BETAS = (0.9, 0.99)
"""The decay rates of Lion's rule in EmoClan, for all decay rates of the parameter group."""
# Each rule of EmoClan has its own moments, named after the member that has the rule alone.
NAVI, FACT, LYNX = ADAM.named("navi_"), FACTORS.named("fact_"), LION.named("lynx_", LION_BETAS)

KERNELS = (ADAM, LION, CAUTIOUS_SIGN, SOFTSIGN, FACTORS, REF, SIGN, FRESH_SIGN, PILOT, PILOT_FACTORS)
"""The rules that compiled code knows."""
FIRST_STEP_RULES = (NONE, SOFTSIGN, CAUTIOUS_SIGN)
"""The rules that compiled code knows as a first step."""

MOMENTS = tuple(
    dict.fromkeys(
        name for rule in (*KERNELS, NAVI, FACT, LYNX) for ndim in (1, 2) for name in rule.moment_names(ndim)
    )
)
"""The names of all moments of the family: the state of another member is told by its names."""
