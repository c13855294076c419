"""Parameters that are sharded over processes (DTensors): operations on whole tensors and on local parts.

Elementwise steps need nothing of this. A norm or a mean over a DTensor, though, is at first one of each
process's part alone, and has to be made one of the whole before it meets anything else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FOREACH_TAKES_SHARDED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""Whether each foreach operation of a step takes DTensors. PyTorch 2.11 has no sharding rule for
`_foreach_lerp` and `_foreach_sign`; PyTorch 2.12 was not run."""


def is_sharded(tensor: Tensor) -> bool:
    """Returns whether a tensor is a DTensor, whose own module costs too much to import for asking."""
    return hasattr(tensor, "full_tensor")


def foreach_takes(tensors: Sequence[Tensor]) -> bool:
    """Returns whether each foreach operation of a step takes these tensors."""
    return FOREACH_TAKES_SHARDED or not any(map(is_sharded, tensors))


def mesh_of(tensor: Tensor) -> Any:
    """Returns the device mesh of a tensor, or `None` for a tensor that is not sharded."""
    return getattr(tensor, "device_mesh", None)


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor as it is over all processes, plain and the same in each; no sync with the device."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local_part(tensor: Tensor) -> Tensor:
    """Returns the part of a tensor in this process, without a copy, for elementwise operations."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def copy_all(tensors: list[Tensor], news: list[Tensor]) -> None:
    """Copies tensors into others with the same sharding; each process copies its own parts."""
    torch._foreach_copy_(list(map(local_part, tensors)), list(map(local_part, news)))


def redistribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns a tensor sharded so that it broadcasts with another one: an axis of length 1 is not split."""
    if not is_sharded(tensor):
        return tensor
    return tensor.redistribute(placements=like.placements)  # type: ignore[attr-defined, no-any-return]


def _without(placements: Sequence[Any], axes: Sequence[int]) -> list[Any]:
    """Returns placements in which no process has another part than the others along some axes."""
    from torch.distributed.tensor import Replicate

    return [Replicate() if getattr(one, "dim", None) in axes else one for one in placements]


def mean(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Returns the mean over some axes, kept with a length of 1, of the whole tensor."""
    if not is_sharded(tensor):
        return tensor.mean(dim=axes, keepdim=True)
    from torch.distributed.tensor import Partial, Replicate

    # Not a mean of means: parts may differ in size, and be empty.
    sums: Any = tensor.sum(dim=axes, keepdim=True)
    settled = [Replicate() if isinstance(one, Partial) else one for one in sums.placements]
    count = 1
    for axis in axes:
        count *= tensor.shape[axis]
    return sums.redistribute(placements=_without(settled, axes)) / count  # type: ignore[no-any-return]


def zeros_for_mean(param: Tensor, axes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns zeros with the sharding of `mean` of a tensor over some axes."""
    shape = [1 if axis in axes else length for axis, length in enumerate(param.shape)]
    if not is_sharded(param):
        return param.new_zeros(shape, dtype=dtype)
    import torch.distributed.tensor as sharded

    mesh, placements = param.device_mesh, _without(param.placements, axes)  # type: ignore[attr-defined]
    made = sharded.zeros(shape, dtype=dtype, device_mesh=mesh, placements=placements)
    return made.to(param.device)  # Parameters may be on another device than the computation.


def places(tensor: Tensor) -> Tensor:
    """Returns each element's place in the whole tensor, in the shape of this process's part of it."""
    if not is_sharded(tensor):
        return torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    own = local_part(tensor)
    found = torch.zeros((), dtype=torch.int64, device=own.device)
    stride = tensor.numel()
    for axis, length in enumerate(tensor.shape):
        stride //= max(length, 1)
        steps = torch.arange(length, device=mesh.device_type) * stride
        steps = steps.view([-1 if at == axis else 1 for at in range(tensor.ndim)])
        everywhere = DTensor.from_local(steps, mesh, [Replicate()] * mesh.ndim, run_check=False)
        along = [one if getattr(one, "dim", None) == axis else Replicate() for one in placements]
        here: Any = everywhere.redistribute(placements=along)
        found = found + here.to_local().to(own.device)
    return found.expand(own.shape)


def sum_of_parts(values: Tensor, like: Tensor) -> Tensor:
    """Returns the sums over all processes of numbers that each process computed from its part of a tensor.

    Args:
        values: the numbers of this process, plain.
        like: the tensor; if it is not sharded, the numbers are returned unchanged.
    """
    if not is_sharded(like):
        return values
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    kinds = [Replicate() if getattr(one, "dim", None) is None else Partial() for one in placements]
    return DTensor.from_local(values, mesh, kinds, run_check=False).full_tensor()


def sums_of_parts(values: list[Tensor], likes: list[Tensor]) -> list[Tensor]:
    """Like `sum_of_parts` for the numbers of many tensors, with one reduction for all tensors of a mesh.

    Args:
        values: for each tensor the numbers of this process, shape `[n]`, plain.
        likes: the tensors; numbers of a tensor that is not sharded are returned unchanged.
    """
    summed = list(values)
    together: dict[Any, list[int]] = {}
    for index, (value, like) in enumerate(zip(values, likes, strict=True)):
        if is_sharded(like):
            # Shards of several axes are added up alike.
            splits = [getattr(one, "dim", None) is None for one in like.placements]  # type: ignore[attr-defined]
            key = (mesh_of(like), *splits, value.dtype, value.device)
            together.setdefault(key, []).append(index)
    for indices in together.values():
        own = [values[index] for index in indices]
        whole_sums = sum_of_parts(torch.cat(own), likes[indices[0]]).split(list(map(len, own)))
        for index, each in zip(indices, whole_sums, strict=True):
            summed[index] = each
    return summed
