"""Lightning: the optimizers feel the losses as `training_step` returned them."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from emo_torch._step.steered import SteeredOptimizer
from emo_torch._wrappers.wrappers import loss_optimizers

__all__ = ["AveragedWeightsCallback", "LossAwareCallback"]


class LossAwareCallback(pl.Callback):
    """Passes the loss of every backward pass to the optimizers, undivided and unscaled.

    Without the callback the optimizers get the result of Lightning's closure: with
    `accumulate_grad_batches` only the last micro-batch's part of the loss, with `precision="16-mixed"`
    none. The losses of one step are averaged. In manual optimization an optimizer gets no loss while all
    its parameters are frozen by `toggle_optimizer` of another optimizer; a loss given to
    `step(loss=loss)` replaces the losses of the callback.

    A batch for which `training_step` returns `None` is skipped. In automatic optimization a step all of
    whose batches were skipped changes nothing.

    Example:
        >>> import lightning.pytorch as pl
        >>> from emo_torch.integrations.lightning import LossAwareCallback
        >>> callbacks = [LossAwareCallback()]  # pl.Trainer(..., callbacks=callbacks)
    """

    def __init__(self) -> None:
        self._has_loss = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discards the losses that an interrupted training left.

        Args:
            trainer: the trainer.
            pl_module: the module in training.
        """
        del trainer, pl_module
        self._has_loss = False

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Passes the loss to the optimizers.

        Args:
            trainer: the trainer, which knows by which numbers the loss was divided and scaled.
            pl_module: the module in training.
            loss: the loss as it goes into the backward pass, shape `[]`.
        """
        self._has_loss = True
        value = loss.detach()
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            # `scale` of a tensor leaves the scale on the device.
            value = value / scaler.scale(torch.ones_like(value))
        if pl_module.automatic_optimization:
            value = value * trainer.accumulate_grad_batches
        for optimizer in loss_optimizers(trainer.optimizers):
            if any(param.requires_grad for group in optimizer.param_groups for param in group["params"]):
                optimizer.observe(value)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Sets the gradients to `None` before a step without batches, so that the step changes nothing.

        Without a backward pass since the last step, all gradients are 0, because `zero_grad` has set
        them to 0.

        Args:
            trainer: the trainer.
            pl_module: the module in training.
            optimizer: the optimizer that is about to step.
        """
        del trainer
        if pl_module.automatic_optimization and not self._has_loss:
            for inside in loss_optimizers([optimizer]):
                inside.zero_grad(set_to_none=True)
        self._has_loss = False


class AveragedWeightsCallback(pl.Callback):
    """Validates and tests with averaged weights, if an optimizer keeps them (`EmoPilot`, `Autopilot`).

    The callback calls `eval()` of the optimizers before a validation or a test, and `train()` after it. A
    checkpoint has the trained weights in the model, and the averaged weights in the optimizer's state.

    Example:
        >>> import lightning.pytorch as pl
        >>> from emo_torch.integrations.lightning import AveragedWeightsCallback, LossAwareCallback
        >>> callbacks = [LossAwareCallback(), AveragedWeightsCallback()]  # pl.Trainer(callbacks=callbacks)
    """

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the averaged weights into the model.

        Args:
            trainer: the trainer, which has the optimizers.
            pl_module: the module.
        """
        del pl_module
        for optimizer in _steered(trainer):
            optimizer.eval()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the averaged weights out of the model again.

        Args:
            trainer: the trainer, which has the optimizers.
            pl_module: the module.
        """
        del pl_module
        for optimizer in _steered(trainer):
            optimizer.train()

    on_test_start = on_validation_start
    on_test_end = on_validation_end

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Takes the averaged weights out of the model if a validation fails.

        Args:
            trainer: the trainer, which has the optimizers.
            pl_module: the module.
            exception: the exception of the validation.
        """
        del exception
        self.on_validation_end(trainer, pl_module)


def _steered(trainer: pl.Trainer) -> list[SteeredOptimizer]:
    found = loss_optimizers(trainer.optimizers)
    return [optimizer for optimizer in found if isinstance(optimizer, SteeredOptimizer)]
