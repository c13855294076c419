"""EmoPilot: Adam's direction, with a step length that the losses and gradients steer."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from collections.abc import Iterator
from typing import Any, Literal

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
    check_ways,
)
from emo_torch._kernels.plan import GroupTensors
from emo_torch._pieces.ceiling import LEAST_CEILING, step_ceiling
from emo_torch._pieces.emotion import is_on_cpu, wide_dtype
from emo_torch._pieces.pilot import PilotState, steer, with_agreement
from emo_torch._pieces.pilot_in_place import PilotArrays
from emo_torch._pieces.replicas import LossGroup
from emo_torch._pieces.rounding import add_rounded, check_rounding, is_narrow, rounding_keys
from emo_torch._pieces.weight_decay import MODES
from emo_torch._rules.family_rules import PILOT
from emo_torch._rules.recipe import Group, Recipe, State
from emo_torch._sharded import mesh_of
from emo_torch._step.pilot_compiled import (
    CompiledBatch,
    are_numbers,
    measure_all,
    move_by_numbers,
    step_batch,
    take_compiled,
)
from emo_torch._step.pilot_ways import Batch, batch_of, largest, scheduled
from emo_torch._step.steered import SteeredOptimizer
from emo_torch._step.ways import use_foreach, use_fused


class EmoPilot(SteeredOptimizer):
    r"""Steps in Adam's direction, with a step length that the losses and the gradients steer.

    .. math::
        g &\leftarrow g\,\min(1,\, 2.5\,N / \lVert g \rVert) \\
        k &\leftarrow \text{courage}(k, a, s), \qquad
            a \leftarrow \frac{\langle g,\, m_{prev} \rangle}{\lVert g \rVert\,\lVert m_{prev} \rVert} \\
        u &= \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon} \\
        p &\leftarrow p - \eta_p\,(u + wd\,p), \qquad
            \eta_p = k\,\min\bigl(\eta,\, 0.08\,\min(0.1, \max(0.02, \mathrm{RMS}(p)))\bigr) \\
        A &\leftarrow A + \min\bigl(1,\, \tfrac{9}{t+8}\bigr)\,(p - A)

    N is the running average of the gradient's norm (see `gate`), s the scale-free emotion (see
    `feel_relative`), k the courage (see `move_courage`), a the agreement, which moves the courage of the
    next step, RMS the root of the mean square of one parameter. Train on p; `eval()` puts A into the
    parameters, `train()` takes A out again. A step whose loss or gradient is not finite is skipped: nothing
    moves, and no state changes.

    The learning rate is a start, not a tuned value: a warm-up brings a smaller one to the usual step
    within about 20 steps (see `move_courage`), unless `max_courage` forbids it. A schedule multiplies the
    step by its learning rate over its largest learning rate so far; the results are best without a
    schedule.

    Change weights between two steps in place under `torch.no_grad()`, as `torch.nn.init` does. A write to a
    part of a parameter through `param.data` or NumPy can reach RMS(p) one step late in compiled code.

    Args:
        params: the parameters, or groups of parameters with their own options.
        lr: eta, a number >= 0 or a tensor of one element.
        betas: decay rates of the first and the second moment, each in [0, 1).
        eps: added to the root, >= 0.
        weight_decay: wd, >= 0.
        min_courage: the least courage, >= 0.
        max_courage: the largest courage, >= `min_courage`; with 1 (for fine-tuning) no step is longer than
            the learning rate, and there is no warm-up.
        gate_limit: how many times its running average the norm of a gradient may be, >= 0.
        average: whether to keep the averaged weights A; without them the state is a third smaller.
        weight_decay_mode: "decoupled" (p - eta_p wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the floating-point dtype of the moments; `None` for the parameters' dtype, float32 at
            least.
        rounding: how a step is rounded into parameters below float32: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        maximize: whether to maximize the loss; the sign of the given loss is turned, too.
        foreach: whether to step with all tensors at once; `None` for the choice of torch.optim.
        capturable: whether a step may become part of a CUDA graph; the loss is a tensor then.
        fused: whether to step in compiled code, which takes dense tensors on the CPU; `None`: yes, if
            possible and if `foreach` is `None`.
        process_group: the processes over which the loss is averaged, so that replicas take the same steps:
            `None` for all processes, `False` for this process alone.

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

    recipe = Recipe((PILOT,), filter=None)
    shared_options = ("maximize", "min_courage", "max_courage", "gate_limit", "train_mode")

    _arrays: PilotArrays | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        min_courage: float = 0.03,
        max_courage: float = 1000.0,
        gate_limit: float = 2.5,
        average: bool = True,
        weight_decay_mode: Literal["decoupled", "absolute", "l2"] = "decoupled",
        moment_dtype: torch.dtype | None = None,
        rounding: Literal["nearest", "kahan", "stochastic"] = "nearest",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
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
            "fused": fused,
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
        for name in ("average", "train_mode"):
            check_flag(name, options[name])
        check_ways(options)
        check_moment_dtype(options["moment_dtype"])
        check_rounding(options)

    def update_memory(self, loss: Tensor | None, **extra_losses: Any) -> Tensor:
        """Returns the loss to minimize; the scalars are updated later in the step, with the gradients."""
        del extra_losses
        assert loss is not None
        return -loss if self.param_groups[0]["maximize"] else loss

    # The state.

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

    def _move(self, feeling: Tensor, seen: Any) -> None:
        """Updates the scalars with the loss and all gradients, then every parameter that has a gradient."""
        before, first = self._pilot, self.param_groups[0]
        batches = list(self._batches(seen))
        rates = [scheduled(group) for group in self.param_groups]
        if are_numbers(batches, rates) and is_on_cpu(feeling, before.norm):
            if self._arrays is None or not self._arrays.fits(before):
                self._arrays = PilotArrays(before)
            move_by_numbers(self._arrays, feeling.item(), batches, rates, first)
            self._keep_peaks(rates)
            return
        total = torch.zeros(3, dtype=before.norm.dtype, device=before.norm.device)
        # The ceiling needs the sizes of the weights only if it can be below the learning rate.
        weighs = [isinstance(peak, Tensor) or peak > LEAST_CEILING for _, peak in rates]
        measured, mean_squares = measure_all(
            [batch for _, batch in batches], [weighs[number] for number, _ in batches]
        )
        for each in measured:
            total = total + each.to(total)
        pilot, is_finite = steer(
            before,
            feeling,
            total[0],
            limit=first["gate_limit"],
            min_courage=first["min_courage"],
            max_courage=first["max_courage"],
            learning_rate=largest([peak for _, peak in rates]),
        )
        self._keep_peaks(rates)
        lengths, bounds = [], []
        for (number, batch), squares in zip(batches, mean_squares, strict=True):
            share, peak = rates[number]
            ceiling = step_ceiling(squares)
            if isinstance(share, Tensor):
                share, peak = share.to(ceiling), torch.as_tensor(peak).to(ceiling)
            # Through no tensor of the default dtype, which would round the number to float32.
            limited = torch.minimum(ceiling, peak) if isinstance(peak, Tensor) else ceiling.clamp(max=peak)
            length = pilot.courage.to(ceiling) * share * limited
            lengths.append(length)
            bounds.append(ceiling < peak)
            products = step_batch(batch, length, pilot, is_finite)
            if products is not None:
                total = total + products.to(total)
            if isinstance(batch, Batch):
                self._round(batch)
        pilot = with_agreement(pilot, total)
        if lengths:
            device = before.norm.device
            longest = torch.stack([length.max().to(device) for length in lengths]).max().to(before.longest)
            bound = torch.cat([each.to(device) for each in bounds]).to(before.bound).mean()
            pilot = pilot._replace(longest=longest, bound=bound)
        skipped = before.skipped + (~is_finite)
        for name, new, old in zip(PilotState._fields, pilot, before, strict=True):
            # In place: the groups, and captured graphs, hold these tensors.
            old.copy_(skipped if name == "skipped" else torch.where(is_finite, new.to(old), old))

    def _keep_peaks(self, rates: list[tuple[float | Tensor, float | Tensor]]) -> None:
        """Stores the largest learning rate of each group."""
        for group, (_, peak) in zip(self.param_groups, rates, strict=True):
            group["peak_lr"] = peak

    def _batches(self, seen: list[GroupTensors | None]) -> Iterator[tuple[int, Batch | CompiledBatch]]:
        """Yields the number of a group and a batch: parameters of the group that are moved together."""
        before = 0
        for number, group in enumerate(self.param_groups):
            params, grads, states = seen[number] or self._collect(group)
            for state, param in zip(states, params, strict=True) if group["average"] else ():
                if "average" not in state:
                    state.update(self._missing_state(param, group, state))
            if params and use_fused(params, group):
                found = GroupTensors(params, grads, states)
                memory = self._step_memory
                steps = self.step_count() + 1
                compiled, found = take_compiled(
                    memory, self.state, number, group, found, before=before, steps=steps
                )
                yield from ((number, batch) for batch in compiled)
                params, grads, states = found
            buckets: dict[Any, list[int]] = {}
            is_multi = len(params) > 0 and use_foreach(params, group)
            for index, param in enumerate(params):
                placements = getattr(param, "placements", None)
                key = (param.device, param.dtype, mesh_of(param), placements, None if is_multi else index)
                buckets.setdefault(key, []).append(index)
            for indices in buckets.values():
                batch = batch_of(
                    group,
                    [params[index] for index in indices],
                    [grads[index] for index in indices],
                    [states[index] for index in indices],
                )
                yield number, batch
            before += len(group["params"])

    def _round(self, batch: Batch) -> None:
        """Rounds computed values into parameters of a lower precision."""
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

    def _round_into(self, batch: Batch, places: list[int], count: int) -> None:
        updates = [w.sub_(p) for w, p in zip(batch.weights, batch.params, strict=True)]
        if batch.group["rounding"] == "kahan":
            extras = [state["compensation"] for state in batch.states]
        else:
            keys = rounding_keys(self.step_count() + 1, count).unbind()
            extras = [keys[place].to(batch.params[0].device) for place in places]
        foreach = use_foreach(batch.params, batch.group)
        add_rounded(batch.params, updates, extras, rounding=batch.group["rounding"], foreach=foreach)
