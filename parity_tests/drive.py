"""Drives either package with given gradients and losses, and shows all that it holds as NumPy arrays."""

import functools
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from parity_tests.family import Member, optax_options, torch_options
from parity_tests.tolerances import STEPS

Arrays = dict[str, np.ndarray]


class Drive(Protocol):
    """One side, under the wheel."""

    def step(self, grads: Arrays, loss: float) -> None:
        """Takes one step with given gradients and loss."""

    def params(self) -> Arrays:
        """Returns the parameters by name."""

    def state(self) -> Arrays:
        """Returns every leaf of the optimizer's state, under names that both sides share."""

    def keep(self) -> None:
        """Keeps the parameters and the state of this step for `history`."""

    def history(self) -> Arrays:
        """Returns all kept parameters (`param/...`) and states, each with the steps as first axis."""


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Copies an array into a tensor, bfloat16 too, which NumPy and PyTorch don't exchange."""
    if array.dtype == jnp.bfloat16:
        return torch.tensor(array.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(array)


_TENSORS: dict[int, tuple[np.ndarray, torch.Tensor]] = {}
"""Read-only arrays and their tensors, by the `id` of the array, which stays alive here."""


def give_gradient(param: torch.Tensor, array: np.ndarray) -> None:
    """Copies an array into the gradient of a parameter, which stays the same tensor at all steps.

    A read-only array is converted once in a process.
    """
    if array.flags.writeable:
        gradient = to_torch(array)
    else:
        if id(array) not in _TENSORS:
            _TENSORS[id(array)] = array, to_torch(array)
        gradient = _TENSORS[id(array)][1]
    if param.grad is None:
        param.grad = gradient.to(param.device, copy=True)
    else:
        param.grad.copy_(gradient)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Copies a tensor into an array."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(jnp.bfloat16)
    return tensor.numpy().copy()


def package(factory: Callable[..., Any]) -> Any:
    """Returns the package that an optimizer is from: a faulty copy of it, where one is being tried."""
    return importlib.import_module(factory.__module__.split(".")[0])


@functools.lru_cache(maxsize=32)
def compiled(factory: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
    """Returns `init` and a jitted step, the same ones for the same options: compiling is slow."""
    optimizer = factory(**dict(options))

    def step(params: Any, state: Any, grads: Any, loss: jax.Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    return optimizer.init, jax.jit(step)


NOT_LEAVES = frozenset({"version", "rule"})
"""Arrays of a saved state that identify it, and hold no number of a step."""
_OF_SHADOWS = frozenset({"emotion/shadow_exists", "emotion/shadow_ratio"})
"""Memory that an optimizer without shadows does not save."""


def check_row(rows: Arrays, index: int, shown: Arrays) -> None:
    """Raises an error if a row of a history differs in a bit from the values at that step."""
    if rows.keys() != shown.keys() - NOT_LEAVES:
        raise AssertionError(f"only one of them has {sorted(rows.keys() ^ (shown.keys() - NOT_LEAVES))}")
    for name, array in rows.items():
        one, other = array[index], shown[name]
        if (one.dtype, one.shape, one.tobytes()) != (other.dtype, other.shape, other.tobytes()):
            raise AssertionError(f"{name}: row {index} of the history is {one}, the drive showed {other}")


class OptaxDrive:
    """The Optax side, jitted."""

    def __init__(
        self, member: Member, params: Arrays, options: dict[str, Any], device: str = "cpu"
    ) -> None:
        del device  # JAX puts arrays on its first device: `JAX_PLATFORMS` says which that is.
        self._to_arrays = package(member.optax).to_arrays
        self._named_leaves = importlib.import_module(self._to_arrays.__module__).named_leaves
        known = optax_options(member.known(options))
        init, self._step = compiled(member.optax, tuple(sorted(known.items())))
        self._params = {name: jnp.asarray(array) for name, array in params.items()}
        self._state = init(self._params)
        self._kept: list[tuple[Any, Any]] = []
        self._shown: dict[int, Arrays] = {}

    def step(self, grads: Arrays, loss: float) -> None:
        """Takes one step with given gradients and loss."""
        self._params, self._state = self._step(self._params, self._state, grads, loss)

    def params(self) -> Arrays:
        """Returns the parameters by name."""
        return {name: np.asarray(array) for name, array in self._params.items()}

    def state(self) -> Arrays:
        """Returns every leaf of the optimizer's state, under names that both sides share."""
        arrays: Arrays = self._to_arrays(self._state)
        return arrays

    def keep(self) -> None:
        """Keeps the parameters and the state of this step for `history`: JAX changes no array in place.

        After steps 1, 2, 4, 8 and so on, also keeps the values of `params` and `state`, which `history`
        checks.
        """
        self._kept.append((self._params, self._state))
        steps = len(self._kept)
        if steps & (steps - 1) == 0:
            self._shown[steps - 1] = self._row()

    def _row(self) -> Arrays:
        """Returns the current values of `params` and `state`, under the names of `history`."""
        return {f"param/{name}": array for name, array in self.params().items()} | self.state()

    def history(self) -> Arrays:
        """Returns all kept parameters (`param/...`) and states, each with the steps as first axis.

        The states are stacked and named once for all steps. The last step and the steps that `keep` chose
        must be, to the bit, as `params` and `state` showed them.
        """
        steps = len(self._kept)
        # As long as the longest run: each length is one more program for each operation that names.
        longest = [*self._kept, *self._kept[-1:] * (STEPS - steps)]
        params, states = jax.tree.map(lambda *leaves: np.stack(leaves), *longest)
        rows = {f"param/{name}": array[:steps] for name, array in params.items()}
        for name, leaf in jax.vmap(self._named_leaves)(states).items():
            array = np.asarray(leaf)[:steps]
            is_narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
            rows[name] = array.astype(np.float32) if is_narrow else array
        for index, shown in (self._shown | {steps - 1: self._row()}).items():
            check_row(rows, index, shown)
        return rows


class TorchDrive:
    """The PyTorch side."""

    def __init__(
        self, member: Member, params: Arrays, options: dict[str, Any], device: str = "cpu"
    ) -> None:
        self._kept: list[dict[str, Any]] = []
        self._shown: dict[int, Arrays] = {}
        self._params = {
            name: torch.nn.Parameter(to_torch(array).to(device)) for name, array in params.items()
        }
        self._to_arrays = package(member.torch).to_arrays
        # In the order of a tree's leaves, as the numbers drawn for a parameter depend on its place.
        ordered = [self._params[name] for name in sorted(self._params)]
        self.optimizer = member.torch(ordered, **torch_options(member.known(options)))

    def step(self, grads: Arrays, loss: float) -> None:
        """Takes one step with given gradients and loss."""
        for name, param in self._params.items():
            give_gradient(param, grads[name])
        self.optimizer.step(loss=loss)

    def params(self) -> Arrays:
        """Returns the parameters by name."""
        return {name: to_numpy(param) for name, param in self._params.items()}

    def state(self) -> Arrays:
        """Returns every leaf of the optimizer's state, under names that both sides share."""
        arrays: Arrays = self._to_arrays(self.optimizer, self._params.items())
        return arrays

    def keep(self) -> None:
        """Keeps the parameters and the state of this step for `history`.

        The tensors of the state are copied as they are, which is quick. After steps 1, 2, 4, 8 and so on,
        also keeps the values of `params` and `state`, which `history` checks.
        """
        tensors = self._tensors()
        if not self._kept:
            # Codes, and numbers that are no tensors, are for the bridge alone.
            self._has_tensors = tensors.keys() == self._row().keys() - NOT_LEAVES
        if not self._has_tensors:
            self._kept.append(self._row())
            return
        self._kept.append({name: tensor.clone() for name, tensor in tensors.items()})
        steps = len(self._kept)
        if steps & (steps - 1) == 0:
            self._shown[steps - 1] = self._row()

    def _row(self) -> Arrays:
        """Returns the current values of `params` and `state`, under the names of `history`."""
        return {f"param/{name}": array for name, array in self.params().items()} | self.state()

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Returns the tensors from which the values of `_row` are read, where each has one."""
        found = self.optimizer.named_memory()
        if not self.optimizer.param_groups[0].get("use_shadow"):
            found = {name: tensor for name, tensor in found.items() if name not in _OF_SHADOWS}
        for name, param in self._params.items():
            found[f"param/{name}"] = param.detach()
            for key, tensor in self.optimizer.state[param].items():
                if key != "shadow_exists":
                    found[f"{key}/{name}"] = tensor
        return found

    def history(self) -> Arrays:
        """Returns all kept parameters (`param/...`) and states, each with the steps as first axis.

        The last step and the steps that `keep` chose must be, to the bit, as `params` and `state` showed
        them.
        """
        names = self._kept[0].keys() - NOT_LEAVES
        if not self._has_tensors:
            return {name: np.stack([row[name] for row in self._kept]) for name in names}
        rows = {}
        for name in names:
            leaf = torch.stack([row[name] for row in self._kept]).cpu()
            is_narrow = leaf.is_floating_point() and leaf.element_size() < 4
            if name.startswith("param/"):
                rows[name] = to_numpy(leaf)
            else:
                rows[name] = (leaf.float() if is_narrow else leaf).numpy()
        for index, shown in (self._shown | {len(self._kept) - 1: self._row()}).items():
            check_row(rows, index, shown)
        return rows


SIDES: dict[str, Any] = {"optax": OptaxDrive, "torch": TorchDrive}
