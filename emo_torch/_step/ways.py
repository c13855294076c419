"""The ways to take one and the same step: one tensor after the other, many at once, or in compiled code.

Each way reads the recipe of a member (see `_rules/recipe.py`).
"""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import _default_to_fused_or_foreach

from emo_shared.eight_bit import EIGHT_BIT
from emo_torch._checks.validation import has_duplicates
from emo_torch._kernels import Signal, cuda, library
from emo_torch._kernels.blocked import step as step_blocked
from emo_torch._kernels.cpu import step as step_fused
from emo_torch._kernels.describe import describe
from emo_torch._kernels.streams import KEYS
from emo_torch._pieces import emotion
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.shadow_effect import filter_by_emotion, keeps_all, step_scale
from emo_torch._pieces.shadow_system import blend_with_shadow, multi_tensor_blend_with_shadow
from emo_torch._pieces.trust import blend_by_trust, multi_tensor_blend_by_trust
from emo_torch._pieces.weight_decay import add_weight_decay, multi_tensor_add_weight_decay
from emo_torch._rules.moments import loaded, store_in
from emo_torch._rules.recipe import FirstStep, Group, Recipe, State
from emo_torch._rules.switch import multi_tensor_switch_by_emotion, switch_by_emotion
from emo_torch._sharded import foreach_takes, mesh_of
from emo_torch._step.feeling import CompiledWay, for_compiled, numbers_of
from emo_torch._step.feeling import Feeling as Feeling

_CPU = torch.device("cpu")


def use_foreach(params: list[Tensor], group: Group) -> bool:
    """Returns whether to step with all tensors at once: as the group says, or as torch.optim would.

    Never with a parameter listed twice (the second step follows the first), nor DTensors before 2.13.
    """
    foreach: bool | None = group.get("foreach")
    if foreach is None and group.get("moment_dtype") != EIGHT_BIT:  # Moments in 8 bits: one by one.
        _, foreach = _default_to_fused_or_foreach(params, differentiable=False, use_fused=False)
    is_listed_once = torch.compiler.is_compiling() or not has_duplicates(params)
    return bool(foreach) and is_listed_once and foreach_takes(params)


def use_fused(params: list[Tensor], group: Group) -> bool:
    """Returns whether to step in compiled code, or in blocks; False if the group names another way."""
    fused: bool | None = group.get("fused")
    if torch.compiler.is_compiling() or fused is False:
        return False
    if params[0].device.type in cuda.DEVICES:  # On CUDA, only `fused=True` selects compiled code.
        return fused is True and cuda.is_available()
    is_asked = fused is True or group.get("foreach") is None
    return is_asked and params[0].device.type == "cpu" and emotion.IS_CPU_READ


class Ways(NamedTuple):
    """The ways to take one and the same step, of which a group's options choose.

    Attributes:
        single: one tensor after the other; the reference.
        multi: all tensors of one device and dtype at once.
        fused: in compiled code, or in blocks without compiled code; returns the indices of the tensors
            that it leaves to the other ways.
    """

    single: Callable[..., None]
    multi: Callable[..., None]
    fused: Callable[..., list[int]]

    def step(
        self, params: list[Tensor], grads: list[Tensor], states: list[State], *, group: Group, **given: Any
    ) -> list[int]:
        """Takes the step: in the way that the group names, or in the fastest way that fits the tensors.

        Returns:
            The indices of the tensors that were not stepped: there are some only if the group holds keys
            for rounding, which only compiled code can read.
        """
        remaining = list(range(len(params)))
        if use_fused(params, group):
            remaining = self.fused(params, grads, states, group=group, **given)
        if not remaining or KEYS in group:
            return remaining
        if len(remaining) < len(params):
            params = [params[index] for index in remaining]
            grads = [grads[index] for index in remaining]
            states = [states[index] for index in remaining]
        way = self.multi if use_foreach(params, group) else self.single
        way(params, grads, states, group=group, **given)
        return []


# The numbers and formulas that the ways read.


