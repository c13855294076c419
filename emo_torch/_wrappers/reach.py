"""The optimizers that a backward pass reaches: found in the graph before it, in the gradients after it."""

import gc
import operator
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from emo_torch._sharded import is_sharded, local_part, whole
from emo_torch._step.loss_optimizer import LossOptimizer

MOST_PATHS = 8
"""The number of paths to an optimizer that are cached for one kind of root."""

_gradient = operator.attrgetter("grad")

Mark = tuple[int, int] | None
"""The identity of a gradient, and how often it was changed in place; `None` where there is no gradient."""
Path = tuple[int, ...]
"""A path through a graph: the index of the next function to follow, from the root on."""


class _Owned(NamedTuple):
    """The parameters of an optimizer: their lists, their identities, and their records in FSDP."""

    lists: list[tuple[int, int]]
    identities: set[int]
    records: list[Any]


_owned: weakref.WeakKeyDictionary[LossOptimizer, _Owned] = weakref.WeakKeyDictionary()
"""The parameters of each optimizer, as they were found last."""


def _owned_by(optimizer: LossOptimizer) -> _Owned:
    """Returns the parameters of an optimizer; cached until a list of parameters changes."""
    lists = [(id(group["params"]), len(group["params"])) for group in optimizer.param_groups]
    known = _owned.get(optimizer)
    if known is None or known.lists != lists:
        params = _params(optimizer)
        ids = set(map(id, params))
        known = _owned[optimizer] = _Owned(lists, ids, _fsdp_records(params, ids))
    return known


def leaves_of(optimizer: LossOptimizer) -> set[int]:
    """Returns the identities of the leaves of graphs that are the parameters of an optimizer."""
    known = _owned_by(optimizer)
    # The graphs of FSDP have whole parameters, which FSDP makes at the first forward pass.
    whole_ones = {id(getattr(record, "_unsharded_param", None)) for record in known.records}
    return known.identities | whole_ones if whole_ones else known.identities


def _fsdp_records(params: Sequence[Tensor], ids: set[int]) -> list[Any]:
    """Returns the records in which FSDP (`fully_shard`) has a sharded and a whole parameter together.

    Neither a parameter nor a module of the public interface leads to a record. In a release of PyTorch
    without these records gradients show after a pass what it has reached.
    """
    module = sys.modules.get("torch.distributed.fsdp._fully_shard._fsdp_param")
    kind = getattr(module, "FSDPParam", None)
    if kind is None or not any(map(is_sharded, params)):
        return []
    records = [each for each in gc.get_objects() if type(each) is kind]
    return [record for record in records if id(getattr(record, "sharded_param", None)) in ids]


class Reach:
    """Finds which optimizers have parameters in a graph; one walk finds all, and short paths are cached.

    A cached path is followed again in each graph, so an optimizer found this way is certain. If no cached
    path of this kind of root leads to an optimizer, `Gradients` shows after the pass whether it was
    reached.
    """

    def __init__(self) -> None:
        self._paths: weakref.WeakKeyDictionary[LossOptimizer, dict[str, list[Path]]]
        self._paths = weakref.WeakKeyDictionary()
        self._trees: dict[str, tuple[list[Any], int, _Tree]] = {}
        """For a kind of root: the cached paths as one tree, for which optimizers, and at which version."""
        self._version = 0
        """Counts the changes of the cached paths."""

    def find(
        self, root: Tensor, optimizers: Sequence[LossOptimizer], *, is_sure: bool = False
    ) -> list[LossOptimizer]:
        """Returns the optimizers whose parameters the graph of a root reaches.

        Args:
            root: the root of a backward pass.
            optimizers: the optimizers to look for.
            is_sure: whether to walk the graph for every optimizer to which no cached path leads.
        """
        function = root.grad_fn
        if function is None:
            return [optimizer for optimizer in optimizers if id(root) in leaves_of(optimizer)]
        kind = function.name()
        found = {
            optimizers[index]
            for index, variable in self._tree(kind, optimizers).follow(function)
            if variable in leaves_of(optimizers[index])
        }
        if not is_sure and len(found) == len(optimizers):
            return list(optimizers)
        unknown = [
            optimizer
            for optimizer in optimizers
            if optimizer not in found and (is_sure or kind not in self._paths[optimizer])
        ]
        if unknown:
            ways = _search_graph(function, [leaves_of(optimizer) for optimizer in unknown])
            for index, optimizer in enumerate(unknown):
                self._keep(optimizer, kind, ways.get(index))
            found.update(unknown[index] for index in ways)
        return [optimizer for optimizer in optimizers if optimizer in found]

    def missed(self, function: Any, optimizer: LossOptimizer) -> None:
        """Searches the path to an optimizer that a pass has reached, but that was not found before it."""
        if function is not None:
            kind = function.name()
            if len(self._paths.setdefault(optimizer, {}).get(kind, ())) < MOST_PATHS:
                self._keep(optimizer, kind, _search_graph(function, [leaves_of(optimizer)]).get(0))

    def _keep(self, optimizer: LossOptimizer, kind: str, path: Path | None) -> None:
        known = self._paths[optimizer]
        if kind not in known or path is not None:
            self._version += 1
        paths = known.setdefault(kind, [])
        if path is not None and len(paths) < MOST_PATHS and path not in paths:
            paths.append(path)

    def _tree(self, kind: str, optimizers: Sequence[LossOptimizer]) -> "_Tree":
        """Returns the cached paths from a kind of root to optimizers, as one tree."""
        refs = list(map(weakref.ref, optimizers))
        entry = self._trees.get(kind)
        if entry is None or entry[1] != self._version or entry[0] != refs:
            tree = _Tree()
            for index, optimizer in enumerate(optimizers):
                for path in self._paths.setdefault(optimizer, {}).get(kind, ()):
                    tree.add(path, index)
            entry = self._trees[kind] = (refs, self._version, tree)
        return entry[2]


