"""The losses of a step: watched or observed between two steps, and checked when the step takes the loss."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from emo_torch._checks.validation import check_has_graph, check_loss
from emo_torch._pieces.accumulation import CollectedLosses
from emo_torch._step.loss_memory import LossMemory


class LossCollector(Optimizer):
    """The part of an optimizer that collects losses for the next step."""

    _collected: CollectedLosses
    _memory: LossMemory

    def watch(self, loss: Tensor, weight: float = 1.0, reduction: str = "mean") -> Tensor:
        r"""Collects a loss for the next step as soon as a backward pass reaches it.

        .. math:: L = \frac{\sum_i w_i L_i}{\sum_i w_i}

        Call it where the loss is computed, before the loss is divided or scaled: gradient accumulation
        and gradient scalers then don't matter. A loss without a backward pass does not count. A loss with
        two backward passes counts twice.

        `zero_grad` forgets the losses whose backward passes came before it, with one exception: losses
        that were all watched before the first of their backward passes belong to one step, and a
        `zero_grad` between those passes forgets none of them. Methods that take the gradients of several
        losses apart (such as PCGrad) call `zero_grad` there. If such a method computes a loss only after
        the backward pass of another one, observe the sum before the step: `observe(sum(losses))`.

        Args:
            loss: the loss, a tensor of one element with a graph behind it. While gradients are off, as
                in an evaluation, it is passed through and not watched.
            weight: its weight among the losses of one step, above 0, for example how many examples it
                is of.
            reduction: how several losses of one step become one, "mean" or "sum" (of weight times
                loss); the same for all losses.

        Returns:
            The loss, as it was given.

        Raises:
            TypeError: for anything but a tensor of real numbers, or a weight that is no number.
            ValueError: for a loss that is not a scalar or has no graph, a weight out of its range, and
                another reduction than that of the losses collected so far.

        Example:
            >>> import torch
            >>> import emo_torch
            >>> weight = torch.nn.Parameter(torch.ones(2))
            >>> optimizer = emo_torch.EmoSens([weight], lr=1e-3)
            >>> for part in (1.0, 3.0):
            ...     loss = optimizer.watch(part * weight.sum())
            ...     (loss / 2).backward()
            >>> _ = optimizer.step()
            >>> print(optimizer.emotion.long)
            tensor(4.)
        """
        collected = self._collected
        collected.check(weight, reduction)
        value = self._checked_loss(loss)
        if torch.is_grad_enabled():
            check_has_graph(loss)
            # A copy: a trainer may divide or scale the loss in place before the backward pass.
            watched = collected.watch(value.clone(), weight, reduction)

            def count(gradient: Tensor) -> None:
                del gradient
                collected.add_watched(watched)

            loss.register_hook(count)
        return loss

    def observe(self, loss: Tensor | float, weight: float = 1.0, reduction: str = "mean") -> None:
        r"""Collects a loss for the next step, at any time between two steps.

        .. math:: L = \frac{\sum_i w_i L_i}{\sum_i w_i}

        Call it after the backward pass, with the loss as it was before anything divided or scaled it;
        `zero_grad` forgets it. No sync with the device.

        Args:
            loss: the loss, a tensor of one element or a number.
            weight: its weight among the losses of one step, above 0, for example how many examples it
                is of.
            reduction: how several losses of one step become one, "mean" or "sum" (of weight times
                loss); the same for all losses.

        Raises:
            TypeError: for anything but a real number.
            ValueError: for a loss that is not a scalar, a weight out of its range, and another
                reduction than that of the losses collected so far.

        Example:
            >>> import torch
            >>> import emo_torch
            >>> weight = torch.nn.Parameter(torch.ones(2))
            >>> optimizer = emo_torch.EmoSens([weight], lr=1e-3)
            >>> for examples, loss in ((8, 2.0), (4, 5.0)):
            ...     optimizer.observe(loss, weight=examples)
            >>> _ = optimizer.step()
            >>> print(optimizer.emotion.long)
            tensor(3.)
        """
        self._collected.check(weight, reduction)
        self._collected.add(self._checked_loss(loss), weight, reduction)

    def discard_observed(self) -> None:
        """Forgets the losses collected since the last step, as `zero_grad` does, too.

        Example:
            >>> import torch
            >>> import emo_torch
            >>> optimizer = emo_torch.EmoSens([torch.nn.Parameter(torch.ones(2))])
            >>> optimizer.observe(2.0)
            >>> optimizer.discard_observed()
            >>> try:
            ...     optimizer.step()
            ... except emo_torch.LossMissingError:
            ...     print("forgotten")
            forgotten
        """
        self._collected.discard()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients, as every optimizer does, and forgets the losses that go with them.

        Args:
            set_to_none: whether gradients become `None`, and not 0.
        """
        self._collected.reset()
        super().zero_grad(set_to_none)

    def _checked_loss(self, loss: Any, name: str = "loss") -> Tensor:
        number = self._memory.number
        return check_loss(loss, number.dtype, number.device, name)
