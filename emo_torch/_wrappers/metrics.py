"""Metrics of the emotion, under names for a logger, fetched from the device in one transfer."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.shadow_effect import keeps_all, step_scale
from emo_torch._rules.recipe import Group
from emo_torch._step.emo_optimizer import EmoOptimizer
from emo_torch._step.later_optimizers import DriveOptimizer, PulseOptimizer
from emo_torch._wrappers.pulse_scheduler import EmoPulseScheduler

_PULSED = (EmoOptimizer, PulseOptimizer, EmoPulseScheduler)


@overload
def get_metrics(optimizer: Any, *, as_floats: Literal[True] = True) -> dict[str, float]: ...
@overload
def get_metrics(optimizer: Any, *, as_floats: Literal[False]) -> dict[str, Tensor]: ...
def get_metrics(optimizer: Any, *, as_floats: bool = True) -> dict[str, float] | dict[str, Tensor]:
    """Returns the emotion or the pulse of an optimizer, and its effects, as a flat dict for a logger.

    The metrics are computed only in this call, so they do not slow down a step.

    Args:
        optimizer: an optimizer with an emotion or a pulse, or a wrapper that has one as its `optimizer`.
        as_floats: whether to wait for the device, once, and return numbers; else tensors of shape
            `[]`, without waiting.

    Returns:
        By names that begin with `emotion/`:

        - `short`, `long`: the averages of the loss, in its unit.
        - `scalar`: the emotion scalar, in [-1, 1].
        - `step_scale`: 1 - |scalar|, in [0, 1].
        - `shadow_ratio`: how far the last step pulled the weights to their shadow, in [0, 1].
        - `learning_rate`: the learning rate times the step scale, or the learning rate alone if the rule
            does not scale (EmoNavi); with several groups `learning_rate/0`, `learning_rate/1`, ...
        - `masked_share`: the share of the gradients' elements that the filter stops, in [0, 1]; left out if
            there are no gradients.
        - `should_stop`, `is_quiet`: whether training was ever quiet, and whether it is quiet now; 0 or 1.
        - `felt`, `held`: the number of losses in the averages, and the number of losses that were not
            finite.
        - `medium`, `trust`, `drive`: of v3.6.1 alone (see `Drive`); the learning rate is multiplied by
            the drive there, and not by the step scale, and there is no masked share.

        The third generation (`EmoSens3` and so on) and `EmoPulseScheduler` have names that begin with
        `pulse/`, one for each field of `Pulse`: `pulse/pulse` is the learning rate of the step; with
        several groups `pulse/pulse/0`, `pulse/pulse/1`, ...

        `EmoPilot` and `Autopilot` have names that begin with `pilot/`, one for each field of
        `optimizer.pilot`, such as `pilot/courage`.

    Raises:
        TypeError: for an optimizer without an emotion.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = emo_torch.EmoSens([weight], lr=0.1)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     loss = weight[0].square()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> metrics = emo_torch.get_metrics(optimizer)
        >>> print(metrics["emotion/felt"], metrics["emotion/masked_share"])
        2.0 0.5
        >>> print(f"{metrics['emotion/scalar']:.4f} {metrics['emotion/learning_rate']:.4f}")
        -0.6493 0.0351
    """
    owner = _with_emotion(optimizer)
    if isinstance(owner, EmoOptimizer):
        metrics = _of_emotion(owner)
    else:
        metrics = _of_pilot(owner) if hasattr(type(owner), "pilot") else _of_pulse(owner)
    if not as_floats:
        return metrics
    # All numbers in one tensor, so that one transfer fetches all. Not every device has float64.
    device = next(iter(metrics.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    together = torch.stack([value.to(dtype) for value in metrics.values()])
    return dict(zip(metrics, together.tolist(), strict=True))


def _of_pilot(optimizer: Any) -> dict[str, Tensor]:
    """Returns the metrics of an optimizer that EmoPilot steers."""
    return {f"pilot/{name}": value for name, value in optimizer.pilot._asdict().items()}


def _of_pulse(owner: PulseOptimizer | EmoPulseScheduler) -> dict[str, Tensor]:
    """Returns the metrics of a pulse."""
    metrics = {f"pulse/{name}": value for name, value in owner.pulse._asdict().items()}
    if isinstance(owner, PulseOptimizer) and len(owner.param_groups) > 1:
        rates = {
            f"pulse/pulse/{index}": owner.rate_of(group) for index, group in enumerate(owner.param_groups)
        }
        del metrics["pulse/pulse"]
        metrics = {**rates, **metrics}
    return metrics


def _of_emotion(owner: EmoOptimizer) -> dict[str, Tensor]:
    """Returns the metrics of an emotion, also of the emotion of v3.6.1."""
    emotion, own = owner.emotion, {}
    if isinstance(owner, DriveOptimizer):
        own = {f"emotion/{name}": getattr(owner.drive, name) for name in ("medium", "trust", "drive")}
    shares = {} if own else _masked_share(owner, emotion.scalar)
    return {
        "emotion/short": emotion.short,
        "emotion/long": emotion.long,
        "emotion/scalar": emotion.scalar,
        "emotion/step_scale": emotion.step_scale,
        "emotion/shadow_ratio": emotion.shadow_ratio,
        **own,
        **_learning_rates(owner, emotion.scalar),
        **shares,
        "emotion/should_stop": emotion.should_stop,
        "emotion/is_quiet": emotion.is_quiet,
        "emotion/felt": emotion.felt,
        "emotion/held": emotion.held,
    }


def _with_emotion(optimizer: Any) -> Any:
    """Returns the optimizer that has the emotion, the pulse or the pilot, out of its wrappers."""
    inside = optimizer
    while not (isinstance(inside, _PULSED) or hasattr(type(inside), "pilot")):
        if not hasattr(inside, "optimizer"):
            raise TypeError(
                f"{type(optimizer).__name__} has no emotion to show: pass an optimizer of emo_torch, or "
                "make it emotional with emo_torch.Emotional"
            )
        inside = inside.optimizer
    return inside


def _learning_rates(optimizer: EmoOptimizer, scalar: Tensor) -> dict[str, Tensor]:
    """Returns the factor of each group's updates."""
    rates = []
    for group in optimizer.param_groups:
        lr = group["lr"]
        if isinstance(lr, Tensor):
            lr = lr.detach().reshape(()).to(device=scalar.device, dtype=scalar.dtype)
        scale = step_scale(scalar) if _has_effect(optimizer, group) else torch.ones_like(scalar)
        if isinstance(optimizer, DriveOptimizer):
            scale = optimizer.drive.drive
        rates.append(scale * lr)
    if len(rates) == 1:
        return {"emotion/learning_rate": rates[0]}
    return {f"emotion/learning_rate/{index}": rate for index, rate in enumerate(rates)}


