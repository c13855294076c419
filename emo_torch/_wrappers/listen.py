"""A listener on backward passes, for trainers that pass no loss to the optimizer."""

import functools
import gc
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from emo_torch._checks.errors import LOSS_MISSING, LossMissingError
from emo_torch._step.loss_optimizer import LossOptimizer
from emo_torch._wrappers.heard import Values, hear, is_emptied, sums_of, unscaled
from emo_torch._wrappers.reach import Gradients, Reach, identities, leaves_of, mark_of, roots_of
from emo_torch._wrappers.wrappers import loss_optimizers, unwrap

_lock = threading.RLock()
_listeners: list["_Listener"] = []
"""The listeners that are on, in the order in which they began."""
_undo: list[Callable[[], None]] = []
"""Removes the patches: the first listener makes them, the last one removes them."""
_reach = Reach()
_made_after: weakref.WeakKeyDictionary[LossOptimizer, int] = weakref.WeakKeyDictionary()
"""The number of backward passes before an optimizer was made, for optimizers made while listening."""
_passes = 0
"""The number of backward passes since the first listener began."""
_threads: set[int] = set()
"""The threads that have made a backward pass since the first listener began."""
# In this form cheaper than `Signature.bind`.
_OF_BACKWARD = tuple(inspect.signature(torch.autograd.backward).parameters)
_OF_GRAD = tuple(inspect.signature(torch.autograd.grad).parameters)


class _Listener:
    """The optimizers and the scaler of one `listen`."""

    def __init__(self, optimizers: Sequence[LossOptimizer], scaler: Any, hears_all: bool) -> None:
        self.optimizers: weakref.WeakSet[LossOptimizer] = weakref.WeakSet(optimizers)
        self.scaler = scaler
        self.hears_all = hears_all


@contextmanager
def listen(*optimizers: Optimizer, scaler: Any = None) -> Iterator[None]:
    r"""Lets optimizers read the loss of every backward pass inside of a `with` block.

    .. math:: L = \sum_i L_i \text{ over the roots } L_i \text{ of backward passes since the last step}

    Use it for a trainer of another library that passes no loss to the step. The root of every outermost
    backward pass (`loss.backward()`, `torch.autograd.backward`) is a loss for the optimizers whose
    parameters the pass reaches. The sum of roots is right because gradients add up, too: if a trainer
    divides the loss by the number of micro-batches, the sum is the mean. A loss that a gradient scaler has
    scaled is heard unscaled.

    A step takes its loss from the first of these sources that has one: `loss=` of the step, `watch` and
    `observe`, the losses of backward passes, the result of the closure. `zero_grad` of the optimizer
    discards the heard losses. The next backward pass also discards them if every gradient is `None` by
    then.

    Inside the `with` block, `torch.autograd.backward`, `torch.autograd.grad` and methods of `GradScaler`
    are wrapped, in all threads. Listeners may be nested; an optimizer hears each root once. Two things are
    not heard: calls by names that were imported from `torch.autograd` before, and gradients that are set by
    hand. Methods that reset the gradients between passes of one step (such as PCGrad) must `watch` their
    losses.

    Args:
        *optimizers: optimizers of this package, at any depth inside of wrappers. Without arguments: all
            optimizers of this package that exist or are made inside the `with` block.
        scaler: the gradient scaler of these optimizers. Needed only for a scaler that is no
            `torch.amp.GradScaler`; the scaler needs a method `scale`.

    Yields:
        Nothing. At the end, also after an exception, the wrapped functions are restored.

    Raises:
        TypeError: for an object that holds no optimizer of this package, and a scaler without `scale`.
        RuntimeError: inside of a region that `torch.compile` compiles.
        LossMissingError: from a `step` that no loss has reached, with a list of the backward passes that
            were seen; and from a `step` of whose loss only a part was heard.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = emo_torch.EmoSens([weight], lr=1e-3)
        >>> def trainer():
        ...     for part in (1.0, 3.0):
        ...         (part * weight.sum() / 2).backward()
        ...     optimizer.step()
        >>> with emo_torch.listen(optimizer):
        ...     trainer()
        >>> print(optimizer.emotion.long)
        tensor(4.)

    Source: this project.
    """
    global _passes
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "emo_torch.listen cannot begin in a region that torch.compile compiles. Begin it outside, "
            "around the call of the compiled function."
        )
    if scaler is not None and not callable(getattr(scaler, "scale", None)):
        raise TypeError(
            f"The scaler must have a method `scale`, and is of the type {type(scaler).__name__}"
        )
    for optimizer in optimizers:
        if not loss_optimizers([optimizer]):
            unwrap(optimizer)  # Raises the error about a missing optimizer.
    found = loss_optimizers(optimizers) if optimizers else _existing()
    listener = _Listener(found, scaler, hears_all=not optimizers)
    with _lock:
        if not _listeners:
            _patch()
        _listeners.append(listener)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)
            if not _listeners:
                for undo in reversed(_undo):
                    undo()
                _undo.clear()
                _threads.clear()
                _made_after.clear()
                _passes = 0
            for optimizer in found if optimizers else list(listener.optimizers):
                if not any(optimizer in other.optimizers for other in _listeners):
                    optimizer._collected.forget_heard()


