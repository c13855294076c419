"""One loss for all processes, so that replicas take the same steps."""

from __future__ import annotations  # Where PyTorch has no distributed part, there is no ProcessGroup.

from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor

LossGroup = Any | Literal[False] | None
"""A `torch.distributed.ProcessGroup`; `None` for all processes, `False` for this one alone."""


def average_over_replicas(loss: Tensor, process_group: LossGroup = None) -> Tensor:
    r"""Returns the mean of a loss over processes; the loss itself if there is only one process.

    .. math:: L \leftarrow \frac{1}{n} \sum_{i=1}^{n} L_i

    Every process gets the same mean, to the last bit, so replicas with different losses take the same
    steps. If the loss of one process is not finite, the mean is not finite. All processes of the group must
    call this function; otherwise the calling processes wait.

    Args:
        loss: this process's loss, shape `[]`, on a device that the group's backend serves.
        process_group: the processes; `None` for all processes, `False` for this process alone.

    Returns:
        The mean, in the loss's dtype and on its device.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> print(emo_torch.average_over_replicas(torch.tensor(2.0)))
        tensor(2.)

    Source: this project.
    """
    if process_group is False or not dist.is_available() or not dist.is_initialized():
        return loss
    processes = dist.get_world_size(process_group)
    if processes == 1:
        return loss
    mean = loss.clone()
    dist.all_reduce(mean, group=process_group)
    return mean.div_(processes)


class Replicas:
    """The processes whose losses an optimizer averages; a copy of it means the same processes."""

    def __init__(self, process_group: LossGroup) -> None:
        if not (process_group is None or process_group is False or _is_group(process_group)):
            raise TypeError(
                f"Invalid process_group: {process_group!r}; it must be a torch.distributed.ProcessGroup "
                "that this process belongs to, None for all processes, or False for this one alone"
            )
        self.process_group = process_group

    def average(self, loss: Tensor) -> Tensor:
        """Returns the mean of a loss over the processes; the loss itself where there are no others."""
        if not dist.is_available() or not dist.is_initialized():
            return loss
        return average_over_replicas(loss, self.process_group)

    def __deepcopy__(self, memo: dict[int, Any]) -> Replicas:
        return self

    def __reduce__(self) -> tuple[type[Replicas], tuple[LossGroup]]:
        if _is_group(self.process_group):
            raise TypeError(
                "A process group cannot be pickled, and the optimizer was made with one: save its "
                "state_dict(), and load that into an optimizer made with the group"
            )
        return Replicas, (self.process_group,)


def _is_group(process_group: object) -> bool:
    return dist.is_available() and isinstance(process_group, dist.ProcessGroup)