def signal_of(
    feeling: Feeling,
    group: Group,
    dtype: torch.dtype,
    device: torch.device = _CPU,
    *,
    needs_tensors: bool = False,
) -> Signal:
    """Returns the feeling as the numbers of one group, in one dtype on one device.

    Args:
        feeling: the feeling.
        group: the options.
        dtype: a floating-point dtype.
        device: the device of the result.
        needs_tensors: whether the learning rate must be a tensor, too, as compiled code reads it.
    """
    scalar = feeling.scalar.to(device=device)
    lr = group["lr"] if feeling.rate is None else feeling.rate.to(device=device)
    if isinstance(lr, Tensor):
        lr = lr.reshape(()).to(dtype)
    if needs_tensors and not (isinstance(lr, Tensor) and lr.device == device):
        # The tensor is filled, not copied: a copy would wait for the device.
        lr = torch.full((), float(lr), dtype=dtype, device=device)
    return Signal(
        tolerance=(group.get("theta", 0.0) * (1.0 + scalar.abs())).to(dtype),
        scale=(step_scale(scalar) if feeling.scale is None else feeling.scale.to(device=device)).to(dtype),
        shadow_ratio=feeling.shadow_ratio.to(device=device, dtype=dtype),
        lr=lr,
    )


def by_device_and_dtype(tensors: list[Tensor]) -> dict[tuple[torch.device, torch.dtype, Any], list[int]]:
    """Returns the places of the tensors of each device and dtype, and of each device mesh."""
    buckets: dict[tuple[torch.device, torch.dtype, Any], list[int]] = {}
    for index, tensor in enumerate(tensors):
        buckets.setdefault((tensor.device, tensor.dtype, mesh_of(tensor)), []).append(index)
    return buckets


def _rule(recipe: Recipe, feeling: Feeling, group: Group) -> Callable[[Tensor, State], Tensor]:
    """Returns the rule of a recipe for one tensor: from a gradient and moments to an update."""
    rules = recipe.rules
    formulas = [functools.partial(rule.single, **rule.numbers(group, feeling.numbers)) for rule in rules]
    if recipe.choose is None:
        return lambda grad, moments: formulas[0](grad, rules[0].own_moments(moments))
    chosen = recipe.choose(feeling.scalar)

    def switched(grad: Tensor, moments: State) -> Tensor:
        own = [rule.own_moments(moments) for rule in rules]
        return switch_by_emotion(grad, own, formulas, chosen.to(grad.device))

    return switched


def _multi_rule(
    recipe: Recipe, feeling: Feeling, group: Group
) -> Callable[[list[Tensor], list[State]], list[Tensor]]:
    """Returns the rule of a recipe for many tensors of one device and dtype."""
    rules = recipe.rules
    formulas = [functools.partial(rule.multi, **rule.numbers(group, feeling.numbers)) for rule in rules]
    if recipe.choose is None:
        return lambda grads, moments: formulas[0](grads, [rules[0].own_moments(each) for each in moments])
    chosen = recipe.choose(feeling.scalar)

    def switched(grads: list[Tensor], moments: list[State]) -> list[Tensor]:
        own = [[rule.own_moments(each) for each in moments] for rule in rules]
        return multi_tensor_switch_by_emotion(grads, own, formulas, chosen.to(grads[0].device))

    return switched


def _first(first: FirstStep, feeling: Feeling, group: Group) -> Callable[[Tensor], Tensor]:
    """Returns the first step for one tensor: from a gradient to an update."""
    formulas = [functools.partial(rule.single, **rule.numbers(group)) for rule in first.rules]
    stateless: list[State] = [{} for _ in formulas]
    chosen = first.choose(feeling.scalar)

    def step(grad: Tensor) -> Tensor:
        if grad.ndim < first.least_ndim:
            return torch.zeros_like(grad)
        return switch_by_emotion(grad, stateless, formulas, chosen.to(grad.device))

    return step


