"""The hooks and the record of a step, which cost nothing while no hook and no profiler is in use.

PyTorch wraps the step of every optimizer class in `Optimizer.profile_hook_step`, which opens a record for
the profiler, and runs the hooks before and after the step. With small tensors the record takes as long as
the compiled code. `with_hooks` calls PyTorch's wrapper only while a profiler or a hook is in use.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch._C._profiler import _RecordFunctionFast
from torch.optim import optimizer as _module
from torch.optim.optimizer import Optimizer

_is_profiled = torch._C._autograd._profiler_enabled


_Step = TypeVar("_Step", bound=Callable[..., Any])


def with_hooks(step: _Step) -> _Step:
    """Returns the step of an optimizer class, with hooks, with a record, and without gradients.

    Args:
        step: the method. It runs without gradients, as under `torch.no_grad`.
    """
    by_torch = Optimizer.profile_hook_step(torch.no_grad()(step))

    @functools.wraps(step)
    def hooked(self: Optimizer, *given: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return by_torch(self, *given, **options)
        # The class of a user may have a step of its own, which PyTorch has wrapped: hooks run once.
        is_own = type(self).step is hooked
        if is_own and (
            _is_profiled()
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _module._global_optimizer_pre_hooks
            or _module._global_optimizer_post_hooks
        ):
            return by_torch(self, *given, **options)
        has_gradients = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            # Seen by the observers that run without a profiler, such as `ExecutionTraceObserver`.
            with _RecordFunctionFast(f"Optimizer.step#{type(self).__name__}.step"):
                return step(self, *given, **options)
        finally:
            torch._C._set_grad_enabled(has_gradients)

    hooked.hooked = True  # type: ignore[attr-defined]  # PyTorch wraps no step that has this mark.
    return cast(_Step, hooked)