@torch.no_grad()
def _masked_share(optimizer: EmoOptimizer, scalar: Tensor) -> dict[str, Tensor]:
    """Returns the share of the gradients' elements that the filter stops, if there are any."""
    count, kept = 0, torch.zeros_like(scalar, dtype=torch.int64)
    for group in optimizer.param_groups:
        params = [param for param in group["params"] if param.grad is not None]
        keep = optimizer.keep_of(group)
        for param in params:
            grad = param.grad.to(wide_dtype(param))
            count += grad.numel()
            if not _has_effect(optimizer, group) or keeps_all(keep, grad, group["theta"]):
                kept += grad.numel()
                continue
            if group.get("weight_decay_mode") == "l2":  # Which the filter sees as a part of the gradient.
                grad = grad.add(
                    param, alpha=-group["weight_decay"] if group["maximize"] else group["weight_decay"]
                )
            tolerance = (group["theta"] * (1.0 + scalar.abs())).to(device=grad.device, dtype=grad.dtype)
            elements = keep(grad, tolerance).sum()
            if hasattr(elements, "full_tensor"):  # A DTensor: its parts are on several devices.
                elements = elements.full_tensor()
            kept += elements.to(kept.device)
    if not count:
        return {}
    return {"emotion/masked_share": 1.0 - kept.to(scalar.dtype) / count}


def _has_effect(optimizer: EmoOptimizer, group: Group) -> bool:
    """Returns whether the updates of a group are filtered and scaled."""
    return bool(group.get("shadow_effect", optimizer.shadow_effect))