def _multi_first(
    first: FirstStep, feeling: Feeling, group: Group
) -> Callable[[list[Tensor]], list[Tensor]]:
    """Returns the first step for many tensors of one device and dtype."""
    formulas = [functools.partial(rule.multi, **rule.numbers(group)) for rule in first.rules]
    chosen = first.choose(feeling.scalar)

    def step(grads: list[Tensor]) -> list[Tensor]:
        steps = [torch.zeros_like(grad) for grad in grads]
        large = [index for index, grad in enumerate(grads) if grad.ndim >= first.least_ndim]
        if large:
            stateless: list[State] = [{} for _ in large]
            some = [grads[index] for index in large]
            switched = multi_tensor_switch_by_emotion(
                some, [stateless] * len(formulas), formulas, chosen.to(grads[0].device)
            )
            for index, update in zip(large, switched, strict=True):
                steps[index] = update
        return steps

    return step


# The ways.


def single_tensor(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    recipe: Recipe,
    feeling: Feeling,
    group: Group,
) -> None:
    """Steps with one tensor after the other. The reference for the other ways.

    The order is: shadow, first step, weight decay, rule, filter, scale.
    """
    rule = _rule(recipe, feeling, group)
    first = None if recipe.first is None else _first(recipe.first, feeling, group)
    keep = recipe.keep(group)
    signals: dict[tuple[torch.device, torch.dtype], Signal] = {}
    for param, grad, state in zip(params, grads, states, strict=True):
        # Low precision is computed in float32: weight decay alone would be rounded away.
        dtype = wide_dtype(param)
        if (param.device, dtype) not in signals:
            signals[param.device, dtype] = signal_of(feeling, group, dtype, param.device)
        signal = signals[param.device, dtype]
        weight = param.to(dtype)
        grad = grad.to(dtype)
        moved = {name: loaded(name, state, dtype) for name in recipe.moment_names(param.ndim)}
        if group["maximize"]:
            grad = -grad

        if feeling.weights is not None:
            weight.mul_(feeling.weights.to(device=param.device, dtype=dtype))
        if group["use_shadow"] and feeling.follow is not None:
            follow = feeling.follow.to(device=param.device, dtype=dtype)
            shadow = state["shadow"], state["shadow_exists"]
            blend_by_trust(weight, *shadow, signal.shadow_ratio, follow)
        elif group["use_shadow"]:
            blend_with_shadow(
                weight,
                state["shadow"],
                state["shadow_exists"],
                signal.shadow_ratio,
                shadow_rate=group["shadow_rate"],
            )
        mode, weight_decay = group["weight_decay_mode"], group["weight_decay"]
        if mode == "l2":
            grad = grad.clone()
            add_weight_decay(grad, weight, weight_decay)
        if first is not None:
            weight.sub_(first(grad).mul_(signal.lr))
        update = rule(grad, moved)
        if recipe.filter is not None:
            if not keeps_all(keep, grad, group["theta"]):
                update = filter_by_emotion(update, grad, signal.tolerance, keep)
            update.mul_(signal.scale)
        elif feeling.scale is not None:
            update.mul_(signal.scale)
        if mode == "decoupled":
            add_weight_decay(update, weight, weight_decay / (group.get("weight_decay_divisor") or 1.0))
        update.mul_(signal.lr)
        if mode == "absolute":
            add_weight_decay(update, weight, weight_decay)
        weight.sub_(update)

        for name, moment in moved.items():
            store_in(name, moment, state)
        if weight is not param:
            # The update is rounded first and then added, as in optax.apply_updates.
            param.add_((weight - param.to(dtype)).to(param.dtype))


