"""For the tests of ways to pass losses: an optimizer that writes down its losses."""

import functools
import inspect
import re
import warnings
from pathlib import Path
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
WITHOUT_SHADOW = tuple(
    name
    for name, member in MEMBERS.items()
    if "use_shadow" not in inspect.signature(member.make).parameters
)
"""The names of the members that have no shadow."""
PAGES = Path(__file__).parents[1] / "docs" / "trainers"


class Listening(emo_torch.EmoSens):
    """EmoSens with a list of the losses that it felt, one a step."""

    def update_memory(self, loss: Tensor | None, **extra_losses: Any) -> Feeling:
        """Takes in the loss, and writes it down."""
        assert loss is not None
        self.__dict__.setdefault("losses", []).append(float(loss))
        return super().update_memory(loss, **extra_losses)

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


def run_page(page: str, /, **names: Any) -> dict[str, Any]:
    """Runs the Python code of a page of `docs/trainers` as pasted, and returns all names.

    Args:
        page: the name of the page.
        **names: the names that the page leaves to its reader.
    """
    text = (PAGES / f"{page}.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The advice of a trainer.
        for number, block in enumerate(blocks):
            exec(compile(block, f"{page}.md, block {number}", "exec"), names)
    return names


def import_trainer(module: str) -> Any:
    """Imports a library, or skips the test and says which package is not installed.

    A build of torchvision for CUDA beside a build of PyTorch for the CPU cannot load its operators, and its
    import fails where it describes two of them. No test calls them: here they get a name without code.
    """
    import pytest

    _name_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(module, reason=f"{module} is not installed: pip install -e .[trainers]")


@functools.cache
def _name_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
