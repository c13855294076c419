"""Checks of the gradients that a step reads."""

import inspect
from operator import attrgetter

import torch
from torch import Tensor

_layout = attrgetter("layout")


def check_gradients(owner: str, params: list[Tensor]) -> None:
    """Raises a `RuntimeError` for a gradient that the optimizer `owner` cannot use."""
    grads = [param.grad for param in params if param.grad is not None]
    # torch.compile does not trace an attrgetter.
    is_eager = not torch.compiler.is_compiling()
    if (
        is_eager
        and set(map(_layout, grads)) <= {torch.strided}
        and all(map(Tensor.is_floating_point, grads))
    ):
        return
    strange = [grad for grad in grads if grad.layout != torch.strided or not grad.is_floating_point()]
    if any(grad.layout != torch.strided for grad in strange):
        raise RuntimeError(f"{owner} does not support sparse gradients")
    if any(grad.is_complex() for grad in strange):
        raise RuntimeError(f"{owner} does not support complex parameters")
    if strange:
        raise RuntimeError(
            f"{owner} steps only floating-point parameters, and one parameter has a gradient of "
            f"{strange[0].dtype}. Set this gradient to None, or convert the parameter to a floating-point "
            "dtype"
        )


def check_closure_under_scaler(before: list[tuple[Tensor, int]], params: list[Tensor]) -> None:
    """Raises a `RuntimeError` if a closure computed gradients while a gradient scaler is stepping.

    Args:
        before: the gradients that there were, with their versions.
        params: the parameters.
    """
    after = [(param.grad, param.grad._version) for param in params if param.grad is not None]
    is_same = len(before) == len(after) and all(
        old is new and version == now for (old, version), (new, now) in zip(before, after, strict=True)
    )
    if is_same:
        return
    # The scaler has unscaled the old gradients. It leaves no mark on the optimizer, so it is found among
    # the callers.
    frame = inspect.currentframe()
    while frame is not None:
        # Looking into a frame costs more than reading its name.
        caller = frame.f_locals.get("self") if frame.f_code.co_name == "_maybe_opt_step" else None
        if isinstance(caller, torch.amp.GradScaler) and caller.is_enabled():
            raise RuntimeError(
                "The closure computed gradients during `scaler.step`. These gradients are scaled, and the "
                "scaler does not unscale them. Call `scaler.step(opt, loss=loss)` after the backward pass, "
                "or pass a closure that only returns the loss: `scaler.step(opt, lambda: loss.detach())`. "
                "No parameter and no state was changed; the gradients of the closure stay in `.grad`."
            )
        frame = frame.f_back
