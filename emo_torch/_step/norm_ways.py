"""The sum of the L1 norms that EmoTion and EmoVoid read, by PyTorch or in compiled code."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from emo_torch._checks.errors import WITHOUT_VALUES
from emo_torch._kernels import cuda
from emo_torch._kernels.norms import addresses_in, addresses_of, are_readable, sum_of_sizes
from emo_torch._kernels.plan import PARAM, Layout
from emo_torch._rules.recipe import Group
from emo_torch._rules.sign_rules import sum_of_norms
from emo_torch._step.ways import use_fused


def counted(params: list[Tensor]) -> list[Tensor]:
    """Returns the parameters whose norms count: the ones that need a gradient or have one."""
    return [param for param in params if param.requires_grad or param.grad is not None]


def check_values(owner: str, tensors: Iterable[Tensor], kind: str) -> None:
    """Raises a `RuntimeError` if a tensor whose norm a step reads is on the device "meta"."""
    if any(tensor.device.type == "meta" for tensor in tensors):
        raise RuntimeError(WITHOUT_VALUES.format(owner=owner, kind=kind))


def norm_of_groups(groups: list[Group], layouts: Sequence[Layout | None]) -> Tensor:
    """Returns the sum of the norms of all parameters that need a gradient or have one, shape `[]`.

    Args:
        groups: the parameter groups.
        layouts: for each group the layout of the parameters that have a gradient; `None` if it is not
            known.
    """
    is_eager = not torch.compiler.is_compiling()
    found = _in_layouts(groups, layouts) if is_eager else None
    if found is not None:
        return found
    params = [counted(group["params"]) for group in groups]
    compiled = _compiled(groups, params, layouts) if is_eager else None
    return sum_of_norms([param for each in params for param in each]) if compiled is None else compiled


def _in_layouts(groups: list[Group], layouts: Sequence[Layout | None]) -> Tensor | None:
    """Returns the sum where the layouts have all parameters, without a look at any; else `None`."""
    known = [
        layout
        for layout, group in zip(layouts, groups, strict=False)
        if layout is not None and len(layout.rows) == len(group["params"])
    ]
    dtypes = {layout.dtypes[PARAM] for layout in known}
    if len(known) < len(groups) or len(dtypes) != 1:
        return None
    if not all(use_fused(group["params"], group) for group in groups):
        return None
    dtype = dtypes.pop()
    found = [places for layout in known if (places := addresses_in(layout, dtype)) is not None]
    if len(found) < len(known):
        return None
    begins, sizes = found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
    total = sum_of_sizes(begins, sizes, dtype)
    return None if total is None else torch.full((), total, dtype=dtype, device="cpu")


def _compiled(
    groups: list[Group], lists: list[list[Tensor]], layouts: Sequence[Layout | None]
) -> Tensor | None:
    """Returns the sum by compiled code; `None` if compiled code cannot read all parameters."""
    params = [param for each in lists for param in each]
    if params and params[0].device.type in cuda.DEVICES:
        return None
    pairs = zip(groups, lists, strict=True)
    if not params or not all(use_fused(each, group) for group, each in pairs if each):
        return None
    dtype = params[0].dtype
    # The current step has already checked these layouts.
    known = [
        addresses_in(layout, dtype)
        for layout, each in zip(layouts, lists, strict=False)
        if layout is not None and len(layout.rows) == len(each)
    ]
    found = [each for each in known if each is not None]
    if len(found) == len(groups):
        begins, sizes = (np.concatenate(each) for each in zip(*found, strict=True))
    elif are_readable(params, dtype):
        begins, sizes = addresses_of(params)
    else:
        return None
    total = sum_of_sizes(begins, sizes, dtype)
    return None if total is None else torch.full((), total, dtype=dtype, device="cpu")
