"""Hugging Face's Trainer: its optimizer feels the losses that it logs."""

from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emo_torch._wrappers.wrappers import loss_optimizers

__all__ = ["LossAwareCallback", "LossAwareTrainerMixin"]


class LossAwareTrainerMixin:
    """Passes the loss of every micro-batch to the optimizer; goes before the `Trainer` among the bases.

    `training_step` returns the micro-batch's share of the loss of the whole step. The optimizer therefore
    feels the sum of these shares, which the Trainer logs with `logging_steps=1`. Optimizers of other
    packages are left alone.

    Example:
        >>> import transformers
        >>> from emo_torch.integrations.transformers import LossAwareTrainerMixin
        >>> class Trainer(LossAwareTrainerMixin, transformers.Trainer):
        ...     pass
    """

    optimizer: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_ForgetLeftovers())  # type: ignore[attr-defined]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Takes the forward and the backward pass of one micro-batch.

        Args:
            *args: the arguments of the `Trainer`'s own `training_step`.
            **kwargs: the keyword arguments of the `Trainer`'s own `training_step`.

        Returns:
            The micro-batch's share of the step's loss.
        """
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        for optimizer in loss_optimizers([self.optimizer]):
            optimizer.observe(loss, reduction="sum")
        return loss


class _ForgetLeftovers(TrainerCallback):
    """Discards the losses of a skipped step: the Trainer calls `zero_grad` of the model alone."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Discards the losses that an interrupted training left."""
        del args, state, control
        _forget(kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Discards the losses of a skipped step."""
        del args, state, control
        _forget(kwargs)


class LossAwareCallback(TrainerCallback):
    """Passes the model's own `loss` to the optimizer, for a `Trainer` that cannot be subclassed.

    The callback watches the `.loss` of the model's output in training. A Trainer that computes its loss
    elsewhere (`compute_loss`, `compute_loss_func`, label smoothing) needs `LossAwareTrainerMixin`.

    Example:
        >>> from emo_torch.integrations.transformers import LossAwareCallback
        >>> callbacks = [LossAwareCallback()]  # Trainer(..., callbacks=callbacks)
    """

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins to watch the model's losses.

        Args:
            args: the Trainer's arguments.
            state: the Trainer's state.
            control: the object by which callbacks control the Trainer.
            **kwargs: the model and the optimizer, among others.
        """
        del state, control
        self._stop_watching()
        _forget(kwargs)
        # Each process's model divides by the examples of all, and the mean over processes follows.
        processes = args.world_size if args.average_tokens_across_devices else 1

        def watch(module: Module, inputs: Any, options: dict[str, Any], output: Any) -> None:
            del inputs
            loss = getattr(output, "loss", None)
            if loss is None or not module.training:
                return
            for optimizer in loss_optimizers([kwargs["optimizer"]]):
                # A model that knows the whole step's number of items gives its share of the sum.
                if options.get("num_items_in_batch") is not None:
                    optimizer.watch(loss, weight=processes, reduction="sum")
                else:
                    optimizer.watch(loss)

        self._handle = kwargs["model"].register_forward_hook(watch, with_kwargs=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Discards the losses of a skipped step.

        Args:
            args: the Trainer's arguments.
            state: the Trainer's state.
            control: the object by which callbacks control the Trainer.
            **kwargs: the model and the optimizer, among others.
        """
        del args, state, control
        _forget(kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops watching; after an exception, the beginning of the next training stops it.

        Args:
            args: the Trainer's arguments.
            state: the Trainer's state.
            control: the object by which callbacks control the Trainer.
            **kwargs: the model and the optimizer, among others.
        """
        del args, state, control, kwargs
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _forget(kwargs: dict[str, Any]) -> None:
    for optimizer in loss_optimizers([kwargs.get("optimizer")]):
        optimizer.discard_observed()
