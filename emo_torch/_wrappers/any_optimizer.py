"""Any optimizer of PyTorch made emotional: `Emotional`, which wraps an optimizer and calls its step."""

import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from emo_torch._checks.validation import (
    check_factor,
    check_flag,
    check_function,
    check_inner,
    check_not_negative,
    check_shadow_ratio,
)
from emo_torch._kernels.plan import GroupTensors
from emo_torch._pieces.accumulation import CollectedLosses
from emo_torch._pieces.emotion import is_on_cpu
from emo_torch._pieces.replicas import LossGroup, Replicas
from emo_torch._pieces.shadow_effect import Keep, keep_elements, keeps_all, step_scale
from emo_torch._pieces.shadow_system import ShadowRatio
from emo_torch._rules.recipe import Group
from emo_torch._step.emo_optimizer import EmoOptimizer
from emo_torch._step.loss_optimizer import LossOptimizer
from emo_torch._step.ways import Feeling, use_foreach
from emo_torch._wrappers.around_inner import AroundInner
from emo_torch._wrappers.inner_check import Manner, manner_of
from emo_torch._wrappers.inner_state import make_inner_state
from emo_torch._wrappers.inner_step import (
    Averages,
    Copies,
    Resting,
    RestingBeside,
    blend,
    find_resting,
    put_back,
    scale_change,
    scaled_rate,
    which_move,
    with_shadow,
)

__all__ = ["Emotional", "scale_change"]


