"""A step of compiled code that is ready: with the same options, only the emotion's numbers are new.

With small tensors, the way from the recipe of a member to the job of compiled code takes longer than the
job. `ReadyStep` keeps the job of the last step. It is used only if the plan of the group is valid (see
`plan.py`), and if no option of the group has changed since.
"""

import ctypes
import os
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from emo_torch._kernels.cpu import LEAST_SHARE
from emo_torch._kernels.describe import NO_SCALARS, Scalars, Signal
from emo_torch._kernels.job import FUNCTIONS, Job, Library
from emo_torch._kernels.plan import Layout

_PLAIN = (bool, int, float, str, type(None), torch.dtype)
_REALS = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


class ReadyStep:
    """The job of a layout, with copies of the options that it was made from.

    Args:
        layout: the layout, which a plan checks at each step.
        job: the job of the last step.
        wide: the dtype of the computation.
        group: the options of that step.
        read: the names of the options that are read at each step, and so may change.
        found: the compiled code.
    """

    def __init__(
        self,
        layout: Layout,
        job: Job,
        wide: torch.dtype,
        group: dict[str, Any],
        read: Iterable[str],
        found: Library,
    ) -> None:
        # The layout keeps this object, and the arrays that the job points to.
        self._library = found
        names = [name for name in group if name not in set(read)]
        self._many, self._options = len(group), itemgetter(*names)
        self._before = self._options(group)
        self.is_possible = all(map(_is_fixed, self._before))
        self._job = Job.from_buffer_copy(job)
        self._numbers = (_REALS[wide] * 5)()
        at, size = ctypes.addressof(self._numbers), ctypes.sizeof(_REALS[wide])
        own = self._job
        own.tolerance, own.scale, own.ratio, own.lr = (at + place * size for place in range(4))
        own.share = None if job.share is None else at + 4 * size
        self._at_job = ctypes.byref(own)
        self._function = FUNCTIONS[wide]
        self._most_threads = max(1, layout.addresses.elements // LEAST_SHARE)

    def fits(self, group: dict[str, Any], found: Library | None) -> bool:
        """Returns whether a step with these options has the same job."""
        return (
            self.is_possible
            and found is self._library
            and len(group) == self._many
            and bool(self._options(group) == self._before)
        )

    def run(self, params: list[Tensor], signal: Signal, scalars: Scalars = NO_SCALARS) -> bool:
        """Takes the step; returns whether it was taken. Other kinds of scalars need a new job."""
        numbers, found = self._numbers, self._library
        numbers[0], numbers[1], numbers[2], numbers[3] = signal
        share, follow, weights = scalars
        if (share is None) != (self._job.share is None) or (follow is None) == bool(self._job.trusts):
            return False
        if share is not None:
            numbers[4] = share
        if follow is not None:
            self._job.shadow_rate = follow
        self._job.weights = weights
        # A forked process does not have the threads of its parent, and would wait forever.
        most = self._most_threads
        self._job.threads = (
            1 if most == 1 or found.process != os.getpid() else min(torch.get_num_threads(), most)
        )
        try:
            # torch does not see writes of compiled code (see `cpu.step`).
            torch.autograd.graph.increment_version(params)
        except RuntimeError:
            return False  # Tensors made in inference mode have no versions.
        return bool(getattr(found.handle, self._function)(self._at_job) == 0)


def _is_fixed(value: Any) -> bool:
    """Returns whether a value cannot change in place."""
    if type(value) is tuple:
        return all(map(_is_fixed, value))
    return isinstance(value, _PLAIN)
