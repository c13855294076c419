"""Layouts of tensors in memory, for `changes_test.py`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Another(Tensor):
    """A tensor of a subclass."""

    def __deepcopy__(self, _: dict[int, Any]) -> "Another":
        return self.as_subclass(Tensor).clone().as_subclass(Another)


def _random(shape: Any, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _strided(value: Tensor) -> Tensor:
    return torch.stack([value, value], dim=-1)[..., 0]


def _turned(value: Tensor) -> Tensor:
    return value.t().contiguous().t() if value.ndim == 2 else value.clone()


def _offset(value: Tensor) -> Tensor:
    storage = torch.zeros(value.numel() + 5, dtype=value.dtype)
    return storage[3 : 3 + value.numel()].copy_(value.reshape(-1)).view(value.shape)


def _negative(value: Tensor) -> Tensor:
    return torch._neg_view(-value)


def _expanded(value: Tensor) -> Tensor:
    return value[:1].expand(value.shape) if value.ndim and value.numel() else value.clone()


def _of_another_type(value: Tensor) -> Tensor:
    return value.clone().as_subclass(Another)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.clone,
    "strided": _strided,
    "turned": _turned,
    "offset": _offset,
    "negative": _negative,
}
GRADIENT_LAYOUTS = {**LAYOUTS, "expanded": _expanded, "of another type": _of_another_type}
