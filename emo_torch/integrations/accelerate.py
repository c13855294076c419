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
    """Lets optimizers watch every loss given to `accelerator.backward` inside of a `with` block.

    The optimizers get the loss before Accelerate divides it by the number of accumulation steps
    and scales it for float16; the losses of one step are averaged. All optimizers of this package that the
    same Accelerator prepared watch every loss. If each optimizer has its own loss, as in a GAN, call an
    optimizer's `zero_grad` directly before the backward pass of its loss.

    Args:
        accelerator: the Accelerator whose losses are watched. `None` for all Accelerators, also for those
            made later: then the method `Accelerator.backward` of the class is wrapped.

    Yields:
        Nothing. At the end, also after an exception, `backward` is restored.

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
        # A method of the class gets the instance as an argument; a function on the instance does not.
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
