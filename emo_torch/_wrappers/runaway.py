"""Runaway detection: a number from the gradient's moments that detects a sudden one-sided change."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from emo_torch._checks.hints import warn_of_narrow_weights
from emo_torch._checks.validation import check_bounds, check_inner, check_not_negative
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.rounding import is_narrow
from emo_torch._sharded import whole
from emo_torch._step.steered import SteeredOptimizer
from emo_torch._step.ways import use_foreach
from emo_torch._wrappers.inner_check import check_follows
from emo_torch._wrappers.inner_step import scale_change

Bounds = tuple[float, float]
"""The least and the largest factor of a step."""


class Runaway(NamedTuple):
    """The numbers of the last gradient.

    Attributes:
        moments: the means of g, g^2, g^3 and g^4 over all elements of the gradient, shape `[4]`, in
            powers of the gradient's unit; not finite if the gradient is not finite.
        emotion: m3 / (m2 + eps) exp(-m4), shape `[]`; always finite.
        scale: the factor of a step, shape `[]`: 1 - emotion, within the bounds if there are any.
    """

    moments: Tensor
    emotion: Tensor
    scale: Tensor


@torch.no_grad()
def gradient_moments(gradient: Iterable[Tensor]) -> Tensor:
    r"""Returns the first four moments of a gradient, over all elements of all its tensors.

    .. math:: m_k = \operatorname{E}[g^k], \quad k = 1 \dots 4

    Args:
        gradient: real, dense tensors of any shapes and devices; none or empty ones are fine.

    Returns:
        The moments, shape `[4]`, in float32, or float64 where a tensor is, on the first one's device;
        zeros without elements.

    Raises:
        RuntimeError: for complex or sparse gradients.

    Example:
        >>> import torch
        >>> from emo_torch import gradient_moments
        >>> print(gradient_moments([torch.tensor([1.0, 2.0]), torch.tensor(0.0)]))
        tensor([1.0000, 1.6667, 3.0000, 5.6667])

    Source: the runaway detection of the Emo documents, an idea of muooon's.
    """
    leaves = list(gradient)
    if any(leaf.is_complex() or leaf.layout != torch.strided for leaf in leaves):
        raise RuntimeError(
            "Runaway detection does not support complex or sparse gradients: pass real and imaginary parts "
            "as separate dense tensors"
        )
    dtype = wide_dtype(*leaves)
    sums = torch.zeros(4, dtype=dtype, device=leaves[0].device if leaves else None)
    for leaf in leaves:
        values = leaf.to(dtype)
        squares = values * values
        powers = (values, squares, squares * values, squares * squares)
        sums = sums + whole(torch.stack([power.sum() for power in powers])).to(sums.device)
    return sums / max(sum(leaf.numel() for leaf in leaves), 1)


@torch.no_grad()
def runaway_emotion(moments: Tensor, eps: float = 1e-8) -> Tensor:
    r"""Returns how much a gradient looks like a sudden, one-sided change.

    .. math:: \frac{m_3}{m_2 + \epsilon}\,\exp(-m_4)

    The number is large if most of the gradient has one sign; the exponential damps it for extreme peaks.
    The formula depends on the gradient's unit: it responds to gradients of a size of about 0.1 to 2.

    Args:
        moments: the first four moments, shape `[4]`.
        eps: the number added to the second moment, >= 0.

    Returns:
        The number, shape `[]`. Its absolute value is below 0.551 if all elements are equally large, and up
        to 0.551 f^(-1/4) if only a share f of the elements is not 0. The number is 0 for a gradient without
        elements, for zeros, for a gradient whose powers are too large for the dtype (then the exponential
        is 0), and for a gradient with a NaN.

    Example:
        >>> import torch
        >>> from emo_torch import gradient_moments, runaway_emotion
        >>> gradient = torch.tensor([1.0, 1.0, 1.0, -0.5])
        >>> print(f"{runaway_emotion(gradient_moments([gradient])):.4f}")
        0.4114

    Source: the runaway detection of the Emo documents, an idea of muooon's.
    """
    _, second, third, fourth = moments.unbind()
    emotion = third / (second + eps) * torch.exp(-fourth)
    return torch.where(torch.isfinite(emotion), emotion, torch.zeros_like(emotion))


class RunawayMonitor:
    """Measures gradients, on request or at each step of an optimizer, and keeps the last result.

    Args:
        eps: the number added to the second moment, >= 0.
        bounds: the least and the largest factor, the first below the second; `None` for no bounds.

    Attributes:
        runaway: the numbers of the last gradient; before the first one, a scale of 1.

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([0.5, 0.5])
        >>> monitor = emo_torch.RunawayMonitor()
        >>> print(monitor.observe([weight]).emotion)
        tensor(0.4697)

    Source: the runaway detection of the Emo documents, an idea of muooon's.
    """

    def __init__(self, *, eps: float = 1e-8, bounds: Bounds | None = None) -> None:
        check_not_negative("eps", eps)
        check_bounds("bounds", bounds)
        self._eps = float(eps)
        self._bounds = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        self._handles: list[RemovableHandle] = []
        self.runaway = Runaway(torch.zeros(4), torch.zeros(()), torch.ones(()))

    def observe(self, params: Iterable[Tensor]) -> Runaway:
        """Measures the current gradients of parameters, without a sync with the device.

        Args:
            params: the parameters of one optimizer; parameters without a gradient do not count.

        Returns:
            The numbers, which are also kept as `runaway`.

        Raises:
            RuntimeError: for complex or sparse gradients.
        """
        return self._measure([param.grad for param in params if param.grad is not None])

    def _measure(self, gradient: list[Tensor]) -> Runaway:
        moments = gradient_moments(gradient)
        emotion = runaway_emotion(moments, self._eps)
        scale = 1.0 - emotion
        if self._bounds is not None:
            scale = scale.clamp(*self._bounds)
        self.runaway = Runaway(moments, emotion, scale)
        return self.runaway

    def remove(self) -> None:
        """Removes the hooks from the optimizer, whose steps are then no longer scaled or measured."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Hooks:
    """The actions of a monitor around every step of an optimizer."""

    def __init__(self, monitor: RunawayMonitor, optimizer: Optimizer, *, is_scaling: bool) -> None:
        self._monitor = monitor
        self._is_scaling = is_scaling
        self._saved: list[tuple[list[Tensor], list[Tensor], bool]] = []
        monitor._handles = [
            optimizer.register_step_pre_hook(self.before),
            optimizer.register_step_post_hook(self.after),
        ]

    def before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Measures the gradients; with a closure, which makes the gradients, after the closure."""
        self._saved = []  # The data that a failed step may have left.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        has_closure = callable(closure)  # The optimizer refuses anything else.
        for group in optimizer.param_groups if self._is_scaling else []:
            params = [
                param
                for param in dict.fromkeys(group["params"])  # Scaled once, also if it is listed twice.
                if param.grad is not None or (has_closure and param.requires_grad)
            ]
            befores = [param.detach().clone() for param in params]
            self._saved.append((params, befores, use_foreach(params, group)))
        if closure is None or not has_closure:
            self._measure_gradient(optimizer)
            return None
        watched = self._watch(closure, optimizer)
        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, {**kwargs, "closure": watched}

    def _watch(self, closure: Callable[[], Any], optimizer: Optimizer) -> Callable[[], Any]:
        is_first = True

        def watched() -> Any:
            nonlocal is_first
            result = closure()
            if is_first:
                self._measure_gradient(optimizer)
            is_first = False
            return result

        return watched

    def _measure_gradient(self, optimizer: Optimizer) -> None:
        self._monitor._measure(
            [
                # To maximize is to minimize the negative.
                -param.grad if group.get("maximize") else param.grad
                for group in optimizer.param_groups
                for param in group["params"]
                if param.grad is not None
            ]
        )

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Scales the step that the optimizer has taken."""
        del optimizer, args, kwargs
        scale = self._monitor.runaway.scale
        saved, self._saved = self._saved, []
        for params, befores, foreach in saved:
            scale_change(params, befores, scale, foreach=foreach)


