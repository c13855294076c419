"""EmoPilot: Adam's direction with a step that finds its own length."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from emo_torch._checks.validation import (
    check_choice,
    check_decay_rates,
    check_flag,
    check_learning_rate,
    check_moment_dtype,
    check_not_negative,
    check_order,
)
from emo_torch._pieces.averaged_weights import average_rate, swap_average, swap_back
from emo_torch._pieces.ceiling import step_ceiling
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.pilot import Pilot, PilotState, describe, init_pilot, steer
from emo_torch._pieces.replicas import LossGroup
from emo_torch._pieces.rounding import add_rounded, check_rounding, is_narrow, rounding_keys
from emo_torch._pieces.weight_decay import MODES
from emo_torch._rules.moments import store
from emo_torch._sharded import mesh_of, own_part, sum_of_parts
from emo_torch._step.loss_optimizer import LossOptimizer
from emo_torch._step.recipe import Group, State
from emo_torch._step.ways import use_foreach

STEP_IN_EVAL_MODE = (
    "The parameters hold the averaged weights, because `optimizer.eval()` was called, and a step on them "
    "would spoil the run. Call `optimizer.train()` before training goes on."
)
"""The error of a step in eval mode."""


class _Batch(NamedTuple):
    """Parameters of one group, device, dtype and placement, as lists of the same length.

    Attributes:
        group: the parameter group.
        params: the parameters.
        states: their states.
        weights: the parameters in the dtype of the computation.
        grads: the gradients in that dtype, pointing uphill, with "l2" decay added.
        firsts: the first moments, in that dtype.
        seconds: the second moments, in that dtype.
        steps: the number of steps that each parameter took, shape `[n]`.
    """

    group: Group
    params: list[Tensor]
    states: list[State]
    weights: list[Tensor]
    grads: list[Tensor]
    firsts: list[Tensor]
    seconds: list[Tensor]
    steps: Tensor


class EmoPilot(LossOptimizer):
    r"""Steps in Adam's direction, with a step length that the losses and the gradients steer.

    .. math::
        g &\leftarrow g\,\min(1,\, 2.5\,N / \lVert g \rVert) \\
        a &= \frac{\langle g,\, u_{prev} \rangle}{\lVert g \rVert\,\lVert u_{prev} \rVert}, \qquad
            k \leftarrow \text{courage}(k, a, s) \\
        u &= \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon} \\
        p &\leftarrow p - \eta_p\,(u + wd\,p), \qquad
            \eta_p = k\,\min\bigl(\eta,\, 0.08\,\min(0.1, \max(0.02, \mathrm{RMS}(p)))\bigr) \\
        A &\leftarrow A + \min\bigl(1,\, \tfrac{9}{t+8}\bigr)\,(p - A)

    N is the running average of the gradient's norm (see `gate`), s the scale-free emotion (see
    `feel_relative`), k the courage (see `move_courage`), RMS the root of the mean square of one
    parameter. Train on p; `eval()` puts A into the parameters, `train()` takes A out again. A step whose
    loss or gradient is not finite is skipped: nothing moves, and no state changes.

    The learning rate is a start, not a tuned value. A schedule multiplies the step by what it leaves of
    its largest learning rate so far; without one the results are best.

    Args:
        params: the parameters, or groups of them, which may have options of their own.
        lr: eta, a number >= 0 or a tensor of one element.
        betas: decay rates of the first and the second moment, each in [0, 1).
        eps: added to the root, >= 0.
        weight_decay: wd, >= 0.
        min_courage: the least courage, >= 0.
        max_courage: the largest courage; 1 for fine-tuning never takes a longer step than the learning
            rate says.
        gate_limit: how many times its running average the norm of a gradient may be, >= 0.
        average: whether to keep the averaged weights A; without them the state is a third smaller.
        weight_decay_mode: "decoupled" (p - eta_p wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the floating-point dtype of the moments; `None` for that of the parameters, float32
            at least.
        rounding: how parameters below float32 take on a step: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        maximize: whether to go up instead of down; the loss, too, turns its sign.
        foreach: whether to step with all tensors at once; `None` for the choice of torch.optim.
        capturable: whether a step may become part of a CUDA graph; the loss is a tensor then.
        process_group: the processes over which the loss is averaged, so that replicas step alike:
            `None` for all of them, `False` for this one alone.

    Raises:
        ValueError: for a hyperparameter out of its range.
        RuntimeError: from `step`, in eval mode.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = emo_torch.EmoPilot(model.parameters())
        >>> losses = []
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     losses.append(optimizer.step(loss=loss).item())
        >>> losses[-1] < 0.1 * losses[0]
        True
        >>> optimizer.eval()  # The model now holds the averaged weights.
        >>> optimizer.train()

    Source: ours; nearest published: MoMo (arXiv 2305.07583), hypergradient descent (Baydin et al., 2018).
    """

    rule = "pilot"
    has_cuda_kernel = False
    memory_title = "pilot"
    shared_options = ("maximize", "min_courage", "max_courage", "gate_limit", "train_mode")

    _pilot: PilotState

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        min_courage: float = 0.03,
        max_courage: float = 100.0,
        gate_limit: float = 2.5,
        average: bool = True,
        weight_decay_mode: Literal["decoupled", "absolute", "l2"] = "decoupled",
        moment_dtype: torch.dtype | None = None,
        rounding: Literal["nearest", "kahan", "stochastic"] = "nearest",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        process_group: LossGroup = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "weight_decay_mode": weight_decay_mode,
            "min_courage": min_courage,
            "max_courage": max_courage,
            "gate_limit": gate_limit,
            "average": average,
            "moment_dtype": moment_dtype,
            "rounding": rounding,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "train_mode": True,
            "peak_lr": 0.0,
        }
        super().__init__(params, defaults, process_group=process_group)

    def check_options(self, options: Group) -> None:
        """Raises an error for an option of a group that is out of its range."""
        check_learning_rate(options["lr"])
        check_decay_rates(options["betas"])
        check_not_negative("epsilon", options["eps"])
        check_not_negative("weight_decay", options["weight_decay"])
        for name in ("min_courage", "max_courage", "gate_limit"):
            check_not_negative(name, options[name])
        check_order("min_courage", options["min_courage"], "max_courage", options["max_courage"])
        check_choice("weight_decay_mode", options["weight_decay_mode"], MODES)
        for name in ("average", "maximize", "capturable", "train_mode"):
            check_flag(name, options[name])
        check_flag("foreach", options["foreach"], may_be_none=True)
        check_moment_dtype(options["moment_dtype"])
        check_rounding(options)

    # Averaged weights.

    @torch.no_grad()
    def eval(self) -> None:
        """Puts the averaged weights into the parameters, to evaluate, save or export the model.

        Nothing happens where the parameters hold the averaged weights already. A checkpoint that is made
        in eval mode resumes in eval mode.
        """
        self._set_mode(is_training=False)

    @torch.no_grad()
    def train(self) -> None:
        """Takes the averaged weights out of the parameters again, to go on with the training.

        Nothing happens in train mode, which is the mode of a new optimizer.
        """
        self._set_mode(is_training=True)

    def _set_mode(self, *, is_training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not is_training:
                for param in group["params"]:
                    state = self.state.get(param, {})
                    if "average" in state:
                        (swap_back if is_training else swap_average)(param, state)
                group["train_mode"] = is_training

    # The scalars.

    @property
    def pilot(self) -> Pilot:
        """The scalars as they are now, in tensors of their own; no sync with the device."""
        return describe(self._pilot)

    def first_memory(self) -> tuple[Tensor, ...]:
        """Returns the scalars before any loss."""
        return init_pilot(torch.float32)

    def hold_memory(self, memory: tuple[Tensor, ...]) -> State:
        """Takes tensors to keep the scalars in, and returns them by the names that groups know them by."""
        self._pilot = PilotState(*memory)
        return {f"pilot_{name}": tensor for name, tensor in self._pilot._asdict().items()}

    def memory_of(self, group: Group) -> tuple[Tensor, ...]:
        """Returns the scalars, from a group that came out of a file or a copy."""
        return tuple(torch.as_tensor(group[name]) for name in self.memory_names())

    def memory_names(self) -> tuple[str, ...]:
        """Returns the names that groups know the scalars by."""
        return tuple(f"pilot_{name}" for name in PilotState._fields)

    def named_memory(self) -> State:
        """Returns the scalars by the names that the bridge to `emo_optax` gives them."""
        return {f"pilot/{name}": tensor for name, tensor in self._pilot._asdict().items()}

    def step_count(self) -> Tensor:
        """Returns how many steps were taken or skipped, as a tensor of shape `[]`."""
        return self._pilot.step + self._pilot.skipped

    def take_in(self, loss: Tensor | None, **beside: Any) -> Tensor:
        """Returns the loss, downhill: the scalars move with the gradients, later in the step."""
        del beside
        assert loss is not None
        return -loss if self.param_groups[0]["maximize"] else loss

    # The state.

    def moment_names(self, param: Tensor) -> tuple[str, ...]:
        """Returns the names of the moments of a parameter."""
        del param
        return ("exp_avg", "exp_avg_sq", "step")

    def init_moments(self, param: Tensor, dtype: torch.dtype) -> State:
        """Returns the moments of a parameter that has seen no gradient."""
        return {
            "exp_avg": torch.zeros_like(param, dtype=dtype),
            "exp_avg_sq": torch.zeros_like(param, dtype=dtype),
            "step": torch.zeros((), dtype=torch.float32, device=param.device),
        }

    def _missing_state(self, param: Tensor, group: Group, state: State) -> State:
        made = super()._missing_state(param, group, state)
        if group["average"] and "average" not in state:
            made["average"] = param.detach().to(wide_dtype(param), copy=True)
        return made

    def _check_state_dict(self, loaded: dict[str, Any]) -> None:
        super()._check_state_dict(loaded)
        for param, saved in self._saved_params(loaded):
            for name in ("average", "trained"):
                if name in saved and getattr(saved[name], "shape", None) != param.shape:
                    raise ValueError(
                        f"The state is damaged: {name!r} has another shape than its parameter, "
                        f"{tuple(param.shape)}"
                    )

    # The step.

    def step_with(
        self,
        closure: Callable[[], Tensor | float | None] | None,
        loss: Tensor | float | None,
        **beside: Any,
    ) -> Tensor | float | None:
        """Takes one step; an error in eval mode."""
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(STEP_IN_EVAL_MODE)
        return super().step_with(closure, loss, **beside)

    def _move(self, feeling: Tensor, seen: Any) -> None:
        """Moves the scalars by the loss and all gradients, then every parameter that has a gradient."""
        del seen
        before = self._pilot
        batches = list(self._batches())
        total = torch.zeros(3, dtype=before.norm.dtype, device=before.norm.device)
        mean_squares = []
        for batch in batches:
            products, squares = _measure(batch)
            total = total + products.to(total)
            mean_squares.append(squares)
        group = self.param_groups[0]
        pilot, is_finite = steer(
            before,
            feeling,
            total,
            limit=group["gate_limit"],
            min_courage=group["min_courage"],
            max_courage=group["max_courage"],
        )
        rates = [_scheduled(group) for group in self.param_groups]
        for group, (_, peak) in zip(self.param_groups, rates, strict=True):
            group["peak_lr"] = peak
        lengths, bounds = [], []
        by_group = {id(group): rate for group, rate in zip(self.param_groups, rates, strict=True)}
        for batch, squares in zip(batches, mean_squares, strict=True):
            share, peak = by_group[id(batch.group)]
            ceiling = step_ceiling(squares)
            if isinstance(share, Tensor):
                share, peak = share.to(ceiling), torch.as_tensor(peak).to(ceiling)
            limited = torch.minimum(ceiling, torch.as_tensor(peak).to(ceiling))
            length = pilot.courage.to(ceiling) * share * limited
            lengths.append(length)
            bounds.append(ceiling < peak)
            _step_batch(batch, length, pilot, is_finite)
            self._round(batch)
        if lengths:
            device = before.norm.device
            longest = torch.stack([length.max().to(device) for length in lengths]).max().to(before.longest)
            bound = torch.cat([each.to(device) for each in bounds]).to(before.bound).mean()
            pilot = pilot._replace(longest=longest, bound=bound)
        skipped = before.skipped + (~is_finite)
        for name, new, old in zip(PilotState._fields, pilot, before, strict=True):
            # In place: the groups, and captured graphs, hold these tensors.
            old.copy_(skipped if name == "skipped" else torch.where(is_finite, new.to(old), old))

    def _batches(self) -> Iterator[_Batch]:
        """Yields the parameters that have a gradient, those that can be moved together in one batch."""
        for group in self.param_groups:
            params, grads, states = self._collect(group)
            for state, param in zip(states, params, strict=True):
                if group["average"] and "average" not in state:
                    state.update(self._missing_state(param, group, state))
            buckets: dict[Any, list[int]] = {}
            is_multi = bool(params) and use_foreach(params, group)
            for index, param in enumerate(params):
                placements = getattr(param, "placements", None)
                key = (param.device, param.dtype, mesh_of(param), placements, None if is_multi else index)
                buckets.setdefault(key, []).append(index)
            for indices in buckets.values():
                yield _batch_of(
                    group,
                    [params[index] for index in indices],
                    [grads[index] for index in indices],
                    [states[index] for index in indices],
                )

    def _round(self, batch: _Batch) -> None:
        """Moves parameters of a low precision to what they became in the dtype of the computation."""
        first = batch.params[0]
        if batch.weights[0] is first:
            return
        if batch.group["rounding"] == "nearest" or not is_narrow(first):
            # Rounded as an update first, then added: the same numbers as optax.apply_updates.
            for param, weight in zip(batch.params, batch.weights, strict=True):
                param.add_((weight - param.to(weight.dtype)).to(param.dtype))
            return
        places, before = {}, 0
        for group in self.param_groups:
            for place, param in enumerate(group["params"], before):
                places[param] = place
            before += len(group["params"])
        self._round_into(batch, [places[param] for param in batch.params], before)

    def _round_into(self, batch: _Batch, places: list[int], count: int) -> None:
        updates = [w.sub_(p) for w, p in zip(batch.weights, batch.params, strict=True)]
        if batch.group["rounding"] == "kahan":
            extras = [state["compensation"] for state in batch.states]
        else:
            keys = rounding_keys(self.step_count() + 1, count).unbind()
            extras = [keys[place].to(batch.params[0].device) for place in places]
        foreach = use_foreach(batch.params, batch.group)
        add_rounded(batch.params, updates, extras, rounding=batch.group["rounding"], foreach=foreach)


def _batch_of(group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> _Batch:
    dtype = wide_dtype(params[0])
    weights = [param.to(dtype) for param in params]
    grads = [grad.to(dtype) for grad in grads]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    if group["weight_decay_mode"] == "l2":
        grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
    return _Batch(
        group,
        params,
        states,
        weights,
        grads,
        [state["exp_avg"].to(dtype) for state in states],
        [state["exp_avg_sq"].to(dtype) for state in states],
        torch.stack([state["step"].to(params[0].device) for state in states]),
    )


def _correction(rate: float, steps: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Returns :math:`1 - b^t`, which taken as it stands loses 5 digits of float32 where b is near 1."""
    exponent = math.inf if rate == 0.0 else -math.log(rate)
    return -torch.expm1(-exponent * steps.to(dtype))


def _direction(firsts: list[Tensor], seconds: list[Tensor], steps: Tensor, group: Group) -> list[Tensor]:
    """Returns Adam's direction of each parameter, with the moments corrected for their start at 0."""
    dtype = firsts[0].dtype
    b1, b2 = group["betas"]
    roots = list(torch._foreach_div(seconds, list(_correction(b2, steps, dtype).unbind())))
    torch._foreach_sqrt_(roots)
    torch._foreach_add_(roots, group["eps"])
    directions = list(torch._foreach_div(firsts, list(_correction(b1, steps, dtype).unbind())))
    torch._foreach_div_(directions, roots)
    return directions


def _measure(batch: _Batch) -> tuple[Tensor, Tensor]:
    """Returns the products of gradients and last directions, and the mean square of each parameter."""
    # Before its first step a parameter has no direction: step 0 would divide 0 by 0.
    last = _direction(batch.firsts, batch.seconds, batch.steps.clamp(min=1.0), batch.group)
    pairs = [
        [own_part(each).flatten() for each in tensors] for tensors in (batch.grads, last, batch.weights)
    ]
    grads, directions, weights = pairs
    sums = [
        torch.stack([torch.dot(a, b) for a, b in zip(left, right, strict=True)])
        for left, right in (
            (grads, grads),
            (grads, directions),
            (directions, directions),
            (weights, weights),
        )
    ]
    summed = sum_of_parts(
        torch.cat([torch.stack([each.sum() for each in sums[:3]]), sums[3]]), batch.params[0]
    )
    counts = torch.tensor([max(param.numel(), 1) for param in batch.params])
    return summed[:3], summed[3:] / counts.to(summed)


def _scheduled(group: Group) -> tuple[float | Tensor, float | Tensor]:
    """Returns the share that a schedule leaves of the largest learning rate so far, and that rate."""
    lr, peak = group["lr"], group["peak_lr"]
    if isinstance(lr, Tensor) or isinstance(peak, Tensor):
        lr = torch.as_tensor(lr).reshape(())
        peak = torch.maximum(lr, torch.as_tensor(peak, dtype=lr.dtype, device=lr.device))
        return torch.where(peak > 0.0, lr / torch.where(peak > 0.0, peak, 1.0), 0.0), peak
    peak = max(float(lr), float(peak))
    return (float(lr) / peak if peak > 0.0 else 0.0), peak


def _step_batch(batch: _Batch, lengths: Tensor, pilot: PilotState, is_finite: Tensor) -> None:
    """Moves moments, weights and averages of a batch in the dtype of the computation."""
    group, weights = batch.group, batch.weights
    dtype, device = weights[0].dtype, lengths.device
    b1, b2 = group["betas"]
    finite = is_finite.to(device)
    grads = torch._foreach_mul(batch.grads, pilot.gate.to(device=device, dtype=dtype))
    firsts = list(torch._foreach_lerp(batch.firsts, grads, 1.0 - b1))
    seconds = list(torch._foreach_mul(batch.seconds, b2))
    torch._foreach_addcmul_(seconds, grads, grads, value=1.0 - b2)
    steps = batch.steps + 1.0
    changes = _direction(firsts, seconds, steps, group)
    lengths = lengths.to(dtype)
    torch._foreach_mul_(changes, list(lengths.unbind()))
    if group["weight_decay_mode"] == "decoupled":
        shares = list((lengths * group["weight_decay"]).unbind())
        torch._foreach_add_(changes, torch._foreach_mul(weights, shares))
    if group["weight_decay_mode"] == "absolute":
        torch._foreach_add_(changes, torch._foreach_mul(weights, group["weight_decay"]))
    moved = torch._foreach_sub(weights, changes)
    for index, state in enumerate(batch.states):
        weight, first, second = weights[index], batch.firsts[index], batch.seconds[index]
        store("exp_avg", torch.where(finite, firsts[index], first), state["exp_avg"])
        store("exp_avg_sq", torch.where(finite, seconds[index], second), state["exp_avg_sq"])
        state["step"].copy_(torch.where(finite, steps[index], batch.steps[index]))
        after = torch.where(finite, moved[index], weight)
        if group["average"]:
            average = state["average"]
            rate = average_rate(pilot.step.to(device), average.dtype)
            rate = torch.where(finite, rate, torch.zeros_like(rate))
            average.add_((after.to(average.dtype) - average) * rate)
        if weight is batch.params[index]:
            weight.copy_(after)
        else:
            weights[index] = after
