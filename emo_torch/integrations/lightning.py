"""Lightning: the optimizers feel the losses as `training_step` returned them."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from emo_torch._step.steered import SteeredOptimizer
from emo_torch._wrappers.wrappers import loss_optimizers

__all__ = ["AveragedWeightsCallback", "LossAwareCallback"]


class LossAwareCallback(pl.Callback):
    """Hands the loss of every backward pass on to the optimizers, undivided and unscaled.

    Without it they get what Lightning's closure returns: with `accumulate_grad_batches` the last
    micro-batch's part alone, with `precision="16-mixed"` nothing. The losses of one step are averaged.
    In manual optimization an optimizer whose parameters are all off (`toggle_optimizer` of another
    one) is left out, and what is given to `step(loss=loss)` goes first.

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
        """Forgets what an interrupted training left.

        Args:
            trainer: the trainer.
            pl_module: the module in training.
        """
        del trainer, pl_module
        self._has_loss = False

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Hands the loss on.

        Args:
            trainer: the trainer, which knows what the loss was divided by and scaled with.
            pl_module: the module in training.
            loss: the loss as it goes into the backward pass, shape `[]`.
        """
        self._has_loss = True
        value = loss.detach()
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            # Asked like this, the scale stays on the device.
            value = value / scaler.scale(torch.ones_like(value))
        if pl_module.automatic_optimization:
            value = value * trainer.accumulate_grad_batches
        for optimizer in loss_optimizers(trainer.optimizers):
            if any(param.requires_grad for group in optimizer.param_groups for param in group["params"]):
                optimizer.observe(value)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Takes the gradients away before a step all of whose batches were skipped: it changes nothing.

        Without a backward pass since the last step, the only gradients are those that `zero_grad` has
        set to 0.

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
    """Validates and tests with averaged weights, where an optimizer keeps them (`EmoPilot`, `Autopilot`).

    It calls `eval()` of the optimizers before a validation or a test, and `train()` after it. A checkpoint
    holds the trained weights in the model, and the averaged ones in the state of the optimizer.

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
        """Takes the averaged weights out of the model where a validation fails.

        Args:
            trainer: the trainer, which has the optimizers.
            pl_module: the module.
            exception: what was raised.
        """
        del exception
        self.on_validation_end(trainer, pl_module)


def _steered(trainer: pl.Trainer) -> list[SteeredOptimizer]:
    found = loss_optimizers(trainer.optimizers)
    return [optimizer for optimizer in found if isinstance(optimizer, SteeredOptimizer)]
