"""Finding an optimizer inside of wrappers."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch.optim.optimizer import Optimizer

from emo_torch._step.loss_optimizer import LossOptimizer

HOLDERS = {
    "optimizer": "Accelerate, Lightning, DeepSpeed, Megatron, pytorch_optimizer",
    "_optimizer": "torch.distributed, torchrec",
    "optim": "torch.distributed, Colossal-AI",
    "_optim": "torch.distributed",
    "original_optimizer": "Opacus",
    "base": "schedulefree",
    "base_optimizer": "SAM in several libraries",
    "_base_optimizer": "timm",
    "wrapped_optimizer": "heavyball, torch_xla in Lightning, fairseq",
    "basic_optimizer": "the engine of DeepSpeed",
    "inner_optimizer": "none in particular",
    "inner": "none in particular",
    "opt": "none in particular",
    "optimizers": "wrappers of several optimizers",
    "_optimizers": "wrappers of several optimizers",
    "chained_optimizers": "Megatron",
    "_optims": "torchrec",
}
"""Attributes under which wrappers hold the wrapped object, with libraries that use them."""
OF_A_SUBCLASS = ("optimizer", "optim")
"""The attributes of a wrapper that has the class of the wrapped optimizer, as Lightning's."""
DEEPEST, MOST_VISITED = 50, 2000
"""The depth at which the search ends, for objects that return a new object at every access."""


def unwrap(optimizer: Any) -> LossOptimizer:
    """Returns the optimizer of this package inside of its wrappers.

    Trainers wrap optimizers in objects whose `step` takes no loss, and which have neither
    `watch` nor `observe`. `unwrap` searches, at any depth, the attributes that libraries
    use (`optimizer`, `optim`, `original_optimizer`, `base`, `base_optimizer`, `wrapped_optimizer` and
    some more), and every other attribute that holds a `torch.optim.Optimizer` or a list of optimizers.

    Args:
        optimizer: an optimizer of this package, at any depth inside of wrappers.

    Returns:
        The optimizer itself.

    Raises:
        TypeError: if there is none inside, or more than one.

    Example:
        >>> import types
        >>> import torch
        >>> import emo_torch
        >>> optimizer = emo_torch.EmoSens([torch.nn.Parameter(torch.ones(2))])
        >>> wrapped = types.SimpleNamespace(optimizer=optimizer)
        >>> emo_torch.unwrap(wrapped).observe(0.5)
    """
    found = _find(optimizer)
    if len(found) > 1:
        places = ", ".join(f"{type(inside).__name__} at {place}" for place, inside in found)
        raise TypeError(
            f"There are {len(found)} optimizers of emo_torch inside of {_title(optimizer)}: {places}. Pass "
            "one of them."
        )
    if not found:
        looked = ", ".join(repr(name) for name in HOLDERS)
        raise TypeError(
            f"No optimizer of emo_torch was found inside of {_title(optimizer)}. Pass the optimizer "
            "itself, or a wrapper that holds it in an attribute. Looked at: every attribute that holds a "
            f"torch.optim.Optimizer, and {looked}."
        )
    return found[0][1]


def loss_optimizers(optimizers: Iterable[Any]) -> list[LossOptimizer]:
    """Returns the optimizers of this package among some objects, or inside of their wrappers."""
    insides = (inside for optimizer in optimizers for _, inside in _find(optimizer))
    return list({id(inside): inside for inside in insides}.values())


def _find(optimizer: Any) -> list[tuple[str, LossOptimizer]]:
    """Returns the optimizers of this package inside of something, each once, with its place."""
    found: list[tuple[str, LossOptimizer]] = []
    # With the objects themselves: Python may use an id again when its object is gone.
    visited: dict[int, tuple[Any, bool]] = {}

    def visit(place: str, thing: Any, depth: int) -> bool:
        """Returns whether there is an optimizer of this package, here or deeper."""
        if id(thing) in visited:
            return visited[id(thing)][1]
        if depth > DEEPEST or len(visited) >= MOST_VISITED:
            return False
        visited[id(thing)] = (thing, False)  # An answer for cycles.
        # All optimizers, not the first alone: there may be several.
        is_deeper = sum(visit(f"{place}{step}", held, depth + 1) for step, held in _held_by(thing)) > 0
        is_here = isinstance(thing, LossOptimizer) and not is_deeper
        if is_here:
            found.append((place, thing))
        visited[id(thing)] = (thing, is_here or is_deeper)
        return is_here or is_deeper

    visit("", optimizer, 0)
    return [(place or "the top", inside) for place, inside in found]


def _held_by(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yields the objects that an object may wrap, with the path to each."""
    if thing is None or isinstance(thing, type | str | bytes | int | float | dict):
        return
    if isinstance(thing, list | tuple):
        yield from ((f"[{index}]", each) for index, each in enumerate(thing))
        return
    if isinstance(thing, LossOptimizer):
        names: Iterable[str] = OF_A_SUBCLASS
    else:
        own = getattr(thing, "__dict__", {})
        names = dict.fromkeys((*HOLDERS, *(name for name, value in own.items() if _is_optimizer(value))))
    for name in names:
        try:
            held = getattr(thing, name, None)
        except Exception:  # A property that raises an error in some wrappers of a library.
            continue
        if held is not None:
            yield f".{name}", held


def _is_optimizer(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(isinstance(each, Optimizer) for each in value)
    return isinstance(value, Optimizer)


def _title(thing: Any) -> str:
    """Returns the name of an object for an error, without its contents."""
    return f"an object of the class {type(thing).__module__}.{type(thing).__qualname__}"