def multi_tensor(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    recipe: Recipe,
    feeling: Feeling,
    group: Group,
) -> None:
    """Like `single_tensor`, for all tensors of one device and dtype at a time."""
    rule = _multi_rule(recipe, feeling, group)
    first = None if recipe.first is None else _multi_first(recipe.first, feeling, group)
    keep = recipe.keep(group)
    for (device, *_), indices in by_device_and_dtype(params).items():
        narrow = [params[index] for index in indices]
        dtype = wide_dtype(narrow[0])
        signal = signal_of(feeling, group, dtype, device)
        weights = [param.to(dtype) for param in narrow]
        gradients = [grads[index].to(dtype) for index in indices]
        saved = [states[index] for index in indices]
        moved = [
            {name: loaded(name, state, dtype) for name in recipe.moment_names(param.ndim)}
            for state, param in zip(saved, narrow, strict=True)
        ]
        if group["maximize"]:
            gradients = list(torch._foreach_neg(gradients))

        if feeling.weights is not None:
            torch._foreach_mul_(weights, feeling.weights.to(device=device, dtype=dtype))
        if group["use_shadow"] and feeling.follow is not None:
            multi_tensor_blend_by_trust(
                weights,
                [state["shadow"] for state in saved],
                [state["shadow_exists"] for state in saved],
                signal.shadow_ratio,
                feeling.follow.to(device=device, dtype=dtype),
            )
        elif group["use_shadow"]:
            multi_tensor_blend_with_shadow(
                weights,
                [state["shadow"] for state in saved],
                [state["shadow_exists"] for state in saved],
                signal.shadow_ratio,
                shadow_rate=group["shadow_rate"],
            )
        mode, weight_decay = group["weight_decay_mode"], group["weight_decay"]
        if mode == "l2":
            gradients = [grad.clone() for grad in gradients]
            multi_tensor_add_weight_decay(gradients, weights, weight_decay)
        if first is not None:
            steps = first(gradients)
            torch._foreach_mul_(steps, signal.lr)
            torch._foreach_sub_(weights, steps)
        updates = rule(gradients, moved)
        if recipe.filter is not None:
            updates = [
                update
                if keeps_all(keep, grad, group["theta"])
                else filter_by_emotion(update, grad, signal.tolerance, keep)
                for update, grad in zip(updates, gradients, strict=True)
            ]
            torch._foreach_mul_(updates, signal.scale)
        elif feeling.scale is not None:
            torch._foreach_mul_(updates, signal.scale)
        if mode == "decoupled":
            share = weight_decay / (group.get("weight_decay_divisor") or 1.0)
            multi_tensor_add_weight_decay(updates, weights, share)
        torch._foreach_mul_(updates, signal.lr)
        if mode == "absolute":
            multi_tensor_add_weight_decay(updates, weights, weight_decay)
        torch._foreach_sub_(weights, updates)

        for state, news in zip(saved, moved, strict=True):
            for name, moment in news.items():
                store_in(name, moment, state)
        if weights[0] is not narrow[0]:
            before = [param.to(dtype) for param in narrow]
            changes = [change.to(narrow[0].dtype) for change in torch._foreach_sub(weights, before)]
            torch._foreach_add_(narrow, changes)


def fused(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    recipe: Recipe,
    feeling: Feeling,
    group: Group,
) -> list[int]:
    """Like `single_tensor`, in compiled code, or in blocks; returns the indices of unchanged parameters."""
    b1, b2 = group["betas"]
    spec = describe(recipe, float(b1), float(b2), float(group["eps"]), float(group.get("theta", 0.0)))
    is_plain = feeling.scale is None and feeling.follow is None
    if spec is not None and not (is_plain and feeling.weights is None and not feeling.numbers):
        near: CompiledWay = "blocks" if library() is None else "cpu"
        spec = for_compiled(spec, feeling, group, "cuda" if params[0].device.type in cuda.DEVICES else near)
    if spec is None:
        return list(range(len(params)))
    device = params[0].device if params[0].device.type in cuda.DEVICES else _CPU
    if recipe.choose is not None:
        spec = spec._replace(chosen=recipe.choose(feeling.scalar).to(device))
    if recipe.first is not None:
        spec = spec._replace(chosen_first=recipe.first.choose(feeling.scalar).to(device))
    signal = functools.partial(signal_of, feeling, group, needs_tensors=True)
    if device.type in cuda.DEVICES:
        if KEYS in group:
            return list(range(len(params)))
        return cuda.step(params, grads, states, spec, signal_of=signal, group=group)
    if library() is None:
        return step_blocked(params, grads, states, spec, signal_of=signal, group=group)
    numbers = functools.partial(numbers_of, feeling, group)
    return step_fused(params, grads, states, spec, signal_of=numbers, group=group)


WAYS = Ways(single_tensor, multi_tensor, fused)
"""The ways of every member with an emotion."""
