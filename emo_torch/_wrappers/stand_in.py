"""A tiny copy of an optimizer, which can be stepped in its place."""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer


def stand_in(inner: Optimizer, dtype: torch.dtype, shift: float, *, is_seeded: bool) -> Optimizer:
    """Returns a copy of an optimizer with tiny parameters, without its hooks.

    The state is empty. A seeded state has a tensor for each state tensor of a parameter's shape: a copy of
    the tiny parameter if all state tensors of this name equal their parameters, else zeros.
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
        seeds = [
            (param, kept)
            for param, kept in (inner.state.items() if is_seeded else ())
            if id(param) in memo and isinstance(kept, dict)
        ]
        # A sum of zeros equals a parameter of zeros, and one without elements. The other parameters
        # show that the sum is no copy.
        differing = {
            name
            for param, kept in seeds
            for name, value in kept.items()
            if _fits(value, param) and not torch.equal(value, param.detach())
        }
        for param, kept in seeds:
            tiny: Tensor = memo[id(param)].detach()
            state[memo[id(param)]] = {
                name: copy.deepcopy(value, memo)
                if not _fits(value, param)
                else torch.zeros_like(tiny)
                if name in differing
                else tiny.clone()
                for name, value in kept.items()
            }
        memo[id(inner.state)] = state
    for name, value in vars(inner).items():
        if name.startswith("_optimizer_") and name.endswith("_hooks"):
            twin.__dict__[name] = OrderedDict()
        elif name != "step":  # Schedulers put a function there that steps the optimizer itself.
            twin.__dict__[name] = copy.deepcopy(value, memo)
    return twin


def _fits(value: Any, param: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == param.shape


def _optimizers(value: Any) -> Iterator[Optimizer]:
    if isinstance(value, Optimizer):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _optimizers(each)


def numbers_of(twin: Optimizer) -> Iterator[tuple[str, float]]:
    """Yields the numbers that an optimizer keeps in its groups and attributes."""
    places = [(f"group {index}", group) for index, group in enumerate(twin.param_groups)]
    for place, values in [*places, ("self", vars(twin))]:
        for name, value in values.items():
            is_one = isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta
            if (is_one or isinstance(value, int | float)) and not isinstance(value, bool):
                yield f"{place}.{name}", float(value)


def tensors_of(twin: Optimizer, params: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors that an optimizer keeps, except parameters and their views, with their names."""
    seen = set(map(id, params))
    memory = {param.untyped_storage().data_ptr() for param in params}

    def look(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            is_plain = type(value) in (Tensor, torch.nn.Parameter)
            if is_plain and value.untyped_storage().data_ptr() not in memory:
                yield name, value.detach()
        elif isinstance(value, dict):
            for key, each in value.items():
                yield from look(str(key) if isinstance(key, str | int) else name, each)
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