class Emotional(AroundInner):
    r"""Makes any optimizer of PyTorch emotional.

    One emotion, felt once a step; with the shadow, `inner` steps from the blended parameters
    :math:`p' = (1-r)\,p + r\,shadow`; then its change is filtered and scaled:

    .. math:: p \leftarrow p' + (1 - |s|)\,[\,|g|^{1/3} \ge \theta\,(1+|s|)\,]\,(inner(p') - p')

    If the step of `inner` is linear in its learning rate, or if `inner` keeps track of where it moved the
    parameters (as schedule-free optimizers and Prodigy do), the learning rate is scaled for the step, and
    nothing is copied. Otherwise a step holds a copy of the parameters that have a gradient, and one byte
    per element. `emo_torch._wrappers.inner_check` chooses one of the two ways when this optimizer is made.

    `param_groups` and `state` are the groups and the state of `inner`, under the names of `inner`; the
    options and the emotion are added to the groups. Schedulers, gradient scalers and checkpoints therefore
    work as with any optimizer. `inner` saves and loads its own state. Methods that only `inner` has, such
    as `train` and `eval`, can be called here. Call the step of this optimizer, and no longer the step of
    `inner`.

    Args:
        inner: an instance of a `torch.optim.Optimizer`, learning rate included. Its groups may have
            their own `shadow_effect`, `theta`, `use_shadow` and `shadow_rate`.
        shadow_effect: whether to filter and scale the changes that `inner` makes.
        theta: the filter's threshold on the cube root of the gradient's size, >= 0; 0: no filter.
        keep: which elements the filter keeps, `keep_elements` or `keep_rows_and_columns(eps)`.
        use_shadow: whether to pull the weights back to their shadow (see `blend_with_shadow`).
        shadow_ratio: r(s): "v2.0", "v1.0", or a function from a scalar tensor to a ratio in [0, 1].
        shadow_rate: how far the shadow follows the parameters, in (0, 1].
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: the factor of the difference of the averages, per unit of the loss, >= 0.
        process_group: the processes over which the loss is averaged, so that replicas take the same steps:
            `None` for all processes, `False` for this process alone.
        through_lr: whether a step is scaled by the learning rate of `inner` (`True`) or by moving the
            parameters a part of the way back (`False`). `None`: the check of `inner` decides, and an error
            is raised if neither way is right.

    Attributes:
        inner: the optimizer that moves the parameters.

    Raises:
        TypeError: for an optimizer that is emotional already, an optimizer that calls a closure itself, as
            `torch.optim.LBFGS` does, or an object that is no optimizer.
        ValueError: for an option out of its range, an option name that `inner` also has, or an option of
            the emotion that differs between groups; for an `inner` that keeps track of where it moved the
            parameters, if it does not obey a changed learning rate, or with `use_shadow=True`; for
            an `inner` that estimates its own step length, without `through_lr`.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = emo_torch.Emotional(torch.optim.AdamW([weight], lr=1e-1))
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> print(weight.detach())
        tensor([ 0.8616, -1.8602])

    Source: EmoSens v2.0 by muooon.
    """

    _loss: Tensor | None = None
    _closure: Callable[[], Any] | None = None
    _undo: "list[Callable[[], None]] | None" = None
    _spare: tuple[Tensor, ...] = ()

    def __init__(
        self,
        inner: Optimizer,
        *,
        shadow_effect: bool = True,
        theta: float = 1e-4,
        keep: Keep = keep_elements,
        use_shadow: bool = False,
        shadow_ratio: ShadowRatio = "v2.0",
        shadow_rate: float = 0.05,
        short_factor: float = 0.3,
        long_factor: float = 0.01,
        gain: float = 5.0,
        process_group: LossGroup = None,
        through_lr: bool | None = None,
    ) -> None:
        check_inner(inner)
        if isinstance(inner, EmoOptimizer):
            raise TypeError(f"{type(inner).__name__} is emotional already: use it without Emotional")
        check_shadow_ratio(shadow_ratio)
        check_function("keep", keep)
        check_flag("through_lr", through_lr, may_be_none=True)
        options = {
            "shadow_effect": shadow_effect,
            "theta": theta,
            "use_shadow": use_shadow,
            "shadow_ratio": "function" if callable(shadow_ratio) else shadow_ratio,
            "shadow_rate": shadow_rate,
            "short_factor": short_factor,
            "long_factor": long_factor,
            "gain": gain,
        }
        defaults = getattr(inner, "defaults", {})
        taken = [name for name in options if name in defaults]
        if taken:
            raise ValueError(
                f"{type(inner).__name__} already has an option {taken[0]!r}, and Emotional has an "
                "option of the same name. Emotional cannot tell them apart, so choose another optimizer."
            )
        self.inner = inner
        self._manner = Manner()
        for group in inner.param_groups:
            self.check_options({**options, **group})
            self._check_shared_options({**options, **group}, {**inner.param_groups[0], **options})
        self._manner = manner_of(inner)
        self._through_lr = self._choose_way(through_lr)
        for group in inner.param_groups:
            self.check_options({**options, **group})
        self._options = options
        self._shadow_ratio_of = shadow_ratio if callable(shadow_ratio) else None
        self._keep = keep
        self._replicas = Replicas(process_group)
        self._collected = CollectedLosses()
        # Some have defaults that their groups lack, or private ones that they do not save.
        own = {
            name: value
            for name, value in defaults.items()
            if not name.startswith("_") and all(name in group for group in inner.param_groups)
        }
        # The way in which torch makes an optimizer that has its groups already.
        Optimizer.__setstate__(self, {"defaults": {**own, **options}})
        for group in self.param_groups:
            for name, value in options.items():
                group.setdefault(name, value)
        self._make_memory()

    def _choose_way(self, through_lr: bool | None) -> bool | None:
        """Returns whether steps are scaled through lr; `None`: only if no step waits for a device."""
        name, manner = type(self.inner).__name__, self._manner
        have_rates = all("lr" in group for group in self.inner.param_groups)
        if through_lr and not have_rates:
            raise ValueError(
                f"through_lr=True scales the 'lr' of each group, and a group of {name} has none"
            )
        if through_lr is not None:
            return through_lr
        if manner.estimates:
            raise ValueError(
                f"{name} estimates its own step length ({', '.join(manner.estimates)}). When the emotion "
                f"shortens the steps, {name} raises its estimate, and training can diverge. Choose an "
                "optimizer whose learning rate you set. Or pass through_lr=True with a small gain: the "
                f"emotion then scales the lr of {name}. If {name} has an option safeguard_warmup, set it "
                "to True."
            )
        if self._follows_parameters() and not (manner.obeys_rate and have_rates):
            raise ValueError(
                f"{name} keeps track of where it moved the parameters ({', '.join(manner.follows)}). "
                "A changed lr does not change its next step, so the emotion cannot scale the step "
                f"correctly: the records of {name} would be wrong. Choose another optimizer, or pass "
                "through_lr=False to accept wrong records."
            )
        if self._follows_parameters():
            return True
        return None if manner.is_linear and have_rates else False

    def _follows_parameters(self) -> bool:
        # The average of ASGD is corrected after each step.
        return bool(self._manner.follows) and not isinstance(self.inner, torch.optim.ASGD)

    # The step.

    def step_with(
        self, closure: Callable[[], Any] | None, loss: Tensor | float | None, **extra_losses: Any
    ) -> Tensor | float | None:
        """Takes one step; a step that fails leaves emotion, shadows and learning rates as they were."""
        self._closure, self._undo = closure, None
        try:
            return super().step_with(closure, loss, **extra_losses)
        except BaseException as error:
            undone: list[Callable[[], None]] = self._undo or []
            for undo in reversed(undone):
                undo()
            if undone and self._manner.needs_closure and closure is None:
                error.add_note(
                    f"A step of {type(self.inner).__name__} needs a closure that computes the "
                    "gradients. Call `optimizer.step(closure)` of the Emotional. Emotional calls the "
                    f"closure once for the loss, and {type(self.inner).__name__} calls it again."
                )
            raise
        finally:
            self._closure = self._undo = self._loss = None

    def update_memory(self, loss: Tensor | None, **extra_losses: Any) -> Feeling:
        """Updates the averages with the loss, and keeps the loss for `inner`, which may read it."""
        self._loss = loss
        memory, collected = self._memory.tensors, vars(self._collected).copy()
        put_back = self._copy_memory(memory)

        def undo() -> None:
            put_back()
            vars(self._collected).update(collected)

        self._undo = [undo]
        return super().update_memory(loss, **extra_losses)

    def _copy_memory(self, memory: tuple[Tensor, ...]) -> Callable[[], None]:
        """Copies the memory of the losses; returns a function that restores it."""
        if is_on_cpu(*memory):
            # On the CPU a copy by NumPy takes a part of the time of a call of PyTorch.
            arrays = [tensor.numpy() for tensor in memory]
            copies = [array.copy() for array in arrays]

            def restore() -> None:
                for array, copied in zip(arrays, copies, strict=True):
                    array[...] = copied

            return restore
        if [*map(_place, self._spare)] != [*map(_place, memory)]:
            self._spare = tuple(tensor.clone() for tensor in memory)
        torch._foreach_copy_(self._spare, memory)
        return functools.partial(torch._foreach_copy_, memory, self._spare)

    def keep_of(self, group: Group) -> Keep:  # noqa: ARG002
        """Returns which elements the filter keeps in a group."""
        return self._keep

    def _step_inner(self) -> None:
        if isinstance(self.inner, LossOptimizer):
            self.inner.step(loss=self._loss)
        elif self._manner.needs_closure and self._closure is not None:
            self.inner.step(torch.enable_grad()(self._closure))
            self._collected.discard()  # The losses that the closure watched a second time.
        else:
            self.inner.step()

    def _make_missing_state(self) -> None:
        with self._shadows_apart():
            is_made = make_inner_state(self.inner, self._params())
        for group in self.param_groups if is_made else ():
            for param in group["params"] if group["use_shadow"] else ():
                if param.grad is not None:
                    with_shadow(param, self.state)

    def _move(self, feeling: Feeling, seen: list[GroupTensors | None]) -> None:  # noqa: ARG002
        """Lets the inner optimizer move the parameters, and scales and filters the change."""
        moved: list[tuple[Group, list[Tensor]]] = []
        for group in self.param_groups:
            # The change of a parameter that is listed twice is scaled once.
            params = [param for param in dict.fromkeys(group["params"]) if param.grad is not None]
            if group["use_shadow"] and params:
                self._blend(params, group, feeling)
            if group["shadow_effect"] and params:
                moved.append((group, params))
        if self._is_through_rate(moved, feeling):
            self._step_through_rate(moved, feeling)
        else:
            self._step_and_scale(moved, feeling)

    def _is_through_rate(self, moved: list[tuple[Group, list[Tensor]]], feeling: Feeling) -> bool:
        """Returns whether to scale lr: always, never, or only if no number waits for a device."""
        if self._through_lr is not None:
            return self._through_lr
        device = feeling.scalar.device
        if torch.compiler.is_compiling():
            return False
        rates_are_here = all(
            group["lr"].device == device if isinstance(group["lr"], Tensor) else device.type == "cpu"
            for group, _ in moved
        )
        return rates_are_here and all(
            (group["theta"] == 0.0 and self._keep is keep_elements)
            or all(map(_is_cpu, params))
            or all(param.is_cpu or keeps_all(self._keep, param, group["theta"]) for param in params)
            for group, params in moved
        )

    def _step_through_rate(self, moved: list[tuple[Group, list[Tensor]]], feeling: Feeling) -> None:
        """Lets the inner optimizer step with a part of its learning rate, and restores stopped elements."""
        resting: list[Resting] = []
        for group, params in moved:
            resting += find_resting(params, self._keep, group["theta"], feeling.scalar)
        names = {name.split(".", 1)[1] for name in self._manner.follows} if resting else set()
        beside = RestingBeside(resting, names, self.state)
        with self._shadows_apart(), scaled_rate([group for group, _ in moved], feeling.scalar):
            self._step_inner()
        put_back(resting)
        beside.put_back(self.state)

    def _step_and_scale(self, moved: list[tuple[Group, list[Tensor]]], feeling: Feeling) -> None:
        """Lets the inner optimizer take its whole step, and moves the parameters a part of the way back."""
        ways = []
        for group, params in moved:
            befores = [param.clone() for param in params]
            kept = which_move(params, self._keep, group["theta"], feeling.scalar)
            ways.append((params, befores, kept, use_foreach(params, group)))
        averages = None
        if isinstance(self.inner, torch.optim.ASGD):
            averages = Averages.before([param for _, params in moved for param in params], self.state)
        with self._shadows_apart():
            self._step_inner()
        if averages is not None:
            averages.stepped()
        scale = step_scale(feeling.scalar)
        for params, befores, kept, foreach in ways:
            scale_change(params, befores, scale, kept=kept, foreach=foreach)
        if averages is not None:
            averages.correct(self.state)

    def _blend(self, params: list[Tensor], group: Group, feeling: Feeling) -> None:
        """Pulls parameters of a group to their shadows."""
        states = [with_shadow(param, self.state) for param in params]
        assert self._undo is not None
        self._undo.append(Copies.of(params, states).put_back)
        rate, foreach = group["shadow_rate"], use_foreach(params, group)
        blend(params, states, feeling.shadow_ratio, shadow_rate=rate, foreach=foreach)

    # Options.

    def check_options(self, options: Group) -> None:
        """Raises a `ValueError` for an option of a group that is out of its range."""
        check_flag("shadow_effect", options["shadow_effect"])
        check_flag("use_shadow", options["use_shadow"])
        check_not_negative("theta", options["theta"])
        check_factor("shadow_rate", options["shadow_rate"])
        check_factor("short_factor", options["short_factor"])
        check_factor("long_factor", options["long_factor"])
        check_not_negative("gain", options["gain"])
        if options["use_shadow"] and self._follows_parameters():
            raise ValueError(
                f"{type(self.inner).__name__} keeps track of where it moved the parameters "
                f"({', '.join(self._manner.follows)}). use_shadow=True would move the parameters between "
                "two steps, so its records would be wrong. Pass use_shadow=False"
            )

    def __getstate__(self) -> dict[str, Any]:
        names = ("defaults", "inner", "_options", "_keep", "_shadow_ratio_of", "_replicas", "_manner")
        return {name: self.__dict__[name] for name in (*names, "_through_lr")}


_is_cpu = attrgetter("is_cpu")


def _place(tensor: Tensor) -> tuple[torch.device, torch.dtype]:
    return tensor.device, tensor.dtype
