"""Finds out how an optimizer treats its learning rate and its parameters, by stepping a tiny copy of it.

The optimizer itself is not touched. A stand-in is built from it: an object of the same class with the same
options and attributes, without hooks, whose parameters have a few elements each. The stand-in takes a few
steps with fixed gradients. The result is cached for each class and its options.
"""

import copy
import random
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from emo_torch._emotional import LossOptimizer

STEPS = 12
RATES = (1e-3, 1.0, 30.0)
"""Learning rates to try: the answer must not depend on today's."""
SHARES = (0.5, 1.0, 0.25, 0.75)
"""The parts of the way that the steps go, one after the other."""
SHIFT = 8.0
"""How far from the first start the second one is."""
TOLERANCES = {torch.float64: (1e-5, 1e-14), torch.float32: (1e-3, 1e-6)}
"""What two ways may differ by: relative to the distance moved, and relative to the parameter."""
MOST_KNOWN = 256
"""How many sets of options of one class are remembered."""

Numbers = dict[str, float]


class Manner(NamedTuple):
    """How an optimizer treats its learning rate and its parameters.

    Attributes:
        is_linear: whether a step at c times the learning rate is c times the step, with the same state
            after it, for twelve steps at each of the learning rates 0.001, 1 and 30.
        follows: names of what the optimizer keeps about where it moved the parameters: tensors of its
            state that start elsewhere when the parameters start elsewhere; and, if it is not linear,
            numbers that depend on the learning rate.
        obeys_rate: whether a changed learning rate changes the very next step.
        needs_closure: whether a step fails without a closure and succeeds with one.
    """

    is_linear: bool = False
    follows: tuple[str, ...] = ()
    obeys_rate: bool = False
    needs_closure: bool = False


class _Walk(NamedTuple):
    """What a stand-in did: where its parameters were after each step, and what it keeps at the end."""

    places: list[Tensor]
    tensors: dict[str, Tensor]
    numbers: Numbers


_known: "WeakKeyDictionary[type, dict[str, Manner]]" = WeakKeyDictionary()


def manner_of(inner: Optimizer) -> Manner:
    """Returns how an optimizer treats its learning rate and its parameters.

    Args:
        inner: the optimizer. It is not stepped, and neither it nor its parameters are changed.

    Returns:
        The findings. For an optimizer whose stand-in cannot be built or stepped, the defaults of `Manner`.

    Example:
        >>> import torch
        >>> from emo_torch._inner_check import manner_of
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> print(manner_of(torch.optim.AdamW([weight])).is_linear)
        True
        >>> print(manner_of(torch.optim.Rprop([weight])).is_linear)
        False
    """
    known = _known.setdefault(type(inner), {})
    key = _key(inner)
    if key not in known:
        if len(known) >= MOST_KNOWN:
            known.clear()
        known[key] = _examine(inner)
    return known[key]


def _key(inner: Optimizer) -> str:
    """Returns the options and plain attributes of an optimizer as one string."""
    parts: list[Any] = [type(inner).__qualname__]
    for group in inner.param_groups:
        options = {
            name: value
            for name, value in group.items()
            if name != "params" and isinstance(value, bool | int | float | str | tuple | type(None))
        }
        for name in ("lr", "initial_lr"):
            options.pop(name, None)
        shapes = sorted({(param.ndim, str(param.device)) for param in group["params"]})
        parts += [sorted(options.items(), key=str), shapes, isinstance(group.get("lr"), Tensor)]
    for name, value in sorted(vars(inner).items()):
        if isinstance(value, bool | int | float | str):
            parts.append((name, value))
        elif isinstance(value, Optimizer):
            parts.append((name, _key(value)))
    return repr(parts)


def _examine(inner: Optimizer) -> Manner:
    for dtype in TOLERANCES:
        for is_seeded in (False, True):
            for needs_closure in (False, True):

                def walk(
                    rate: float,
                    shares: tuple[float, ...],
                    dtype: torch.dtype = dtype,
                    is_seeded: bool = is_seeded,
                    needs_closure: bool = needs_closure,
                    **given: Any,
                ) -> _Walk:
                    twin = _stand_in(inner, dtype, given.pop("shift", 0.0), is_seeded=is_seeded)
                    return _walk(twin, rate, shares, needs_closure=needs_closure, **given)

                try:
                    with _in_peace(inner):
                        return _compare(walk, dtype)._replace(needs_closure=needs_closure)
                except Exception:  # noqa: BLE001, S112: foreign code may raise anything.
                    continue
    return Manner()