class _Tree:
    """Paths through a graph from one root; a part that several paths share is stored once."""

    def __init__(self) -> None:
        self.following: dict[int, _Tree] = {}
        self.ends: list[int] = []
        """The optimizers, by index, to which a path ends here."""

    def add(self, path: Path, end: int) -> None:
        """Adds a path to the optimizer of the index `end`."""
        node = self
        for index in path:
            node = node.following.setdefault(index, _Tree())
        node.ends.append(end)

    def follow(self, root: Any) -> Iterator[tuple[int, int]]:
        """Yields optimizers by index, each with the identity of the leaf at the end of its path."""
        open_ways = [(root, self)]
        while open_ways:
            function, node = open_ways.pop()
            if node.ends:
                variable = getattr(function, "variable", None)
                if variable is not None:
                    yield from ((end, id(variable)) for end in node.ends)
            if node.following:
                functions = function.next_functions
                for index, child in node.following.items():
                    if index < len(functions) and functions[index][0] is not None:
                        open_ways.append((functions[index][0], child))


def _search_graph(root: Any, wanted: list[set[int]]) -> dict[int, Path]:
    """Returns the shortest path to a leaf of each of several sets, by index; ends when all are found."""
    found: dict[int, Path] = {}
    seen = {root}
    # With the path back: the link of the function before, and the index there.
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
    """The gradients of optimizers before a backward pass, to find the gradients that it changes.

    Args:
        optimizers: the optimizers whose gradients are read.
        with_samples: whether to read only a few gradients before the pass, if these few are `None`. If all
            gradients are `None` after the pass, this proves that none changed.
    """

    def __init__(self, optimizers: Iterable[LossOptimizer], *, with_samples: bool) -> None:
        self.optimizers = set(optimizers)
        self._before = [
            _Before(optimizer, with_samples=with_samples and optimizer not in _sparse)
            for optimizer in self.optimizers
        ]

    def changed(self, functions: Iterable[Any]) -> tuple[list[LossOptimizer], list[LossOptimizer]]:
        """Returns the optimizers with a parameter whose gradient is another tensor, or has changed.

        Args:
            functions: the functions of the roots of the pass.

        Returns:
            The optimizers that the pass has reached, and the optimizers for which this is unknown.
        """
        answers = [(before.optimizer, before.has_changed()) for before in self._before]
        changed = [optimizer for optimizer, answer in answers if answer]
        unknown: list[LossOptimizer] = []
        for optimizer in (optimizer for optimizer, answer in answers if answer is None):
            _sparse.add(optimizer)
            own = [_reaches(function, optimizer) for function in functions if function is not None]
            (changed if True in own else unknown if None in own else []).append(optimizer)
        return changed, unknown


_sparse: weakref.WeakSet[LossOptimizer] = weakref.WeakSet()
"""Optimizers in which some parameters had a gradient although the sample of parameters had none."""
_SAMPLES = 16


