"""Drives either package with given gradients and losses, and shows all that it holds as NumPy arrays."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import emo_optax
from parity_tests.family import Member, optax_options, torch_options

Arrays = dict[str, np.ndarray]

MOMENTS = {
    emo_optax.ScaleByUncorrectedAdamState: {"mu": "exp_avg", "nu": "exp_avg_sq"},
    emo_optax.ScaleByLionState: {"mu": "exp_avg"},
    emo_optax.ScaleByFactorsState: {"row": "row", "column": "column"},
    emo_optax.BlendWithShadowState: {"shadow": "shadow"},
}
"""What PyTorch calls the trees in each of the Optax states."""


class Drive(Protocol):
    """One side, under the wheel."""

    def step(self, grads: Arrays, loss: float) -> None:
        """Takes one step with given gradients and loss."""

    def params(self) -> Arrays:
        """Returns the parameters by name."""

    def state(self) -> Arrays:
        """Returns every leaf of the optimizer's state, under names that both sides share."""


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Copies an array into a tensor, bfloat16 too, which NumPy and PyTorch don't exchange."""
    if array.dtype == jnp.bfloat16:
        return torch.tensor(array.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(array)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Copies a tensor into an array."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(jnp.bfloat16)
    return tensor.numpy().copy()


class OptaxDrive:
    """The Optax side, jitted."""

    def __init__(
        self, member: Member, params: Arrays, options: dict[str, Any], device: str = "cpu"
    ) -> None:
        del device  # JAX puts arrays on its first device: `JAX_PLATFORMS` says which that is.
        optimizer = member.optax(**optax_options(options))
        self._params = {name: jnp.asarray(array) for name, array in params.items()}
        self._state = optimizer.init(self._params)

        @jax.jit
        def step(params: Any, state: Any, grads: Any, loss: jax.Array) -> tuple[Any, Any]:
            updates, state = optimizer.update(grads, state, params, value=loss)
            return optax.apply_updates(params, updates), state

        self._step = step

    def step(self, grads: Arrays, loss: float) -> None:
        """Takes one step with given gradients and loss."""
        arrays = {name: jnp.asarray(grad) for name, grad in grads.items()}
        self._params, self._state = self._step(self._params, self._state, arrays, loss)

    def params(self) -> Arrays:
        """Returns the parameters by name."""
        return {name: np.asarray(array) for name, array in self._params.items()}

    def state(self) -> Arrays:
        """Returns every leaf of the optimizer's state, under names that both sides share."""
        found: Arrays = {}
        self._walk(self._state, found)
        return found

    def _walk(self, node: Any, found: Arrays) -> None:
        if isinstance(node, emo_optax.EmotionState):
            found.update({f"emotion/{name}": np.asarray(leaf) for name, leaf in node._asdict().items()})
            return
        if isinstance(node, emo_optax.BlendWithShadowState):
            found["emotion/shadow_ratio"] = np.asarray(node.ratio)
            found["emotion/shadow_exists"] = np.asarray(node.exists)
        for field, name in MOMENTS.get(type(node), {}).items():
            for param, leaf in getattr(node, field).items():
                if not isinstance(leaf, optax.MaskedNode):
                    found[f"{name}/{param}"] = np.asarray(leaf)
        if isinstance(node, tuple):
            for child in node:
                self._walk(child, found)


class TorchDrive:
    """The PyTorch side."""

    def __init__(
        self, member: Member, params: Arrays, options: dict[str, Any], device: str = "cpu"
    ) -> None:
        self._device = device
        self._params = {
            name: torch.nn.Parameter(to_torch(array).to(device)) for name, array in params.items()
        }
        self.optimizer = member.torch(list(self._params.values()), **torch_options(options))
        self._uses_shadow = bool(options.get("use_shadow"))

    def step(self, grads: Arrays, loss: float) -> None:
        """Takes one step with given gradients and loss."""
        for name, param in self._params.items():
            param.grad = to_torch(grads[name]).to(self._device)
        self.optimizer.step(loss=loss)

    def params(self) -> Arrays:
        """Returns the parameters by name."""
        return {name: to_numpy(param) for name, param in self._params.items()}

    def state(self) -> Arrays:
        """Returns every leaf of the optimizer's state, under names that both sides share."""
        group = self.optimizer.param_groups[0]
        found = {
            key.replace("emotion_", "emotion/", 1): to_numpy(value)
            for key, value in group.items()
            if key.startswith("emotion_") and not key.startswith("emotion_history")
        }
        history = [value for key, value in sorted(group.items()) if key.startswith("emotion_history")]
        found["emotion/history"] = to_numpy(torch.stack(history))
        if not self._uses_shadow:
            del found["emotion/shadow_ratio"], found["emotion/shadow_exists"]
        for name, param in self._params.items():
            for key, value in self.optimizer.state[param].items():
                if key == "shadow_exists":  # One for all in Optax, one a parameter in PyTorch.
                    assert bool(value) == bool(found["emotion/shadow_exists"])
                    continue
                found[f"{key}/{name}"] = to_numpy(value)
        return found


SIDES: dict[str, Any] = {"optax": OptaxDrive, "torch": TorchDrive}
