"""Layouts of tensors in memory, and comparisons of rounded numbers, for `changes_test.py`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BOUNDS = {torch.float32: 2e-5, torch.float64: 1e-11}
"""Bounds by the dtype of a parameter's computation (also for its float64 moments), or by the dtype of a
state if it is coarser."""
NARROW = (torch.bfloat16, torch.float16)
"""Dtypes that are computed in float32 and rounded: a difference in float32's last digits may change the
rounded number."""
NARROW_BOUND = 1e-6
"""The largest difference of float32 values before they are rounded, if their terms cancel."""


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


def _bound(value: Tensor, computed_in: set[torch.dtype]) -> float:
    if value.dtype in NARROW:
        return NARROW_BOUND
    dtypes = {value.dtype, *computed_in} if value.dtype in BOUNDS else set()
    return max((BOUNDS.get(dtype, 0.0) for dtype in dtypes), default=0.0)


def _assert_rounded_alike(ours: Tensor, theirs: Tensor, bound: Any) -> None:
    """Asserts that few numbers differ, each by one unit and `bound` at most."""
    different = ~((ours == theirs) | (ours.isnan() & theirs.isnan()))
    allowed = torch.finfo(ours.dtype).eps * theirs.float().abs() + bound
    wrong = different & ~((ours.float() - theirs.float()).abs() <= allowed)
    assert not wrong.any(), (ours[wrong], theirs[wrong])
    assert int(different.sum()) <= 1 + ours.numel() // 1000


def _assert_coded_alike(ours: Tensor, theirs: Tensor) -> None:
    """Asserts that few codes differ, each by 1: `_kernels/coded_test.py` has the reason."""
    apart = (ours.int() - theirs.int()).abs()
    assert not (apart > 1).any()
    assert int(apart.sum()) <= 1 + ours.numel() // 1000
