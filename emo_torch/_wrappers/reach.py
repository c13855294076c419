"""Which optimizers a backward pass reaches: the graph tells it before the pass, the gradients after it."""

import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from emo_torch._step.loss_optimizer import LossOptimizer

MOST_PATHS = 8
"""How many ways to an optimizer are kept for one kind of root."""

Path = tuple[int, ...]
"""A way through a graph: which of the next functions to follow, from the root on."""


class Reach:
    """Finds which optimizers have parameters in a graph; one walk for all, and short ways are kept.

    A kept way is followed anew in each graph, so what is found is true. That an optimizer is not found is
    kept for the kind of root alone: `Gradients` shows after the pass whether it was reached.
    """

    def __init__(self) -> None:
        self._paths: weakref.WeakKeyDictionary[LossOptimizer, dict[str, list[Path]]]
        self._paths = weakref.WeakKeyDictionary()
        self._leaves: weakref.WeakKeyDictionary[LossOptimizer, tuple[list[tuple[int, int]], set[int]]]
        self._leaves = weakref.WeakKeyDictionary()

    def leaves(self, optimizer: LossOptimizer) -> set[int]:
        """Returns the identities of the parameters of an optimizer."""
        lists = [(id(group["params"]), len(group["params"])) for group in optimizer.param_groups]
        known = self._leaves.get(optimizer)
        if known is None or known[0] != lists:
            known = self._leaves[optimizer] = (lists, set(map(id, _params(optimizer))))
        return known[1]

    def find(
        self, root: Tensor, optimizers: Sequence[LossOptimizer], *, is_sure: bool = False
    ) -> list[LossOptimizer]:
        """Returns the optimizers whose parameters the graph of a root reaches.

        Args:
            root: the root of a backward pass.
            optimizers: those to look for.
            is_sure: whether to walk the graph for every optimizer to which no kept way leads.
        """
        function = root.grad_fn
        if function is None:
            return [optimizer for optimizer in optimizers if id(root) in self.leaves(optimizer)]
        kind = function.name()
        found, unknown = set(), []
        for optimizer in optimizers:
            paths = self._paths.setdefault(optimizer, {}).get(kind)
            if any(_follow(function, path) in self.leaves(optimizer) for path in paths or ()):
                found.add(optimizer)
            elif paths is None or is_sure:
                unknown.append(optimizer)
        if unknown:
            ways = _walk(function, [self.leaves(optimizer) for optimizer in unknown])
            for index, optimizer in enumerate(unknown):
                paths = self._paths[optimizer].setdefault(kind, [])
                if index in ways and len(paths) < MOST_PATHS:
                    paths.append(ways[index])
            found.update(unknown[index] for index in ways)
        return [optimizer for optimizer in optimizers if optimizer in found]

    def missed(self, function: Any, optimizer: LossOptimizer) -> None:
        """Looks for the way to an optimizer that a pass has reached, and that was not found before it."""
        if function is not None:
            paths = self._paths.setdefault(optimizer, {}).setdefault(function.name(), [])
            if len(paths) < MOST_PATHS:
                paths.extend(_walk(function, [self.leaves(optimizer)]).values())


def _follow(function: Any, path: Path) -> int:
    """Returns the identity of the leaf at the end of a way, or -1."""
    for index in path:
        following = function.next_functions if function is not None else ()
        if index >= len(following):
            return -1
        function = following[index][0]
    variable = getattr(function, "variable", None)
    return -1 if variable is None else id(variable)


def _walk(root: Any, wanted: list[set[int]]) -> dict[int, Path]:
    """Returns the shortest way to a leaf of each of several sets, by index; ends when all are found."""
    found: dict[int, Path] = {}
    seen = {root}
    # With the way back: the link of the function before, and the index there.
    queue: deque[tuple[Any, Any]] = deque([(root, None)])
    while queue and len(found) < len(wanted):
        function, link = queue.popleft()
        variable = getattr(function, "variable", None)
        if variable is not None:
            for key, leaves in enumerate(wanted):
                if key not in found and id(variable) in leaves:
                    found[key] = _path(link)
        for index, (following, _) in enumerate(function.next_functions):
            if following is not None and following not in seen:
                seen.add(following)
                queue.append((following, (link, index)))
    return found


def _path(link: Any) -> Path:
    indices = []
    while link is not None:
        link, index = link
        indices.append(index)
    return tuple(reversed(indices))


class Gradients:
    """The gradients of optimizers as they are before a backward pass, to see which of them it changes."""

    def __init__(self, optimizers: Iterable[LossOptimizer]) -> None:
        self.optimizers = set(optimizers)
        self._before = [
            (optimizer, [(param, param.grad, _version(param.grad)) for param in _params(optimizer)])
            for optimizer in self.optimizers
        ]

    def changed(self) -> list[LossOptimizer]:
        """Returns the optimizers of whose parameters a gradient is another one, or has changed."""
        return [
            optimizer
            for optimizer, before in self._before
            if any(
                param.grad is not None and (param.grad is not grad or _version(grad) != version)
                for param, grad, version in before
            )
        ]


def has_no_gradients(optimizer: LossOptimizer) -> bool:
    """Returns whether the gradients of all parameters were taken away, as `model.zero_grad()` does."""
    return all(
        param.grad is None and getattr(param, "main_grad", None) is None for param in _params(optimizer)
    )


def _params(optimizer: LossOptimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _version(grad: Tensor | None) -> int:
    return -1 if grad is None or grad.is_inference() else grad._version


def roots_of(given: dict[str, Any]) -> tuple[list[tuple[Tensor, Tensor | None]], list[Any]]:
    """Returns the roots of a pass that are one number, with their weights; and the other roots."""
    tensors = given["tensors"]
    tensors = list(tensors) if isinstance(tensors, list | tuple) else [tensors]
    weights = given.get("grad_tensors")
    if weights is None:
        weights = given.get("grad_variables")
    weights = [weights] if weights is None or isinstance(weights, Tensor) else list(weights)
    weights += [None] * (len(tensors) - len(weights))
    scalars: list[tuple[Tensor, Tensor | None]] = []
    others: list[Any] = []
    for root, weight in zip(tensors, weights, strict=False):
        if not (_is_scalar(root) and (weight is None or _is_scalar(weight))):
            others.append(root)
        elif root.requires_grad:
            scalars.append((root, weight))
    return scalars, others


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