def scale_by_runaway(
    optimizer: Optimizer, *, eps: float = 1e-8, bounds: Bounds | None = None
) -> RunawayMonitor:
    r"""Multiplies each step by a factor that is below 1 if the gradient looks like a runaway.

    .. math:: p \leftarrow p + \left(1 - \frac{m_3}{m_2 + \epsilon}\,\exp(-m_4)\right) (p' - p)

    The moments are computed over the gradients of all parameters of the optimizer, which exist before the
    step or which its closure computes: one number for all tensors. p' are the parameters after the
    optimizer's own step. The effect is a scaled learning rate, also in weight decay; no group's `lr` is
    written. A gradient with a negative third moment makes steps longer. The scaling uses hooks of the
    optimizer, which its copies and pickles do not have, and a copy of the parameters during a step. With a
    gradient scaler and a fused optimizer call `scaler.unscale_(optimizer)` first. Steps are read from the
    weights: weights of bfloat16 or float16 lose steps that are shorter than their rounding, with every
    `rounding`; a warning says this.

    Args:
        optimizer: a `torch.optim.Optimizer`, also one of this package.
        eps: the number added to the second moment, >= 0.
        bounds: the least and the largest factor, the first below the second; `None` for no bounds. Without
            bounds the factor is between 0.449 and 1.551 if all elements are equally large. If most elements
            are 0, the factor can be negative and reverse the step (one element of 20 in a million: a factor
            of -16); `bounds=(0.0, 2.0)` prevents this.

    Returns:
        A monitor, whose `runaway` shows the last gradient and whose `remove()` ends the scaling.

    Raises:
        ValueError: for an option out of its range, and for an optimizer that keeps track of where it moved
            the parameters, as schedule-free optimizers do.
        TypeError: for an optimizer that steers its steps already, as `EmoPilot` and `Autopilot`, for an
            optimizer that calls a closure itself, as `torch.optim.LBFGS` does, or for an object that is no
            optimizer.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> monitor = emo_torch.scale_by_runaway(optimizer)
        >>> weight.grad = torch.tensor([0.5, 0.5])
        >>> optimizer.step()
        >>> print(weight.detach(), monitor.runaway.scale)
        tensor([-0.2651, -0.2651]) tensor(0.5303)

    Source: the runaway detection of the Emo documents, an idea of muooon's.
    """
    check_inner(optimizer)
    name = type(optimizer).__name__
    if isinstance(optimizer, SteeredOptimizer):
        raise TypeError(
            f"{name} steers its steps already, and averages the weights after its own steps; "
            f"scale_by_runaway would make this average wrong. Use {name} without scale_by_runaway. To "
            "measure only, use track_runaway"
        )
    check_follows(optimizer)
    monitor = RunawayMonitor(eps=eps, bounds=bounds)
    _Hooks(monitor, optimizer, is_scaling=True)
    params = (param for group in optimizer.param_groups for param in group["params"])
    warn_of_narrow_weights("scale_by_runaway", filter(is_narrow, params))
    return monitor