class _Before:
    """The gradients of one optimizer, read without a Python call for each parameter."""

    def __init__(self, optimizer: LossOptimizer, *, with_samples: bool) -> None:
        self.optimizer = optimizer
        self.params = _params(optimizer)
        self.samples = self.params[:: 1 + len(self.params) // _SAMPLES]
        self.is_sampled = with_samples and _are_none(list(map(_gradient, self.samples)))
        # Kept alive, so that no other tensor gets the identity of one of them.
        self.gradients = [] if self.is_sampled else list(map(_gradient, self.params))
        self.versions = [] if _are_none(self.gradients) else _versions(self.gradients)

    def has_changed(self) -> bool | None:
        now = list(map(_gradient, self.params))
        if _are_none(now):
            return False
        if self.is_sampled:
            return None if _are_none(list(map(_gradient, self.samples))) else True
        if not self.versions:
            return True
        pairs = zip(now, self.gradients, strict=True)
        if any(grad is not before and grad is not None for grad, before in pairs):
            return True
        changes = zip(now, _versions(now), self.versions, strict=True)
        return any(grad is not None and version != before for grad, version, before in changes)


def _reaches(root: Any, optimizer: LossOptimizer) -> bool | None:
    """Returns whether a graph reaches parameters; `None` if a function in it may start another pass."""
    if _search_graph(root, [leaves_of(optimizer)]):
        return True
    seen, queue = {root}, [root]
    while queue:
        function = queue.pop()
        if isinstance(function, BackwardCFunction):
            return None
        following = {each for each, _ in function.next_functions if each is not None} - seen
        seen |= following
        queue += following
    return False


def _are_none(gradients: list[Tensor | None]) -> bool:
    return set(map(type, gradients)) <= {type(None)}


def identities(tensors: Any) -> set[int]:
    """Returns the identities of one tensor, of the tensors in a list, or of the values of a dictionary."""
    if isinstance(tensors, Tensor):
        return {id(tensors)}
    return set(map(id, tensors.values() if isinstance(tensors, dict) else tensors))


def has_no_gradients(optimizer: LossOptimizer) -> bool:
    """Returns whether the gradients of all parameters are `None`, as after `model.zero_grad()`."""
    return all(
        param.grad is None and getattr(param, "main_grad", None) is None for param in _params(optimizer)
    ) and not any(map(_has_whole_gradient, _owned_by(optimizer).records))


def _has_whole_gradient(record: Any) -> bool:
    """Returns whether FSDP keeps a gradient for a later pass (`set_requires_gradient_sync(False)`)."""
    kept = getattr(record, "unsharded_accumulated_grad", None)
    return kept is not None or getattr(getattr(record, "_unsharded_param", None), "grad", None) is not None


def mark_of(optimizer: LossOptimizer) -> Mark:
    """Returns the identity of an optimizer's first gradient, and how often it was changed in place."""
    for param in _params(optimizer):
        if param.grad is not None:
            return id(param.grad), _versions([param.grad])[0]
    return None


def were_zeroed(optimizer: LossOptimizer, mark: Mark) -> bool:
    """Returns whether all gradients were made 0 in place since `mark`.

    `zero_grad(set_to_none=False)` makes them 0. The values are read only if the first gradient has
    changed since the last pass.
    """
    now = mark_of(optimizer)
    if mark is None or now is None or mark[0] != now[0] or mark[1] == now[1]:
        return False
    gradients = [param.grad for param in _params(optimizer) if param.grad is not None]
    # The sum, because it is known for a sharded gradient as a whole; it is NaN if one element is NaN.
    return not any(bool(whole(gradient.abs().sum()) != 0) for gradient in gradients)


def _params(optimizer: LossOptimizer) -> list[Tensor]:
    groups = optimizer.param_groups
    if len(groups) == 1:
        return groups[0]["params"]  # type: ignore[no-any-return]
    return [param for group in groups for param in group["params"]]


def _versions(gradients: list[Tensor | None]) -> list[int]:
    """Returns how often each gradient was changed in place."""
    # FSDP adds to the local parts of its gradients.
    gradients = [grad if grad is None or type(grad) is Tensor else local_part(grad) for grad in gradients]
    try:
        return [-1 if grad is None else grad._version for grad in gradients]
    except RuntimeError:  # Tensors of `torch.inference_mode` do not count their changes.
        return [-1 if grad is None or grad.is_inference() else grad._version for grad in gradients]


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
