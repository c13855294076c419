"""RefAdamWMiniScheduleFree: AdamW that adds the parameters to its momentum in the middle of a run."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from emo_torch._checks.validation import (
    check_at_most_one,
    check_choice,
    check_decay_rates,
    check_factor,
    check_learning_rate,
    check_max_steps,
    check_moment_dtype,
    check_not_negative,
    check_order,
    check_ways,
)
from emo_torch._members.options import options_of
from emo_torch._pieces.divergence import DivergenceState, init_divergence, update_divergence
from emo_torch._pieces.replicas import LossGroup
from emo_torch._pieces.rounding import Rounding, check_rounding
from emo_torch._pieces.weight_decay import MODES, WeightDecayMode
from emo_torch._rules.family_rules import REF
from emo_torch._rules.recipe import Group, Recipe, State
from emo_torch._step.hooks import with_hooks
from emo_torch._step.loss_optimizer import LossOptimizer
from emo_torch._step.ref_ways import WAYS


class RefAdamWMiniScheduleFree(LossOptimizer):
    r"""Steps by Adam's moments, with a learning rate for each tensor, and adds parameters to the momentum.

    .. math::
        m &\leftarrow b_1 m + (1-b_1)\,g, \quad v \leftarrow b_2 v + (1-b_2)\,g^2, \quad
        e \leftarrow (1-A)\,e + A\,\lVert g \rVert_2 \\
        \eta' &= \max(\min(\eta_{max}, \frac{\eta\,e}{\lVert g \rVert_2 + 10^{-12}}), \eta_{min}) \\
        p &\leftarrow p - \eta'\,wd\,p - \eta'\,[\,v > 0\,]\,\frac{m}{\sqrt{v} + \epsilon} \\
        m &\leftarrow (1-a)\,m + a\,\operatorname{clip}(p, -c\sqrt{v}, c\sqrt{v})

    The last line, the injection, takes place if a loss is given, at 0.2 to 0.8 of the run, and if the
    validation losses show no overfitting; a is `ref_alpha`, and larger while a loss diverges (see
    `update_divergence` and `injection_strength`). There is no emotion; `divergence` shows the averages of
    the losses.

    The published code has no bound c on the injection (`injection_bound=None`): where the gradient, and so
    v, is small, the injected parameter is many times larger than a gradient, and real networks become NaN
    within some steps. With c = 0.1 the injection adds at most as much as one gradient of usual size adds,
    :math:`(1 - b_1) \sqrt{v}`.

    A tensor whose gradient has no finite norm is skipped: its parameters, moments and smoothed norm stay.
    Losses that are not finite count as missing.

    Args:
        params: the parameters, or groups of parameters with their own options.
        lr: eta, a number >= 0 or a tensor of one element; 0, too, is raised to `min_lr`.
        betas: decay rates of the first and the second moment, each in [0, 1).
        eps: the number added to the root, >= 0.
        weight_decay: wd, >= 0.
        min_lr: the least learning rate of a tensor, >= 0.
        max_lr: the largest learning rate of a tensor, >= `min_lr`.
        schedulefree_alpha: A, the weight of a new norm in the smoothed one, in (0, 1].
        ref_alpha: a while no loss diverges, in [0, 1].
        ref_max_steps: the length of the run in steps, a whole number >= 1; `None` if it is not known: then
            every step with a loss injects, and the injection pulls the weights towards 0 until the end of
            the run.
        injection_bound: c, >= 0; `None` for no bound, as published.
        weight_decay_mode: "decoupled" (p - eta' wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the moments' floating-point dtype, such as float16 or bfloat16, in which they are
            coarse; `None` for the parameters' dtype, float32 at least.
        rounding: how a step is rounded into parameters below float32: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        maximize: whether to maximize the loss; the signs of the given losses are turned, too.
        foreach: whether to step with all tensors at once; `None` for the choice of torch.optim.
        capturable: whether a step may become part of a CUDA graph; the loss is a tensor then.
        fused: whether to step in compiled code, which takes dense tensors of float32, float64, bfloat16
            and float16 on the CPU; `None`: yes, if possible and if `foreach` is `None`.
        process_group: the processes over which the loss is averaged, so that replicas take the same steps:
            `None` for all processes, `False` for this process alone.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = emo_torch.RefAdamWMiniScheduleFree(model.parameters(), lr=1e-2)
        >>> losses = []
        >>> for _ in range(30):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(1, 2)).square().mean()
        ...     loss.backward()
        ...     losses.append(optimizer.step(loss=loss).item())
        >>> losses[-1] < losses[0], int(optimizer.divergence.steps)
        (True, 30)

    Source: RefAdamWMiniScheduleFree by muooon.
    """

    recipe = Recipe((REF,), filter=None, title="ref_adamw_mini_schedule_free")
    loss_is_optional = True
    memory_title = "divergence"
    shared_options = ("ref_max_steps", "maximize")

    _divergence: DivergenceState

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        min_lr: float = 1e-6,
        max_lr: float = 1e-2,
        schedulefree_alpha: float = 0.05,
        ref_alpha: float = 0.5,
        ref_max_steps: int | None = None,
        injection_bound: float | None = 0.1,
        weight_decay_mode: WeightDecayMode = "decoupled",
        moment_dtype: torch.dtype | None = None,
        rounding: Rounding = "nearest",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        process_group: LossGroup = None,
    ) -> None:
        super().__init__(params, options_of(locals()), process_group=process_group)

    def check_options(self, options: Group) -> None:
        """Raises a `ValueError` for an option of a group that is out of its range."""
        check_learning_rate(options["lr"])
        check_decay_rates(options["betas"])
        check_not_negative("epsilon", options["eps"])
        check_not_negative("weight_decay", options["weight_decay"])
        check_not_negative("min_lr", options["min_lr"])
        check_not_negative("max_lr", options["max_lr"])
        check_order("min_lr", options["min_lr"], "max_lr", options["max_lr"])
        check_factor("schedulefree_alpha", options["schedulefree_alpha"])
        check_at_most_one("ref_alpha", options["ref_alpha"])
        check_max_steps(options["ref_max_steps"])
        if options["injection_bound"] is not None:
            check_not_negative("injection_bound", options["injection_bound"])
        check_choice("weight_decay_mode", options["weight_decay_mode"], MODES)
        check_ways(options)
        check_moment_dtype(options["moment_dtype"])
        check_rounding(options)

    @with_hooks
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Tensor | float | None] | None = None,
        *,
        loss: Tensor | float | None = None,
        val_loss: Tensor | float | None = None,
    ) -> Tensor | float | None:
        """Takes one step; a step without a loss injects no parameters.

        Without a loss and with an lr of 0 in every group, a step makes missing state and changes nothing.

        Args:
            closure: computes the gradients and returns the loss, or nothing; runs with gradients
                enabled.
            loss: the loss at the parameters at which the gradients were taken, a tensor of one element
                or a number; with a closure, this loss counts, and not the result of the closure.
            val_loss: the loss on validation data, a tensor of one element or a number; each one is checked
                for overfitting.

        Returns:
            The result of the closure, or else the loss.

        Raises:
            TypeError: for a loss that is not a real number, or a closure that is no function.
            ValueError: for a loss that is not a scalar.
            RuntimeError: for sparse gradients and complex parameters.
        """
        return self.step_with(closure, loss, val_loss=val_loss)

    # The losses.

    @property
    def divergence(self) -> DivergenceState:
        """The statistics of the losses, in new tensors; no sync with the device."""
        return DivergenceState(*(tensor.clone() for tensor in self._divergence))

    def update_memory(self, loss: Tensor | None, **extra_losses: Any) -> DivergenceState:
        """Updates the statistics with the losses of a step, and returns them."""
        group = self.param_groups[0]
        losses = [loss, extra_losses["val_loss"]]
        if group["maximize"]:
            losses = [None if each is None else -each for each in losses]
        watched = update_divergence(self._divergence, *losses, ref_max_steps=group["ref_max_steps"])
        for tensor, new in zip(self._divergence, watched, strict=True):
            tensor.copy_(new)  # In place: the groups, and captured graphs, hold these tensors.
        return self._divergence

    def first_memory(self) -> tuple[Tensor, ...]:
        """Returns the statistics of the losses before the first loss."""
        return init_divergence(torch.float32)

    def bind_memory(self, memory: tuple[Tensor, ...]) -> State:
        """Takes tensors to remember in, and returns them, flat, by the names that groups know them by."""
        self._divergence = DivergenceState(*memory)
        return {f"divergence_{name}": tensor for name, tensor in self._divergence._asdict().items()}

    def memory_from_group(self, group: Group) -> tuple[Tensor, ...]:
        """Returns the tensors of the memory from a group that came out of a file or a copy."""
        return tuple(torch.as_tensor(group[name]) for name in self.memory_names())

    def step_count(self) -> Tensor:
        """Returns the number of steps, the current step included, as a tensor of shape `[]`."""
        return self._divergence.steps

    def memory_names(self) -> tuple[str, ...]:
        """Returns the names that groups know the memory by."""
        return tuple(f"divergence_{name}" for name in DivergenceState._fields)

    def named_memory(self) -> State:
        """Returns the tensors of the memory by the names that the bridge to `emo_optax` gives them."""
        return {f"divergence/{name}": tensor for name, tensor in self._divergence._asdict().items()}

    # The rule.

    def step_tensors(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[State],
        *,
        feeling: DivergenceState,
        group: Group,
    ) -> list[int]:
        """Moves the parameters of a group that have a gradient."""
        return WAYS.step(params, grads, states, divergence=feeling, group=group)
