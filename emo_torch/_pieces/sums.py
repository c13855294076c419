"""Norms and products of large tensors on the CPU, in blocks.

PyTorch adds the elements of `vector_norm` and `dot` one after another in the dtype of the tensor, on each
thread. In float32 a sum of 40 million elements is then up to 10 % off (PyTorch 2.13), and depends
on the number of threads. Here blocks of 128 elements are summed, and their sums are added in float64. A
tensor of at most 1024 elements, and a tensor on another device, is summed by PyTorch as it is.
"""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import torch
from torch import Tensor

from emo_torch._sharded import is_sharded, local_part, sum_of_parts, whole

LARGE = 1024
"""The largest number of elements that PyTorch sums as they are."""
BLOCK = 128
"""The number of elements of a block, whose sum in the dtype of the tensor is right to some roundings."""


def norm_of(tensor: Tensor, order: float = 2.0, *, dtype: torch.dtype | None = None) -> Tensor:
    """Returns the L1 or the L2 norm of a tensor, shape `[]`.

    Args:
        tensor: floating point, any shape; a DTensor counts as a whole.
        order: 1.0 or 2.0.
        dtype: of the elements in the sum, and of the result; `None` for the tensor's.
    """
    if not _is_large(tensor):
        return whole(torch.linalg.vector_norm(tensor, order, dtype=dtype))
    if not is_sharded(tensor):
        return _blockwise(tensor, order, dtype).to(dtype or tensor.dtype)
    # Each process has a part: the powers of the parts' norms can be added.
    power = _blockwise(local_part(tensor), order, dtype) ** order
    return sum_of_parts(power, tensor).pow(1.0 / order).to(dtype or tensor.dtype)


def multi_tensor_norm_of(tensors: list[Tensor]) -> list[Tensor]:
    """Like `norm_of` with the L2 norm, for many tensors of one device and dtype."""
    small = [tensor for tensor in tensors if not _is_large(tensor)]
    norms = iter(torch._foreach_norm(small) if small else ())
    return [norm_of(tensor) if _is_large(tensor) else whole(next(norms)) for tensor in tensors]


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Returns the sum of the products of two tensors of shape `[n]`, shape `[]`."""
    # A sum over all elements is one of blocks in PyTorch, too.
    return (left * right).sum() if _is_large(left) else torch.dot(left, right)


def _is_large(tensor: Tensor) -> bool:
    # All elements of a DTensor, so that every process takes the same way.
    return tensor.device.type == "cpu" and tensor.numel() > LARGE


def _blockwise(tensor: Tensor, order: float, dtype: torch.dtype | None) -> Tensor:
    """Returns the norm in float64, of shape `[]`."""
    # In the order of memory, so that a transposed tensor is not copied.
    strides = tensor.stride()
    axes = sorted(range(tensor.ndim), key=lambda axis: strides[axis], reverse=True)
    flat = tensor.permute(axes).reshape(-1)
    whole_blocks = flat.numel() // BLOCK * BLOCK
    blocks, rest = flat[:whole_blocks].view(-1, BLOCK), flat[whole_blocks:].view(1, -1)
    norms = [torch.linalg.vector_norm(part, order, dim=1, dtype=dtype) for part in (blocks, rest)]
    norm: Tensor = torch.linalg.vector_norm(torch.cat(norms), order, dtype=torch.float64)
    return norm
