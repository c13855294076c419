"""Lightning: the optimizers feel the losses as `training_step` returned them."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from emo_torch._pieces.averaged_weights import swap_average, swap_back
from emo_torch._rules.recipe import State
from emo_torch._sharded import is_sharded
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
    """Evaluates with averaged weights, if an optimizer keeps them (`EmoPilot`, `Autopilot`).

    The callback puts the averaged weights into the model before a validation, a test or a prediction, and
    the trained weights after it. A checkpoint has the trained weights in the model, and the averaged
    weights in the optimizer's state. `trainer.validate`, `trainer.test` and `trainer.predict` of a
    checkpoint (`ckpt_path`) evaluate the averaged weights of this checkpoint, also without a `trainer.fit`
    before. They evaluate its trained weights if the checkpoint has no averages, because it was saved
    without this callback or with `save_weights_only=True`, and for parameters that FSDP shards.

    Example:
        >>> import lightning.pytorch as pl
        >>> from emo_torch.integrations.lightning import AveragedWeightsCallback, LossAwareCallback
        >>> callbacks = [LossAwareCallback(), AveragedWeightsCallback()]  # pl.Trainer(callbacks=callbacks)
    """

    def __init__(self) -> None:
        self._loaded: Any = None
        """The path of the checkpoint from which the model has its weights; `None` for trained weights."""
        self._averages: tuple[Any, dict[str, State]] = (None, {})
        """The path of a checkpoint, and its averages by the names of the parameters."""
        self._swapped: list[tuple[Tensor, State]] = []
        """Parameters that hold an average of a checkpoint, each with a state of its trained values."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the places of the averaged weights in the states of the optimizers.

        Args:
            trainer: the trainer, which has the optimizers.
            pl_module: the module, which has the names of the parameters.
            checkpoint: the checkpoint, changed in place.
        """
        names = {id(param): name for name, param in pl_module.named_parameters()}
        places: dict[str, list[Any]] = {}
        states = checkpoint.get("optimizer_states", [])
        for index, (optimizer, saved) in enumerate(zip(trainer.optimizers, states, strict=False)):
            if isinstance(optimizer, SteeredOptimizer):
                keys = [key for group in saved["param_groups"] for key in group["params"]]
                params = [param for group in optimizer.param_groups for param in group["params"]]
                for param, key in zip(params, keys, strict=True):
                    places[names.get(id(param), "")] = [index, key]
        checkpoint[_PLACES] = places

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Reads the averaged weights of a checkpoint that is evaluated.

        Args:
            trainer: the trainer.
            pl_module: the module.
            checkpoint: the checkpoint.
        """
        del pl_module
        averages: dict[str, State] = {}
        places = checkpoint.get(_PLACES, {}) if _is_only_evaluating(trainer) else {}
        for name, (index, key) in places.items():
            state = checkpoint["optimizer_states"][index]["state"].get(key, {})
            for kind in ("average", "autopilot_average"):
                if kind in state:
                    averages[name] = {"average": state[kind]}
        self._averages = (trainer.ckpt_path, averages)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the averages from the optimizers again.

        Args:
            trainer: the trainer.
            pl_module: the module.
        """
        del trainer, pl_module
        self._loaded, self._averages = None, (None, {})

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the averaged weights into the model.

        Args:
            trainer: the trainer, which has the optimizers.
            pl_module: the module.
        """
        if _is_only_evaluating(trainer) and trainer.ckpt_path is not None:
            self._loaded = trainer.ckpt_path
        if self._loaded is None:
            for optimizer in _steered(trainer):
                optimizer.eval()
            return
        # Lightning has loaded the model alone: the averages of the optimizers are of other weights.
        path, averages = self._averages
        for name, param in pl_module.named_parameters():
            state = averages.get(name) if path == self._loaded else None
            if state is not None and state["average"].shape == param.shape and not is_sharded(param):
                self._swapped.append((param, state))
                with torch.no_grad():
                    swap_average(param, state)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the averaged weights out of the model again.

        Args:
            trainer: the trainer, which has the optimizers.
            pl_module: the module.
        """
        del pl_module
        with torch.no_grad():
            for param, state in self._swapped:
                swap_back(param, state)
        self._swapped = []
        for optimizer in _steered(trainer):
            optimizer.train()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

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


_PLACES = "emo_torch_averages"
"""The key in a checkpoint: from the name of a parameter to its optimizer, by index, and its key in it."""


def _is_only_evaluating(trainer: pl.Trainer) -> bool:
    """Returns whether the trainer evaluates outside of a training."""
    return trainer.state.fn != "fit"


def _steered(trainer: pl.Trainer) -> list[SteeredOptimizer]:
    found = loss_optimizers(trainer.optimizers)
    return [optimizer for optimizer in found if isinstance(optimizer, SteeredOptimizer)]