def _compare(walk: Callable[..., _Walk], dtype: torch.dtype) -> Manner:
    relative, absolute = TOLERANCES[dtype]
    verdicts = []
    for rate in RATES:
        scaled, slowed = walk(rate, SHARES), walk(rate, SHARES, through_rate=True)
        verdict = _is_same_way(scaled.places, slowed.places, relative, absolute)
        if verdict is not None:
            verdicts.append(verdict)
    is_linear = bool(verdicts) and all(verdicts)

    here, there = walk(RATES[0], (1.0,)), walk(RATES[0], (1.0,), shift=SHIFT)
    follows = [
        name for name, tensor in here.tensors.items() if _is_shifted(tensor, there.tensors.get(name))
    ]
    if not is_linear:
        slow = walk(RATES[0], SHARES, through_rate=True)
        follows += [name for name, value in here.numbers.items() if slow.numbers.get(name, value) != value]

    ahead = (1.0,) * (STEPS - 1)
    full, half = walk(RATES[0], (*ahead, 1.0)), walk(RATES[0], (*ahead, 0.5), through_rate=True)
    last = (full.places[-1] - full.places[-2]).abs().max()
    obeys = bool((full.places[-1] - half.places[-1]).abs().max() > 1e-3 * last)
    return Manner(is_linear, tuple(dict.fromkeys(follows)), obeys)


def _is_same_way(ours: list[Tensor], theirs: list[Tensor], relative: float, absolute: float) -> bool | None:
    """Returns whether two walks are equal up to rounding; `None` if they show nothing."""
    start = ours[0]
    moved = torch.zeros_like(start)
    for index in range(1, len(ours)):
        if not (ours[index].isfinite().all() and theirs[index].isfinite().all()):
            return None if index == 1 else True if moved.max() > 0 else None
        moved = torch.maximum(moved, (ours[index] - ours[index - 1]).abs())
        size = torch.maximum(start.abs(), ours[index].abs())
        if ((ours[index] - theirs[index]).abs() > relative * moved + absolute * (1 + size)).any():
            return False
    return True if moved.max() > 0 else None


def _is_shifted(here: Tensor, there: Tensor | None) -> bool:
    """Returns whether a tensor lies as far from another one as the parameters do."""
    if there is None or here.numel() < 2 or here.shape != there.shape or not here.is_floating_point():
        return False
    shift = there.double() - here.double()
    return bool(((shift - SHIFT).abs() < 0.05 * SHIFT).all())


def _in_peace(inner: Optimizer) -> Any:
    """Returns a context in which a stand-in steps without a trace: no warnings, random numbers or hooks."""
    return _Peace(inner)


class _Peace:
    def __init__(self, inner: Optimizer) -> None:
        devices = {param.device for group in inner.param_groups for param in group["params"]}
        self._cuda = [device for device in devices if device.type == "cuda"]

    def __enter__(self) -> None:
        from torch.optim import optimizer as module

        self._random = random.getstate()
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        self._fork = torch.random.fork_rng(self._cuda)
        self._fork.__enter__()
        # Compiling a step takes seconds, and shows nothing that the plain step does not.
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        hooks = (module._global_optimizer_pre_hooks, module._global_optimizer_post_hooks)
        self._hooks = [(each, dict(each)) for each in hooks]
        for each, _ in self._hooks:
            each.clear()

    def __exit__(self, *raised: Any) -> None:
        for each, saved in self._hooks:
            each.update(saved)  # type: ignore[arg-type]
        self._stance.__exit__(*raised)
        self._fork.__exit__(*raised)
        self._warnings.__exit__(*raised)
        random.setstate(self._random)


def _walk(
    twin: Optimizer,
    rate: float,
    shares: tuple[float, ...],
    *,
    needs_closure: bool,
    through_rate: bool = False,
) -> _Walk:
    """Steps a stand-in; each step goes a part of its way, by its learning rate or after the step."""
    if callable(getattr(twin, "train", None)):
        twin.train()  # type: ignore[attr-defined]
    torch.manual_seed(0)
    random.seed(0)
    groups = list(_groups(twin))
    params = list(dict.fromkeys(param for group in groups for param in group["params"]))
    before_numbers = dict(_numbers(twin))
    places = [_together(params)]
    for step in range(STEPS):
        share = shares[step % len(shares)]
        for group in groups:
            if "lr" in group:
                given = rate * share if through_rate else rate
                is_tensor = isinstance(group["lr"], Tensor)
                group["lr"] = torch.full_like(group["lr"], given) if is_tensor else given
        _give_gradients(params, step)
        befores = [param.detach().clone() for param in params]
        _step(twin, params, step, needs_closure=needs_closure)
        if not through_rate and share != 1.0:
            with torch.no_grad():
                for param, before in zip(params, befores, strict=True):
                    param.copy_(before.lerp(param, share))
        places.append(_together(params))
    numbers = {
        name: value
        for name, value in _numbers(twin)
        if value != before_numbers.get(name) and not name.endswith((".lr", ".initial_lr"))
    }
    kept = {name: tensor for name, tensor in _tensors(twin, set(map(id, params)))}
    return _Walk(places, kept, numbers)