def _existing() -> list[LossOptimizer]:
    """Returns all optimizers of this package that exist."""
    # By the type: a proxy may run code when it is asked for its class. An optimizer whose constructor
    # raised an error, and that the error still refers to, cannot step.
    existing = (thing for thing in gc.get_objects() if issubclass(type(thing), LossOptimizer))
    return [optimizer for optimizer in existing if hasattr(optimizer, "_collected")]


# The functions that are wrapped while a listener is on.


def _patch() -> None:
    """Wraps the functions that compute and scale gradients."""
    _replace(torch.autograd, "backward", _backward)
    _replace(torch.autograd, "grad", _grad)
    _replace(GradScaler, "scale", _scale)
    _replace(GradScaler, "step", _scaled_step)
    _replace(LossOptimizer, "__init__", _init)
    _replace(LossOptimizer, "__setstate__", _init)  # Of copies, which call no `__init__`.
    _undo.append(register_optimizer_step_pre_hook(_before_step).remove)


def _replace(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        # Somebody may keep the wrapper, or wrap it, beyond the listener's end.
        if not _listeners:
            return original(*args, **kwargs)
        return around(original, *args, **kwargs)

    def undo() -> None:
        if getattr(owner, name) is wrapper:
            setattr(owner, name, original)

    setattr(owner, name, wrapper)
    _undo.append(undo)


def _init(original: Any, self: LossOptimizer, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    with _lock:
        for listener in _listeners:
            if listener.hears_all and self not in listener.optimizers:
                listener.optimizers.add(self)
                _made_after[self] = _passes


def _scale(original: Any, self: Any, outputs: Any) -> Any:
    scaled = original(self, outputs)
    if isinstance(outputs, Tensor) and outputs.numel() == 1 and scaled is not outputs:
        scaled._emo_unscaled = (outputs.detach().clone(), scaled._version)
    return scaled


def _scaled_step(original: Any, self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
    for inside in loss_optimizers([optimizer]) if self.is_enabled() else ():
        collected = inside._collected
        if collected.raw_sum is not None:
            value = unscaled(collected.raw_sum, self)
            collected.heard_sum = value if collected.heard_sum is None else collected.heard_sum + value
            collected.raw_sum = None
    return original(self, optimizer, *args, **kwargs)


def _is_inside() -> bool:
    """Returns whether a backward pass is under way in this thread, or a graph is being compiled."""
    return torch.compiler.is_compiling() or torch._C._current_graph_task_id() != -1


def _listening() -> dict[LossOptimizer, Any]:
    """Returns the optimizers that listen, with their gradient scalers."""
    with _lock:
        found: dict[LossOptimizer, Any] = {}
        for listener in _listeners:
            for optimizer in listener.optimizers:
                found[optimizer] = listener.scaler or found.get(optimizer)
        return found


# A backward pass.


def _backward(original: Any, *args: Any, **kwargs: Any) -> Any:
    global _passes
    scalers = {} if _is_inside() else _listening()
    given = {**dict(zip(_OF_BACKWARD, args, strict=False)), **kwargs}
    if not scalers or "tensors" not in given:
        return original(*args, **kwargs)
    roots, others = roots_of(given)
    optimizers, inputs = list(scalers), given.get("inputs")
    with _lock:
        _passes += 1
        _threads.add(threading.get_ident())
        # One cached path is no proof for a list of roots; gradients of other threads must not be read.
        is_sure = len(roots) > 1 or len(_threads) > 1
        reached = [_among(_reach.find(root, optimizers, is_sure=is_sure), inputs) for root, _ in roots]
        found = set(itertools.chain(*reached))
        unseen = set(optimizers) - found if not others else set(optimizers)
        doubtful: set[LossOptimizer] = set()
        if len(_threads) > 1 and others:
            edges = [root for root in others if isinstance(root, Tensor)]
            doubtful.update(*(_reach.find(root, optimizers, is_sure=True) for root in edges))
        gradients = Gradients(unseen if len(_threads) == 1 else (), with_samples=not others)
        emptied = {each for each in gradients.optimizers | found if is_emptied(each)}
    functions = [root.grad_fn for root, _ in roots]
    before = [(each, *sums_of(each)) for each in found]
    for (root, weight), those in zip(roots, reached, strict=True):
        values: Values = {}
        for optimizer in those:
            if optimizer in emptied:  # As after `model.zero_grad()`: the earlier gradients are gone.
                optimizer._collected.forget_heard()
                emptied.discard(optimizer)
            hear(optimizer, root, weight, scalers[optimizer], values)
    after = [sums_of(each) for each, *_ in before]
    try:
        result = original(*args, **kwargs)
    except BaseException:
        for (optimizer, *sums), then in zip(before, after, strict=True):
            # Unless a step inside of the pass has used them.
            if all(one is other for one, other in zip(sums_of(optimizer), then, strict=True)):
                optimizer._collected.heard_sum, optimizer._collected.raw_sum = sums
        raise
    with _lock:
        touched, unknown = gradients.changed(functions) if len(_threads) == 1 else ([], [])
        changed = doubtful.union(touched)
    for optimizer in unknown:
        optimizer._collected.doubts[0] = _UNKNOWN
    for optimizer in optimizers:
        seen = optimizer._collected.seen
        seen["passes"] += 1
        if optimizer in changed and not others and len(roots) == 1:
            if optimizer in emptied:
                optimizer._collected.forget_heard()
            hear(optimizer, *roots[0], scalers[optimizer], {})
            with _lock:
                _reach.missed(functions[0], optimizer)
        elif optimizer in changed:
            optimizer._collected.doubts[0] = _NO_SCALAR
        if optimizer not in found and optimizer not in changed:
            seen["elsewhere"] += 1
        else:
            optimizer._collected.mark = mark_of(optimizer)
    return result


def _among(optimizers: list[LossOptimizer], inputs: Any) -> list[LossOptimizer]:
    """Returns the optimizers that have a parameter among the inputs of a pass, if the pass names inputs."""
    if inputs is None:
        return optimizers
    ids = identities(inputs)
    return [optimizer for optimizer in optimizers if not leaves_of(optimizer).isdisjoint(ids)]


# Gradients that are not added to parameters by themselves.

_asked = itertools.count(1)


def _grad(original: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(*args, **kwargs)
    optimizers = [] if _is_inside() else list(_listening())
    if not optimizers:
        return result
    given = {**dict(zip(_OF_GRAD, args, strict=False)), **kwargs}
    if given.get("create_graph"):  # For a penalty or an inner loop: another pass goes through the result.
        return result
    outputs = given["outputs"]
    outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    asked = next(_asked)
    if len(outputs) == 1 and isinstance(outputs[0], Tensor):
        asked = getattr(outputs[0], "_emo_asked", asked)
        outputs[0]._emo_asked = asked  # type: ignore[attr-defined]
    for optimizer in _among(optimizers, given["inputs"]):
        optimizer._collected.seen["by grad"] += 1
        optimizer._collected.doubts[asked] = _BY_GRAD
    return result


_NO_SCALAR = (
    "a backward pass reached parameters of this optimizer, and the root of this pass is not one number "
    "(`backward` was called on several tensors, or on a tensor of several elements)"
)
_UNKNOWN = "a custom autograd function may have started a backward pass that the listener does not see"
_BY_GRAD = (
    "torch.autograd.grad computed gradients of parameters of this optimizer, and the listener cannot see "
    "whether this step uses them"
)


# A step.


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises an error that lists the backward passes seen, before the step raises a shorter error."""
    if (
        not isinstance(optimizer, LossOptimizer)
        or torch.compiler.is_compiling()
        or optimizer.loss_is_optional
    ):
        return
    if len(args) > 1 or kwargs.get("closure") is not None or kwargs.get("loss") is not None:
        return
    collected = optimizer._collected
    if collected.loss is not None or collected.heard() is not None:
        return
    if all(optimizer._is_zero(group.get("lr", 1.0)) for group in optimizer.param_groups):
        return
    raise LossMissingError(f"{_what_was_seen(optimizer)} {LOSS_MISSING}")


def _what_was_seen(optimizer: LossOptimizer) -> str:
    seen, name = optimizer._collected.seen, type(optimizer).__name__
    if optimizer not in _listening():
        return f"The listener was not given this {name}: pass it to emo_torch.listen."
    if _made_after.get(optimizer) == _passes > 0:
        return (
            f"The listener heard no loss for this {name}: it was made after the last backward pass. The "
            "listener records losses only for optimizers that exist before the pass. Make the optimizer "
            "before the backward pass."
        )
    if not seen["passes"]:
        return (
            f"The listener heard no loss for this {name}: it saw no backward pass since the last step or "
            "since it began (it sees `loss.backward()` and `torch.autograd.backward`, outside of functions "
            "that torch.compile compiles)."
        )
    others = (
        " `zero_grad` discarded the losses of the other passes."
        if seen["elsewhere"] < seen["passes"]
        else ""
    )
    return (
        f"The listener heard no loss for this {name}: of {seen['passes']} backward passes since the last "
        f"step, {seen['elsewhere']} reached other parameters only.{others}"
    )
