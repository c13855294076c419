"""Finds out how an optimizer treats its learning rate and its parameters, by stepping a tiny copy of it.

The optimizer itself is not touched. A stand-in is built from it: an object of the same class with the same
options and attributes, without hooks, whose parameters have a few elements each. The stand-in takes a few
steps with fixed gradients. The result is cached for each class and its options.
"""

import random
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from emo_torch._step.loss_optimizer import LossOptimizer
from emo_torch._wrappers.stand_in import numbers_of, stand_in, tensors_of

STEPS = 12
RATES = (1e-3, 1.0, 30.0)
"""Learning rates to try: the result must not depend on the current learning rate."""
SHARES = (0.5, 1.0, 0.25, 0.75)
"""The factors of the steps, one after the other."""
SHIFT = 8.0
"""The distance of the second start from the first."""
TOLERANCES = {torch.float64: (1e-5, 1e-14), torch.float32: (1e-3, 1e-6)}
"""The bound on the difference of two ways: relative to the distance moved, and to the parameter."""
MOST_KNOWN = 256
"""How many sets of options of one class are remembered."""

Numbers = dict[str, float]


class Manner(NamedTuple):
    """How an optimizer treats its learning rate and its parameters.

    Attributes:
        is_linear: whether a step at c times the learning rate is c times the step, with the same state
            after it, for twelve steps at each of the learning rates 0.001, 1 and 30.
        follows: names of the records of where the optimizer moved the parameters: tensors of its
            state that start elsewhere when the parameters start elsewhere; and, if it is not linear,
            numbers that depend on the learning rate.
        estimates: names of numbers, one for a whole group or for the whole optimizer, that depend on the
            learning rate and on the gradients, if it is not linear: from these numbers the optimizer
            computes the length of its steps, as Prodigy and D-Adaptation do.
        obeys_rate: whether a changed learning rate changes the very next step.
        needs_closure: whether a step fails without a closure and succeeds with one.
    """

    is_linear: bool = False
    follows: tuple[str, ...] = ()
    estimates: tuple[str, ...] = ()
    obeys_rate: bool = False
    needs_closure: bool = False


class _Record(NamedTuple):
    """The record of a stand-in: its parameters after each step, and its state at the end."""

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
        >>> from emo_torch._wrappers.inner_check import manner_of
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


def check_follows(inner: Optimizer) -> None:
    """Raises a `ValueError` for an optimizer that keeps track of where it moved the parameters."""
    follows = manner_of(inner).follows
    if follows:
        raise ValueError(
            f"{type(inner).__name__} keeps track of where it moved the parameters ({', '.join(follows)}). "
            "emo_torch changes the length of a step, so these records would be wrong. Choose another "
            "optimizer."
        )


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
    """Returns the findings in float64, or in float32 if roundings may have made float64 look nonlinear."""
    first = None
    for dtype in TOLERANCES:
        found = _examine_in(inner, dtype)
        if found is not None and (found.is_linear or found.follows):
            return found
        first = first or found
    return first or Manner()


def _examine_in(inner: Optimizer, dtype: torch.dtype) -> Manner | None:
    """Returns the findings in one dtype, or `None` if the stand-in could not be built or stepped."""
    for is_seeded in (False, True):
        for needs_closure in (False, True):

            def run(
                rate: float,
                shares: tuple[float, ...],
                shift: float = 0.0,
                is_seeded: bool = is_seeded,
                needs_closure: bool = needs_closure,
                through_rate: bool = False,
                first: int = 0,
            ) -> _Record:
                twin = stand_in(inner, dtype, shift, is_seeded=is_seeded)
                return _run_stand_in(
                    twin,
                    rate,
                    shares,
                    needs_closure=needs_closure,
                    through_rate=through_rate,
                    first=first,
                )

            try:
                with _Isolated(inner):
                    return _compare(run, dtype)._replace(needs_closure=needs_closure)
            except Exception:  # Foreign code may raise anything.
                continue
    return None


