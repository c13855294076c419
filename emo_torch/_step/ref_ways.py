"""The ways to take one step of RefAdamWMiniScheduleFree: one tensor, many tensors, or compiled code.

The learning rate of a tensor depends on the norm of its gradient, and the parameters are mixed into the
first moment. A recipe of rules cannot describe this, so the formulas are in this file.
"""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import torch
from torch import Tensor

from emo_torch._kernels import FusedRule, FusedStep, Signal
from emo_torch._kernels.cpu import step as step_fused
from emo_torch._pieces.divergence import DivergenceState, injection_strength
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.smoothed_norm import learning_rate_from_norm, smooth_norm
from emo_torch._pieces.sums import multi_tensor_norm_of, norm_of
from emo_torch._pieces.weight_decay import add_weight_decay, multi_tensor_add_weight_decay
from emo_torch._rules.moments import average, multi_tensor_average, store
from emo_torch._rules.recipe import Group, State
from emo_torch._step.ways import Ways, by_device_and_dtype


def single_tensor(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    divergence: DivergenceState,
    group: Group,
) -> None:
    """Steps with one tensor after the other. The reference for the other ways."""
    b1, b2 = group["betas"]
    mode, weight_decay = group["weight_decay_mode"], group["weight_decay"]
    for param, grad, state in zip(params, grads, states, strict=True):
        # Low precision is computed in float32: weight decay alone would be rounded away.
        dtype = wide_dtype(param)
        weight = param.to(dtype)
        grad = grad.to(dtype)
        if group["maximize"]:
            grad = -grad
        if mode == "l2":
            grad = grad.clone()
            add_weight_decay(grad, weight, weight_decay)
        norm = norm_of(grad)
        exp_avg = state["exp_avg"].to(dtype, copy=True)
        exp_avg_sq = state["exp_avg_sq"].to(dtype, copy=True)
        smoothed = smooth_norm(state["exp_avg_norm"].to(dtype), norm, group["schedulefree_alpha"])
        lr = learning_rate_from_norm(
            _rate(group, param, dtype), smoothed, norm, min_lr=group["min_lr"], max_lr=group["max_lr"]
        )

        average(exp_avg, grad, b1)
        exp_avg_sq.mul_(b2).addcmul_(grad, grad, value=1.0 - b2)
        root = exp_avg_sq.sqrt()
        # If v is 0, only eps would be left in the divisor.
        update = torch.where(root > 0.0, exp_avg / (root + group["eps"]), _zero(root))
        if mode == "decoupled":
            add_weight_decay(update, weight, weight_decay)
        update.mul_(lr)
        if mode == "absolute":
            add_weight_decay(update, weight, weight_decay)
        moved = weight - update

        injected = moved
        if group["injection_bound"] is not None:
            bound = root.mul(group["injection_bound"])
            injected = torch.clamp(moved, -bound, bound)
        share = injection_strength(divergence, group["ref_alpha"], dtype).to(param.device)
        mixed = (1.0 - share) * exp_avg + share * injected
        exp_avg = torch.where(share > 0.0, mixed, exp_avg)

        _settle(param, state, norm.isfinite(), weight, moved, exp_avg, exp_avg_sq, smoothed)


