"""For the tests of what brings losses: an optimizer that writes down what it was given."""

from typing import Any

import torch
from torch import Tensor

import emo_torch
from emo_torch._members.by_name import MEMBERS
from emo_torch._step.ways import Feeling

COMPILED_MEMBERS = tuple(
    name for name in emo_torch.list_optimizers() if MEMBERS[name].make.recipe.rules[0].kernel is not None
)
"""The names of the members that compiled code can step."""


class Listening(emo_torch.EmoSens):
    """EmoSens with a list of the losses that it felt, one a step."""

    def take_in(self, loss: Tensor | None, **beside: Any) -> Feeling:
        """Takes in the loss, and writes it down."""
        assert loss is not None
        self.__dict__.setdefault("losses", []).append(float(loss))
        return super().take_in(loss, **beside)

    @property
    def heard(self) -> list[float]:
        """The losses felt so far."""
        return list(self.__dict__.get("losses", []))


def small_model(seed: int = 0) -> torch.nn.Module:
    """A model of two layers, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def batch(step: int, examples: int = 4) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one step, the same for the same number."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(examples, 4, generator=generator)
    return x, x.sum(dim=1, keepdim=True)


def mean_squared_error(net: torch.nn.Module, step: int, examples: int = 4) -> Tensor:
    """The loss of one batch."""
    x, y = batch(step, examples)
    loss: Tensor = (net(x) - y).square().mean()
    return loss


def same_state(ours: Any, theirs: Any) -> bool:
    """Returns whether nested states are equal to the last bit."""
    if isinstance(ours, Tensor):
        return isinstance(theirs, Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same_state(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same_state, ours, theirs))
    return bool(ours == theirs)