def _compare(run: Callable[..., _Record], dtype: torch.dtype) -> Manner:
    relative, absolute = TOLERANCES[dtype]
    verdicts = []
    for rate in RATES:
        scaled, slowed = run(rate, SHARES), run(rate, SHARES, through_rate=True)
        verdict = _is_same_way(scaled.places, slowed.places, relative, absolute)
        if verdict is not None:
            verdicts.append(verdict)
    is_linear = bool(verdicts) and all(verdicts)

    here, there = run(RATES[0], (1.0,)), run(RATES[0], (1.0,), shift=SHIFT)
    follows = [
        name for name, tensor in here.tensors.items() if _is_shifted(tensor, there.tensors.get(name))
    ]
    estimates: list[str] = []
    if not is_linear:
        slow, other = run(RATES[0], SHARES, through_rate=True), run(RATES[0], (1.0,), first=STEPS)
        rates = {RATES[0] * share for share in SHARES}
        pairs = {name: (value, slow.numbers.get(name, value)) for name, value in here.numbers.items()}
        # A record of the learning rate depends on it, but does not track positions.
        records = {name for name, pair in pairs.items() if pair[0] == RATES[0] and pair[1] in rates}
        numbers = [name for name, pair in pairs.items() if pair[0] != pair[1] and name not in records]
        follows += numbers
        estimates = [name for name in numbers if here.numbers[name] != other.numbers.get(name)]

    ahead = (1.0,) * (STEPS - 1)
    full, half = run(RATES[0], (*ahead, 1.0)), run(RATES[0], (*ahead, 0.5), through_rate=True)
    last = (full.places[-1] - full.places[-2]).abs().max()
    obeys = bool((full.places[-1] - half.places[-1]).abs().max() > 1e-3 * last)
    return Manner(is_linear, tuple(dict.fromkeys(follows)), tuple(estimates), obeys)


def _is_same_way(ours: list[Tensor], theirs: list[Tensor], relative: float, absolute: float) -> bool | None:
    """Returns whether two records are equal up to rounding; `None` if all steps are too small to tell."""
    start = ours[0]
    moved = torch.zeros_like(start)
    for index in range(1, len(ours)):
        if not (ours[index].isfinite().all() and theirs[index].isfinite().all()):
            return True if moved.max() > 1e3 * absolute else None
        moved = torch.maximum(moved, (ours[index] - ours[index - 1]).abs())
        size = torch.maximum(start.abs(), ours[index].abs())
        if ((ours[index] - theirs[index]).abs() > relative * moved + absolute * (1 + size)).any():
            return False
    # Steps as small as rounding errors prove nothing.
    return True if moved.max() > 1e3 * absolute else None


def _is_shifted(here: Tensor, there: Tensor | None) -> bool:
    """Returns whether two tensors differ by as much as the parameters do."""
    if there is None or here.numel() < 2 or here.shape != there.shape or not here.is_floating_point():
        return False
    shift = there.double() - here.double()
    return bool(((shift - SHIFT).abs() < 0.05 * SHIFT).all())


class _Isolated:
    """A context in which a stand-in leaves no trace: no warnings, random numbers, hooks or compiling."""

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


def _run_stand_in(
    twin: Optimizer,
    rate: float,
    shares: tuple[float, ...],
    *,
    needs_closure: bool,
    through_rate: bool = False,
    first: int = 0,
) -> _Record:
    """Steps a stand-in; each step is shortened by its learning rate, or by moving back after the step.

    Args:
        twin: the stand-in.
        rate: the learning rate.
        shares: the factors of the steps, in a cycle.
        needs_closure: whether a step gets a closure.
        through_rate: whether a factor multiplies the learning rate.
        first: the number of the first step: each step number has its own gradients.
    """
    if callable(getattr(twin, "train", None)):
        twin.train()  # type: ignore[attr-defined]
    torch.manual_seed(0)
    random.seed(0)
    groups = twin.param_groups
    params = list(dict.fromkeys(param for group in groups for param in group["params"]))
    before_numbers = dict(numbers_of(twin))
    places = [_together(params)]
    for step in range(STEPS):
        share = shares[step % len(shares)]
        for group in groups:
            if "lr" in group:
                given = rate * share if through_rate else rate
                is_tensor = isinstance(group["lr"], Tensor)
                group["lr"] = torch.full_like(group["lr"], given) if is_tensor else given
        _give_gradients(params, first + step)
        befores = [param.detach().clone() for param in params]
        _step(twin, params, first + step, needs_closure=needs_closure)
        if not through_rate and share != 1.0:
            with torch.no_grad():
                for param, before in zip(params, befores, strict=True):
                    param.copy_(before.lerp(param, share))
        places.append(_together(params))
    numbers = {
        name: value
        for name, value in numbers_of(twin)
        if value != before_numbers.get(name) and not name.endswith((".lr", ".initial_lr"))
    }
    kept = dict(tensors_of(twin, params))
    return _Record(places, kept, numbers)


def _step(twin: Optimizer, params: list[Tensor], step: int, *, needs_closure: bool) -> None:
    if isinstance(twin, LossOptimizer):
        twin.step(loss=1.0)
    elif needs_closure:

        def closure() -> Tensor:
            _give_gradients(params, step)
            return torch.ones((), device=params[0].device)

        twin.step(closure)  # type: ignore[arg-type]
    else:
        twin.step()


def _give_gradients(params: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        # None near 0, where an optimizer's eps would matter.
        param.grad = (grad + grad.sign()).to(device=param.device, dtype=param.dtype)


def _together(params: list[Tensor]) -> Tensor:
    return torch.cat([param.detach().double().cpu().reshape(-1) for param in params])