def multi_tensor(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    divergence: DivergenceState,
    group: Group,
) -> None:
    """Like `single_tensor`, for all tensors of one device and dtype at a time."""
    b1, b2 = group["betas"]
    mode, weight_decay = group["weight_decay_mode"], group["weight_decay"]
    for (device, *_), indices in by_device_and_dtype(params).items():
        narrow, saved = [params[index] for index in indices], [states[index] for index in indices]
        dtype = wide_dtype(narrow[0])
        weights = [param.to(dtype) for param in narrow]
        gradients = [grads[index].to(dtype) for index in indices]
        if group["maximize"]:
            gradients = list(torch._foreach_neg(gradients))
        if mode == "l2":
            gradients = [grad.clone() for grad in gradients]
            multi_tensor_add_weight_decay(gradients, weights, weight_decay)
        norms = torch.stack(multi_tensor_norm_of(gradients))
        exp_avgs = [state["exp_avg"].to(dtype, copy=True) for state in saved]
        exp_avg_sqs = [state["exp_avg_sq"].to(dtype, copy=True) for state in saved]
        before = torch.stack([state["exp_avg_norm"].to(dtype) for state in saved])
        smoothed = smooth_norm(before, norms, group["schedulefree_alpha"])
        lrs = learning_rate_from_norm(
            _rate(group, narrow[0], dtype), smoothed, norms, min_lr=group["min_lr"], max_lr=group["max_lr"]
        )

        multi_tensor_average(exp_avgs, gradients, b1)
        torch._foreach_mul_(exp_avg_sqs, b2)
        torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, value=1.0 - b2)
        roots = torch._foreach_sqrt(exp_avg_sqs)
        updates = list(torch._foreach_div(exp_avgs, torch._foreach_add(roots, group["eps"])))
        updates = [
            torch.where(root > 0.0, update, _zero(root))
            for root, update in zip(roots, updates, strict=True)
        ]
        if mode == "decoupled":
            multi_tensor_add_weight_decay(updates, weights, weight_decay)
        torch._foreach_mul_(updates, list(lrs.unbind()))
        if mode == "absolute":
            multi_tensor_add_weight_decay(updates, weights, weight_decay)
        moved = list(torch._foreach_sub(weights, updates))

        injected = moved
        if group["injection_bound"] is not None:
            bounds = torch._foreach_mul(roots, group["injection_bound"])
            injected = list(torch._foreach_minimum(moved, bounds))
            torch._foreach_maximum_(injected, torch._foreach_neg(bounds))
        share = injection_strength(divergence, group["ref_alpha"], dtype).to(device)
        mixed = list(torch._foreach_mul(exp_avgs, 1.0 - share))
        torch._foreach_add_(mixed, torch._foreach_mul(injected, share))
        exp_avgs = [torch.where(share > 0.0, new, old) for new, old in zip(mixed, exp_avgs, strict=True)]

        rows = zip(
            narrow, saved, norms.isfinite(), weights, moved, exp_avgs, exp_avg_sqs, smoothed, strict=True
        )
        for row in rows:
            _settle(*row)


def fused(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    divergence: DivergenceState,
    group: Group,
) -> list[int]:
    """Like `single_tensor`, in compiled code; returns the indices of the unchanged parameters."""

    def signal_of(dtype: torch.dtype) -> Signal:
        none = torch.zeros((), dtype=dtype, device="cpu")
        lr = torch.as_tensor(group["lr"], dtype=dtype, device="cpu")
        return Signal(tolerance=none, scale=none, shadow_ratio=none, lr=lr)

    def share(dtype: torch.dtype) -> Tensor:
        return injection_strength(divergence, group["ref_alpha"], dtype).cpu()

    spec = FusedStep((FusedRule("ref", group["betas"], group["eps"]),), "all", share=share)
    return step_fused(params, grads, states, spec, signal_of=signal_of, group=group)


WAYS = Ways(single_tensor, multi_tensor, fused)
"""The ways of RefAdamWMiniScheduleFree."""


def _settle(
    param: Tensor,
    state: State,
    is_finite: Tensor,
    weight: Tensor,
    moved: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    smoothed: Tensor,
) -> None:
    """Stores the results of a step; if the norm is not finite, nothing changes."""
    for name, moment in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        store(name, torch.where(is_finite, moment, state[name].to(moment.dtype)), state[name])
    state["exp_avg_norm"].copy_(smoothed)
    moved = torch.where(is_finite, moved, weight)
    if weight is param:
        param.copy_(moved)
    else:
        # The update is rounded first and then added, as in optax.apply_updates.
        param.add_((moved - weight).to(param.dtype))


def _rate(group: Group, param: Tensor, dtype: torch.dtype) -> float | Tensor:
    """Returns eta in the dtype of the computation, and on the device of the parameter."""
    lr: float | Tensor = group["lr"]
    return lr.reshape(()).to(device=param.device, dtype=dtype) if isinstance(lr, Tensor) else float(lr)


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype, device=like.device)
