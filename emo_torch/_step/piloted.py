"""The base of members that EmoPilot's scalars steer: a step whose direction is the rule of the recipe."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from collections.abc import Iterator
from typing import Any

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
    check_peak,
    check_ways,
)
from emo_torch._kernels.plan import GroupTensors
from emo_torch._pieces.averaged_weights import check_average
from emo_torch._pieces.ceiling import LEAST_CEILING, step_ceiling
from emo_torch._pieces.emotion import is_on_cpu, wide_dtype
from emo_torch._pieces.pilot import PilotState, steer, with_agreement
from emo_torch._pieces.pilot_in_place import PilotArrays
from emo_torch._pieces.replicas import LossGroup
from emo_torch._pieces.rounding import add_rounded, check_rounding, is_narrow, rounding_keys
from emo_torch._pieces.weight_decay import MODES
from emo_torch._rules.recipe import Group, State
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

_AVERAGES = ("average", "trained")
"""The names of the averaged weights, and of the trained weights in eval mode, in a parameter's state."""


class PilotedOptimizer(SteeredOptimizer):
    """The base of `EmoPilot` and `EmoPilotAiry`: all of a step but the direction, which the recipe has.

    Args:
        params: the parameters, or groups of parameters with their own options.
        options: the options of the member by name.
        process_group: the processes over which the loss is averaged; `None` for all, `False` for none.
    """

    shared_options = ("maximize", "min_courage", "max_courage", "gate_limit", "train_mode")

    _arrays: PilotArrays | None = None

    def __init__(self, params: ParamsT, options: Group, *, process_group: LossGroup = None) -> None:
        defaults = {**options, "train_mode": True, "peak_lr": 0.0}
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
        check_peak(options["peak_lr"])
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state; a state without a pilot, such as AdamW's, leaves scalars and averages as they are.

        Args:
            state_dict: the result of `state_dict()`; it is not changed.

        Raises:
            ValueError: before anything is changed, if the state is another kind of optimizer's, has other
                shapes, or lacks a part of the scalars.
        """
        kept = {
            param: {name: state[name] for name in _AVERAGES if name in state}
            for param, state in self.state.items()
        }
        super().load_state_dict(state_dict)
        if not any("train_mode" in group for group in state_dict["param_groups"]):
            for param, own in kept.items():
                self.state[param] = {**own, **self.state.get(param, {})}

    def _check_state_dict(self, loaded: dict[str, Any]) -> None:
        super()._check_state_dict(loaded)
        for param, saved in self._saved_params(loaded):
            for name in _AVERAGES:
                if name in saved:
                    check_average(name, saved[name], param)

    # The step.

    def _move(self, loss: Tensor, seen: Any) -> None:
        """Updates the scalars with the loss and all gradients, then every parameter that has a gradient."""
        before, first = self._pilot, self.param_groups[0]
        batches = list(self._batches(seen))
        rates = [scheduled(group) for group in self.param_groups]
        if are_numbers(batches, rates) and is_on_cpu(loss, before.norm):
            if self._arrays is None or not self._arrays.fits(before):
                self._arrays = PilotArrays(before)
            move_by_numbers(self._arrays, loss.item(), batches, rates, first)
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
            loss,
            total[0],
            limit=first["gate_limit"],
            min_courage=first["min_courage"],
            max_courage=first["max_courage"],
            learning_rate=largest([peak for _, peak in rates]),
        )
        self._keep_peaks(rates)
        for group in self.param_groups:
            if isinstance(group["lr"], Tensor):
                is_finite = is_finite & group["lr"].isfinite().reshape(()).to(is_finite.device)
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
        before, (rule,) = 0, self.recipe.rules
        for number, group in enumerate(self.param_groups):
            params, grads, states = seen[number] or self._collect(group)
            for state, param in zip(states, params, strict=True):
                if not group["average"]:
                    state.pop("average", None)  # An old average must not come back in eval mode.
                elif "average" not in state:
                    state.update(self._missing_state(param, group, state))
            if params and rule.kernel is not None and use_fused(params, group):
                found = GroupTensors(params, grads, states)
                memory = self._step_memory
                steps = self.step_count() + 1
                compiled, found = take_compiled(
                    memory, self.state, rule.name, number, group, found, before=before, steps=steps
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
                    rule,
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
