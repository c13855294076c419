"""The two sides of a soak: the same run in Optax and in PyTorch."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import emo_optax
import emo_torch
from parity_tests.drive import Arrays, to_numpy, to_torch
from parity_tests.family import FAMILY, optax_options
from parity_tests.soak_plan import Soak


class OptaxSide:
    """The run in Optax, one jitted step with the learning rate as an argument."""

    def __init__(self, soak: Soak, params: Arrays) -> None:
        self._make = FAMILY[soak.optimizer].optax
        self._options = optax_options(soak.options)
        self._step = jax.jit(self._stepped)
        self._params = {name: jnp.asarray(array) for name, array in params.items()}
        self._state = self._make(1e-3, **self._options).init(self._params)

    def _stepped(self, params: Any, state: Any, grads: Any, loss: Any, lr: Any) -> tuple[Any, Any]:
        optimizer = self._make(lr, **self._options)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    def gradients(self, grads: Arrays) -> Any:
        """Returns gradients as this side takes them."""
        return {name: jnp.asarray(array) for name, array in grads.items()}

    def step(self, grads: Any, loss: Any, lr: float) -> None:
        """Takes one step."""
        self._params, self._state = self._step(self._params, self._state, grads, loss, lr)

    def leave(self) -> tuple[Arrays, Arrays]:
        """Returns the parameters, and the state under names that both sides share."""
        params = {name: np.array(array) for name, array in self._params.items()}
        return params, emo_optax.to_arrays(self._state)

    def enter(self, params: Arrays, arrays: Arrays) -> None:
        """Continues from the state that either side left, in a new state."""
        self._params = {name: jnp.array(array) for name, array in params.items()}
        fresh = self._make(1e-3, **self._options).init(self._params)
        self._state = emo_optax.from_arrays(arrays, fresh)

    def resume(self, folder: Path) -> None:
        """Writes a checkpoint, and goes on from it."""
        leaves, structure = jax.tree.flatten((self._params, self._state))
        np.savez(folder / "optax.npz", *map(np.asarray, leaves))
        with np.load(folder / "optax.npz") as kept:
            self._params, self._state = jax.tree.unflatten(structure, map(jnp.array, kept.values()))


class TorchSide:
    """The run in PyTorch."""

    def __init__(self, soak: Soak, params: Arrays) -> None:
        self._soak = soak
        self._begin(params)

    def _begin(self, params: Arrays) -> None:
        self._params = {name: torch.nn.Parameter(to_torch(array)) for name, array in params.items()}
        ordered = [self._params[name] for name in sorted(self._params)]
        # In the way that a user gets who names none: compiled code, where there is a compiler.
        self.optimizer = FAMILY[self._soak.optimizer].torch(ordered, lr=1e-3, **self._soak.options)

    def gradients(self, grads: Arrays) -> Any:
        """Returns gradients as this side takes them."""
        return {name: to_torch(array) for name, array in grads.items()}

    def step(self, grads: Any, loss: Any, lr: float) -> None:
        """Takes one step."""
        for name, param in self._params.items():
            param.grad = grads[name]
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step(loss=loss)

    def leave(self) -> tuple[Arrays, Arrays]:
        """Returns the parameters, and the state under names that both sides share."""
        params = {name: to_numpy(param) for name, param in self._params.items()}
        return params, emo_torch.to_arrays(self.optimizer, self._params.items())

    def enter(self, params: Arrays, arrays: Arrays) -> None:
        """Continues from the state that either side left, in a new optimizer."""
        self._begin(params)
        emo_torch.from_arrays(arrays, self.optimizer, self._params.items())

    def resume(self, folder: Path) -> None:
        """Writes a checkpoint, and goes on from it in a new optimizer."""
        params = {name: param.detach() for name, param in self._params.items()}
        torch.save({"params": params, "optimizer": self.optimizer.state_dict()}, folder / "torch.pt")
        kept = torch.load(folder / "torch.pt", weights_only=True)
        self._begin({name: to_numpy(tensor) for name, tensor in kept["params"].items()})
        self.optimizer.load_state_dict(kept["optimizer"])