def track_runaway(
    optimizer: Optimizer, *, eps: float = 1e-8, bounds: Bounds | None = None
) -> RunawayMonitor:
    """Measures the gradient's moments at every step of an optimizer, without changing the step.

    See `scale_by_runaway` for the formula.

    Args:
        optimizer: an instance of a `torch.optim.Optimizer`.
        eps: the number added to the second moment, >= 0.
        bounds: the least and the largest factor that is shown, the first below the second; `None` for no
            bounds.

    Returns:
        A monitor, whose `runaway` shows the last gradient and whose `remove()` ends the measuring.

    Raises:
        ValueError: for an option out of its range.
        TypeError: for an object that is no optimizer.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.Adam([weight], lr=1e-3)
        >>> monitor = emo_torch.track_runaway(optimizer)
        >>> weight.grad = torch.tensor([0.5, 0.5])
        >>> optimizer.step()
        >>> print(monitor.runaway.emotion)
        tensor(0.4697)

    Source: the runaway detection of the Emo documents, an idea of muooon's.
    """
    if not isinstance(optimizer, Optimizer):
        check_inner(optimizer)
    monitor = RunawayMonitor(eps=eps, bounds=bounds)
    _Hooks(monitor, optimizer, is_scaling=False)
    return monitor


def get_runaway(monitor: RunawayMonitor) -> Runaway:
    """Returns the numbers of the last gradient, in new tensors; no sync with the device.

    Args:
        monitor: the monitor of a model or an optimizer.

    Example:
        >>> import emo_torch
        >>> print(emo_torch.get_runaway(emo_torch.RunawayMonitor()).scale)
        tensor(1.)
    """
    return Runaway(*(field.clone() for field in monitor.runaway))
