"""Runaway detection: a number from the gradient's moments that tells a sudden one-sided change."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from emo_torch._checks.validation import check_bounds, check_inner, check_not_negative
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._sharded import whole
from emo_torch._step.ways import use_foreach
from emo_torch._wrappers.inner_step import scale_change

Bounds = tuple[float, float]
"""The least and the largest factor of a step."""


class Runaway(NamedTuple):
    """The numbers of the last gradient.

    Attributes:
        moments: the means of g, g^2, g^3 and g^4 over all elements of the gradient, shape `[4]`, in
            powers of the gradient's unit; as they come, so not finite where the gradient is not.
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
        raise RuntimeError("Runaway detection does not support complex or sparse gradients")
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

    Large where the gradient leans to one side; the exponential damps it where peaks are extreme. All
    of it is in the gradient's own unit: gradients of a size of about 0.1 to 2 make it speak.

    Args:
        moments: the first four moments, shape `[4]`.
        eps: the number added to the second moment, >= 0.

    Returns:
        The number, shape `[]`. Under 0.551 in size where all elements are equally large, but up to
        0.551 f^(-1/4) where only a share f of them is not 0. It is 0 for a gradient without elements,
        of zeros, or whose powers are too large for the dtype (the exponential is 0 there), and for one
        with a NaN, of which nothing is known.

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
        """Looks at the gradients of parameters, as they are now; no sync with the device.

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
        """Lets go of the optimizer that it looks at, whose steps are then its own again."""
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
        """Looks at the gradients, or sees to it that a closure, which makes them, is followed by that."""
        self._saved = []  # Whatever a step that failed may have left.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        has_closure = callable(closure)  # The optimizer refuses anything else.
        for group in optimizer.param_groups if self._is_scaling else []:
            params = [
                param
                for param in group["params"]
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
        """Goes a part of the way that the step went."""
        del optimizer, args, kwargs
        scale = self._monitor.runaway.scale
        saved, self._saved = self._saved, []
        for params, befores, foreach in saved:
            scale_change(params, befores, scale, foreach=foreach)


def scale_by_runaway(
    optimizer: Optimizer, *, eps: float = 1e-8, bounds: Bounds | None = None
) -> RunawayMonitor:
    r"""Scales the steps of any optimizer by how little their gradient looks like a runaway.

    .. math:: p \leftarrow p + \left(1 - \frac{m_3}{m_2 + \epsilon}\,\exp(-m_4)\right) (p' - p)

    The moments are of the whole gradient that a step finds, or that its closure makes, one number for
    all tensors; p' is where the optimizer goes. So the learning rate is scaled in effect, in weight
    decay, too, while no group's `lr` is written. A gradient that leans to the negative side makes
    steps longer. It works by hooks of the optimizer, which copies and pickles of it don't have, and
    holds a copy of the parameters during a step. With a gradient scaler and a fused optimizer call
    `scaler.unscale_(optimizer)` first.

    Args:
        optimizer: a `torch.optim.Optimizer`, also one of this package.
        eps: the number added to the second moment, >= 0.
        bounds: the least and the largest factor, the first below the second; `None` for no bounds. That is
            between 0.449 and 1.551 where all elements are equally large, but where few are not 0 it
            can turn a step round (one in a million at 20: a factor of -16): `bounds=(0.0, 2.0)`
            never does.

    Returns:
        A monitor, whose `runaway` shows the last gradient and whose `remove()` ends the scaling.

    Raises:
        ValueError: for an option out of its range.
        TypeError: for an optimizer that calls a closure for itself, as `torch.optim.LBFGS` does, or
            no optimizer.

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
    monitor = RunawayMonitor(eps=eps, bounds=bounds)
    _Hooks(monitor, optimizer, is_scaling=True)
    return monitor


def track_runaway(
    optimizer: Optimizer, *, eps: float = 1e-8, bounds: Bounds | None = None
) -> RunawayMonitor:
    """Looks at the gradient's moments at every step of an optimizer, and changes nothing: a monitor.

    See `scale_by_runaway` for the formula.

    Args:
        optimizer: an instance of a `torch.optim.Optimizer`.
        eps: the number added to the second moment, >= 0.
        bounds: the least and the largest factor that is shown, the first below the second; `None` for no
            bounds.

    Returns:
        A monitor, whose `runaway` shows the last gradient and whose `remove()` ends the looking.

    Raises:
        ValueError: for an option out of its range.
        TypeError: for anything but a optimizer.

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
