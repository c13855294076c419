"""The training in PyTorch, with an optimizer from `emo_torch`."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import emo_torch
from examples.digits.history import Step
from examples.digits.settings import FACTORS, MAX_NORM, Settings


class Network(nn.Module):
    """Two convolutions and a linear layer: images `[batch, 8, 8]` to scores `[batch, 10]`."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(1, 16, 3, padding=1)
        self.convolution2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.output = nn.Linear(32 * 4 * 4, 10)
        self.to(weights["output.weight"].dtype)
        self.load_state_dict(weights)

    def forward(self, images: Tensor) -> Tensor:
        """Returns ten scores for each image; the highest one is the network's guess."""
        hidden = nn.functional.silu(self.convolution1(images.unsqueeze(1)))
        hidden = nn.functional.silu(self.convolution2(hidden))
        scores: Tensor = self.output(hidden.flatten(1))
        return scores


def clip_by_global_norm(params: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scales gradients down to `max_norm`, all taken as one vector, exactly as Optax does.

    `torch.nn.utils.clip_grad_norm_` would divide by the norm + 1e-6 instead.
    """
    gradients = [param.grad for param in params if param.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    for gradient in gradients:
        # `where` decides on the device; an `if` would wait for the norm.
        gradient.copy_(torch.where(norm < max_norm, gradient, gradient / norm * max_norm))


class TorchRun:
    """A training in PyTorch."""

    def __init__(self, settings: Settings, weights: Mapping[str, Tensor]) -> None:
        self._network = Network(weights)
        optimizer = emo_torch.create_optimizer(
            settings.optimizer,
            self._network.parameters(),
            lr=settings.learning_rate,
            **settings.options(),
        )
        self._optimizer: Any = optimizer
        self._memory = settings.memory

    def step(self, images: NDArray[Any], labels: NDArray[np.int64]) -> Step:
        """Takes one step with a batch of digits."""
        self._optimizer.zero_grad()
        scores = self._network(torch.from_numpy(images))
        loss = nn.functional.cross_entropy(scores, torch.from_numpy(labels))
        loss.backward()
        clip_by_global_norm(self._network.parameters(), MAX_NORM)
        # The one thing that an emotional optimizer asks for: the loss.
        self._optimizer.step(loss=loss)
        weights = nn.utils.parameters_to_vector(self._network.parameters()).detach()
        seen = getattr(self._optimizer, self._memory)  # `emotion`, `drive`, `pulse` or `pilot`.
        ratio = torch.zeros(()) if self._memory == "pilot" else seen.shadow_ratio
        return Step(loss.detach(), seen.scalar, getattr(seen, FACTORS[self._memory]), ratio, weights)

    def evaluate(self, images: NDArray[Any], labels: NDArray[np.int64]) -> tuple[float, float]:
        """Returns the share of digits that the network tells rightly now, and its loss on them."""
        if self._memory == "pilot":
            self._optimizer.eval()  # Averaged weights; the next line but one takes them out again.
            result = evaluate(self._network, images, labels)
            self._optimizer.train()
            return result
        return evaluate(self._network, images, labels)


@torch.no_grad()
def evaluate(network: nn.Module, images: NDArray[Any], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Returns the share of digits that a network tells rightly, and its loss on them."""
    scores = network(torch.from_numpy(images))
    loss = nn.functional.cross_entropy(scores, torch.from_numpy(labels))
    return float(np.mean(scores.argmax(dim=-1).numpy() == labels)), float(loss)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Lets PyTorch compute with one thread: for so small a network several only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensors(weights: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Returns NumPy weights as tensors."""
    return {name: torch.from_numpy(weight) for name, weight in weights.items()}


def next_numbers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights, each raised to the next number that its dtype can hold."""
    return {
        name: torch.nextafter(weight, torch.full_like(weight, math.inf)) for name, weight in weights.items()
    }
