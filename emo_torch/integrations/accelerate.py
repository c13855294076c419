"""Accelerate: every loss given to `accelerator.backward` reaches the optimizers by itself."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from emo_torch._wrappers.wrappers import loss_optimizers

__all__ = ["losses_from_backward"]


@contextmanager
def losses_from_backward(accelerator: Accelerator | None = None) -> Iterator[None]:
    """Lets optimizers watch every loss that goes through `accelerator.backward`, while it lasts.

    They see the loss as it is given, before Accelerate divides it by the number of accumulation steps
    and scales it for float16; the losses of one step are averaged. Only optimizers of this package
    that the same Accelerator prepared watch, all of them every loss: where each has its own, as in a
    GAN, call an optimizer's `zero_grad` right before its own backward pass.

    Args:
        accelerator: the one to listen to. `None` for every one, also those made later: that wraps
            `Accelerator.backward` itself.

    Yields:
        Nothing. At the end, after an exception as well, all is as it was before.

    Example:
        >>> import accelerate
        >>> import torch
        >>> import emo_torch
        >>> from emo_torch.integrations.accelerate import losses_from_backward
        >>> accelerator = accelerate.Accelerator(cpu=True)
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = accelerator.prepare(emo_torch.EmoSens([weight]))
        >>> with losses_from_backward(accelerator):
        ...     accelerator.backward(weight.sum())
        ...     optimizer.step()
        >>> print(emo_torch.unwrap(optimizer).emotion.long)
        tensor(2.)
    """
    target: Any = Accelerator if accelerator is None else accelerator
    original = target.backward

    @functools.wraps(original)
    def backward(*args: Any, **kwargs: Any) -> Any:
        # The class is given the instance, the instance is not.
        listened_to = args[0] if accelerator is None else accelerator
        loss = kwargs["loss"] if "loss" in kwargs else args[-1]
        if isinstance(loss, Tensor) and loss.requires_grad:
            for optimizer in loss_optimizers(listened_to._optimizers):
                optimizer.watch(loss)
        return original(*args, **kwargs)

    before = vars(target).get("backward")
    target.backward = backward
    try:
        yield
    finally:
        if before is None:
            del target.backward
        else:
            target.backward = before
