"""Averaged buffers: the statistics of a model averaged as EmoPilot averages its weights."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from emo_torch._pieces.averaged_weights import swap_average, swap_back

UPDATE_IN_EVAL_MODE = (
    "The buffers hold their averages, because `eval()` was called. Call `train()` before the next `update`."
)
"""The error of an update in eval mode."""


class AveragedBuffers:
    r"""Averages the buffers of a model, such as the statistics of `BatchNorm`, as EmoPilot its weights.

    .. math:: A \leftarrow A + \min\bigl(1,\, \tfrac{9}{t+8}\bigr)\,(b - A)

    Call `update` after each step. `eval` puts the averages into the buffers, and `train` takes them out
    again; call both when you call `eval` and `train` of the optimizer. Buffers of whole numbers stay as
    they are.

    Args:
        model: the model, with its buffers.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        >>> buffers = emo_torch.AveragedBuffers(model)
        >>> for _ in range(20):
        ...     _ = model(torch.randn(8, 2))
        ...     buffers.update()
        >>> buffers.eval()  # The model now has the averaged statistics.
        >>> buffers.train()

    Source: ours.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._step = 0
        self._is_training = True
        self._states: dict[str, dict[str, Tensor]] = {}

    def _buffers(self) -> Iterable[tuple[str, Tensor]]:
        return ((name, each) for name, each in self._model.named_buffers() if each.is_floating_point())

    @torch.no_grad()
    def update(self) -> None:
        """Updates the averages with the current buffers.

        Raises:
            RuntimeError: in eval mode.
        """
        if not self._is_training:
            raise RuntimeError(UPDATE_IN_EVAL_MODE)
        self._step += 1
        for name, buffer in self._buffers():
            wide = torch.promote_types(buffer.dtype, torch.float32)
            if name not in self._states:
                self._states[name] = {"average": buffer.to(wide, copy=True)}
            average = self._states[name]["average"]
            average.add_((buffer.to(wide) - average) * min(1.0, 9.0 / (self._step + 8.0)))

    @torch.no_grad()
    def eval(self) -> None:
        """Puts the averages into the buffers; nothing happens in eval mode."""
        self._swap(is_training=False)

    @torch.no_grad()
    def train(self) -> None:
        """Takes the averages out of the buffers again; nothing happens in train mode."""
        self._swap(is_training=True)

    def _swap(self, *, is_training: bool) -> None:
        if self._is_training is not is_training:
            # Back in the opposite order: buffers may share their memory.
            for name, buffer in list(self._buffers())[:: -1 if is_training else 1]:
                if name in self._states:
                    (swap_back if is_training else swap_average)(buffer, self._states[name])
            self._is_training = is_training

    def state_dict(self) -> dict[str, Any]:
        """Returns the averages, the number of updates and the mode, to be saved beside the model."""
        states = {name: dict(state) for name, state in self._states.items()}
        return {"step": self._step, "is_training": self._is_training, "states": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state that `state_dict` returned.

        Args:
            state_dict: the state; it is not changed.

        Raises:
            TypeError: for an object that is no mapping.
            ValueError: before anything is changed, for averages of buffers that the model does not have,
                and for a state that lacks a part or is damaged.
        """
        check_buffers_state(state_dict)
        known, saved = dict(self._buffers()), state_dict["states"]
        for name, state in saved.items():
            if name not in known or state["average"].shape != known[name].shape:
                raise ValueError(
                    f"The model has no buffer {name!r} of this shape: load the state of this model"
                )
        self._step, self._is_training = state_dict["step"], state_dict["is_training"]
        self._states = {
            name: {key: value.clone().to(known[name].device) for key, value in state.items()}
            for name, state in saved.items()
        }


def check_buffers_state(saved: Any) -> None:
    """Raises an error unless an object has the form of a state of `AveragedBuffers`."""
    if not isinstance(saved, Mapping):
        raise TypeError(f"AveragedBuffers loads the result of its `state_dict()`, and this is {saved!r}")
    missing = [name for name in ("step", "is_training", "states") if name not in saved]
    states = saved.get("states", {})
    if not isinstance(states, Mapping) or not all(isinstance(each, Mapping) for each in states.values()):
        raise ValueError("The state is damaged: 'states' must hold a dict for each buffer")
    missing += [f"the average of {name!r}" for name, state in states.items() if "average" not in state]
    if missing:
        raise ValueError(f"The state lacks {', '.join(missing)}: load the result of `state_dict()`")
    step = saved["step"]
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"The state is damaged: 'step' must be a whole number >= 0, and is {step!r}")
    if not isinstance(saved["is_training"], bool):
        raise ValueError(
            f"The state is damaged: 'is_training' must be a bool, and is {saved['is_training']!r}"
        )
    for name, state in states.items():
        for key, value in state.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise ValueError(f"The state is damaged: {key!r} of {name!r} must be a tensor of floats")