def _step(twin: Optimizer, params: list[Tensor], step: int, *, needs_closure: bool) -> None:
    if isinstance(twin, LossOptimizer):
        twin.step(loss=1.0)
    elif needs_closure:

        def closure() -> Tensor:
            _give_gradients(params, step)
            return torch.ones((), device=params[0].device)

        twin.step(closure)
    else:
        twin.step()


def _give_gradients(params: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        # None near 0, where an optimizer's eps would take part.
        param.grad = (grad + grad.sign()).to(device=param.device, dtype=param.dtype)


def _together(params: list[Tensor]) -> Tensor:
    return torch.cat([param.detach().double().cpu().reshape(-1) for param in params])


# Building a stand-in.


def _stand_in(inner: Optimizer, dtype: torch.dtype, shift: float, *, is_seeded: bool) -> Optimizer:
    """Returns a copy of an optimizer with tiny parameters, without its hooks.

    The state is empty; seeded, it has what stands for each state tensor of a parameter's shape: the tiny
    parameter itself where both are equal, else zeros.
    """
    memo: dict[int, Any] = {}
    made: dict[tuple[int, int, str], torch.nn.Parameter] = {}
    generator = torch.Generator().manual_seed(1)
    for index, group in enumerate(inner.param_groups):
        for param in group["params"]:
            device = "cpu" if param.device.type == "meta" else str(param.device)
            key = (index, param.ndim, device)
            if key not in made:
                values = torch.randn(
                    (4, 3, 2, 2, 2)[: param.ndim], generator=generator, dtype=torch.float64
                )
                made[key] = torch.nn.Parameter((values + shift).to(device=device, dtype=dtype))
            memo[id(param)] = made[key]
    return _copy(inner, memo, is_seeded=is_seeded)


def _copy(inner: Optimizer, memo: dict[int, Any], *, is_seeded: bool) -> Optimizer:
    if id(inner) in memo:
        twin: Optimizer = memo[id(inner)]
        return twin
    twin = object.__new__(type(inner))
    memo[id(inner)] = twin
    for value in vars(inner).values():
        for each in _optimizers(value):
            _copy(each, memo, is_seeded=is_seeded)
    for group in inner.param_groups:
        memo[id(group["params"])] = list(dict.fromkeys(memo[id(param)] for param in group["params"]))
    if id(inner.state) not in memo:
        state: Any = defaultdict(dict)
        for param, kept in inner.state.items() if is_seeded else ():
            if id(param) in memo and isinstance(kept, dict):
                state[memo[id(param)]] = {name: _tiny(value, param, memo) for name, value in kept.items()}
        memo[id(inner.state)] = state
    for name, value in vars(inner).items():
        if name.startswith("_optimizer_") and name.endswith("_hooks"):
            twin.__dict__[name] = OrderedDict()
        elif name != "step":  # Schedulers put a function there that steps the optimizer itself.
            twin.__dict__[name] = copy.deepcopy(value, memo)
    return twin


def _tiny(value: Any, param: Tensor, memo: dict[int, Any]) -> Any:
    if not isinstance(value, Tensor) or value.shape != param.shape:
        return copy.deepcopy(value, memo)
    tiny: Tensor = memo[id(param)].detach()
    return tiny.clone() if torch.equal(value, param.detach()) else torch.zeros_like(tiny)


# Looking into a stand-in.


def _optimizers(value: Any) -> Iterator[Optimizer]:
    if isinstance(value, Optimizer):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _optimizers(each)


def _groups(twin: Optimizer) -> Iterator[dict[str, Any]]:
    """Yields the groups whose learning rate a user would change."""
    yield from twin.param_groups


def _numbers(twin: Optimizer) -> Iterator[tuple[str, float]]:
    """Yields the numbers that an optimizer keeps in its groups and attributes."""
    places = [(f"group {index}", group) for index, group in enumerate(twin.param_groups)]
    for place, values in [*places, ("self", vars(twin))]:
        for name, value in values.items():
            is_one = isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta
            if (is_one or isinstance(value, int | float)) and not isinstance(value, bool):
                yield f"{place}.{name}", float(value)


def _tensors(twin: Optimizer, params: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors that an optimizer keeps, the parameters left out, each with the names to it."""
    seen = set(params)

    def look(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            if type(value) in (Tensor, torch.nn.Parameter):
                yield name, value.detach()
        elif isinstance(value, dict):
            for key, each in value.items():
                yield from look(key if isinstance(key, str) else name, each)
        elif isinstance(value, list | tuple):
            for each in value:
                yield from look(name, each)
        elif isinstance(value, Optimizer):
            yield from look(name, vars(value))

    states = twin.state
    for index, state in enumerate(states.values()):
        for name, tensor in look("", state):
            yield f"{index}.{name}", tensor
    for name, value in vars(twin).items():
        if name not in ("param_groups", "defaults"):
            for inside, tensor in look(name, value):
                yield f"self.{inside}", tensor
