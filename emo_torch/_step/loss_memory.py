"""The memory of the losses: a few tensors, which are stored in every parameter group of an optimizer.

The groups hold the tensors because every way to save and load an optimizer keeps its groups.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from emo_torch._rules.recipe import Group, State

Bind = Callable[[tuple[Tensor, ...]], State]
"""A function from the tensors of a memory to the scalars among them, by their names in the groups."""


MEMBER = "emo_member"
"""The part of a state that names the member of the family that saved it, and the rule of the member."""
MEMORY_KINDS = ("emotion", "pulse", "divergence", "pilot")
"""The kinds of memory; a group has the tensors of one under names that begin with its kind and `_`."""


class LossMemory:
    """The tensors in which an optimizer stores the statistics of the losses.

    Args:
        tensors: the tensors, which belong to this memory alone.
        bind: names the tensors.

    Attributes:
        tensors: the tensors, in the order of the class that defines them.
        by_name: the tensors by the names that the groups have for them.
        name: the first of these names. If a group has another tensor under this name, other code has
            written to the group, for example a checkpointer.
        first: the tensor of the name `name`.
        number: one of the floating-point tensors. A loss is converted to its dtype and device.
    """

    def __init__(self, tensors: tuple[Tensor, ...], bind: Bind) -> None:
        self.tensors = tensors
        self.by_name = bind(tensors)
        self.name, self.first = next(iter(self.by_name.items()))
        self.number = next(tensor for tensor in tensors if tensor.is_floating_point())

    @classmethod
    def share(
        cls,
        tensors: tuple[Tensor, ...],
        groups: list[Group],
        *,
        bind: Bind,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> "LossMemory":
        """Returns a memory with copies of tensors, and puts the copies into every group.

        Args:
            tensors: the numbers to begin with.
            groups: the parameter groups.
            bind: names the tensors.
            dtype: the dtype of the floating-point copies.
            device: the device of the copies; the CPU for `None` and for "meta".
        """
        device = torch.device("cpu") if device is None or device.type == "meta" else device

        def own(tensor: Tensor) -> Tensor:
            target = dtype if tensor.is_floating_point() else tensor.dtype
            return tensor.detach().to(device=device, dtype=target, copy=True)

        memory = cls(tuple(own(tensor) for tensor in tensors), bind)
        for group in groups:
            group.update(memory.by_name)
        return memory


def check_member(owner: str, rule: str | None, saver: Any) -> None:
    """Raises a `ValueError` for a state that another member of the family saved.

    Members with the same rule and the same memory can load each other's states, as `EmoSens` and `EmoNavi`.
    A state of an earlier release, or of `torch.optim`, names no member and is not refused here.

    Args:
        owner: the name of the optimizer that loads the state.
        rule: the name of the optimizer's rule; `None` for an optimizer that is no member.
        saver: the part `MEMBER` of the state.
    """
    if not isinstance(saver, Mapping) or not {"name", "rule"} <= set(saver):
        raise ValueError(f"The state is damaged: {MEMBER!r} must hold a name and a rule, and is {saver!r}")
    if saver["rule"] != rule:
        raise ValueError(
            f"The state is another kind of optimizer's: {saver['name']} saved it, and {owner} has another "
            f"rule. Load it into {saver['name']}, or begin {owner} with a new state"
        )


def check_kind_of_memory(owner: str, saved_groups: list[dict[str, Any]], title: str) -> None:
    """Raises a `ValueError` for a saved state whose groups have a memory of another kind.

    Args:
        owner: the name of the optimizer that loads the state.
        saved_groups: the groups of the state.
        title: the kind of the memory that the optimizer has.
    """
    names = [str(name) for saved in saved_groups for name in saved]
    others = [kind for kind in MEMORY_KINDS if any(name.startswith(f"{kind}_") for name in names)]
    # The groups of `Autopilot` around a member have two memories, and the member loads them, too.
    if others and title not in others:
        raise ValueError(
            "The state is another kind of optimizer's: it holds the loss statistics of the kind "
            f"{' and '.join(others)}, and {owner} needs the kind {title}. Load the state into the "
            f"optimizer that saved it, or start {owner} without a saved state"
        )


def check_saved_memory(
    owner: str, saved_groups: list[dict[str, Any]], own_group: Group, names: tuple[str, ...], title: str
) -> None:
    """Raises a `ValueError` for groups of a saved state that have a damaged memory, or a part of one.

    Args:
        owner: the name of the optimizer that loads the state.
        saved_groups: the groups of the state.
        own_group: a group of the optimizer that loads the state.
        names: the names of the tensors of the memory.
        title: the name of the memory in messages.
    """
    has_memory = any(name in saved for saved in saved_groups for name in names)
    for saved in saved_groups:
        missing = [name for name in names if name not in saved]
        extra = [name for name in saved if str(name).startswith(f"{title}_") and name not in names]
        if extra:
            raise ValueError(
                f"The state is another kind of optimizer's: its {title} has {', '.join(extra)}, and "
                f"{owner} has no such part"
            )
        if has_memory and missing:
            raise ValueError(f"The state lacks a part of the {title}: {', '.join(missing)}")
        for name in names if has_memory else ():
            value = saved[name]
            is_one = isinstance(value, int | float)
            if isinstance(value, Tensor):
                is_one = value.numel() == 1 and not value.is_meta
            if not is_one:
                raise ValueError(f"The state is damaged: {name!r} must be one number, and is {value!r}")
            is_count = not own_group[name].is_floating_point()
            if not math.isfinite(value) or (is_count and not (value >= 0 and value == int(value))):
                raise ValueError(
                    f"The state is damaged: {name!r} is {value!r}; it must be finite, and a count must be "
                    "a whole number >= 0"
                )
