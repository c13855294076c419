"""After any change between two steps, the compiled way gives the numbers of the readable way.

`python -m emo_torch._kernels.changes_test 2000` tries 2000 sequences of steps and changes; the suite tries
fewer. The sequences run in a process of their own, so that a crash fails the test and not the suite.
"""

import contextlib
import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

import emo_torch
from emo_shared.eight_bit import EIGHT_BIT
from emo_torch import _kernels as _fused
from emo_torch._kernels.changes_layouts_test import (
    GRADIENT_LAYOUTS,
    LAYOUTS,
    NARROW,
    NARROW_BOUND,
    _assert_coded_alike,
    _assert_rounded_alike,
    _bound,
    _random,
)
from emo_torch._members.by_name import MEMBERS
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._step.later_optimizers import NormOptimizer
from emo_torch._testing import COMPILED_MEMBERS, WITHOUT_SHADOW

CASES_IN_THE_SUITE = 100
SHAPES = ((), (7,), (4, 6), (33, 9), (3, 4, 5), (64, 8), (70_000,), (0, 3))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WEIGHT_DECAY = 0.2857
"""With this value, g + wd p is never nearly 0 in low precision; with 0.3 float32's rounding may decide its
sign."""
MODES = ("decoupled", "absolute", "l2")
layouts, indices, seeds = st.sampled_from(sorted(LAYOUTS)), st.integers(0, 5), st.integers(0, 2**31)


class Side:
    """A model with its optimizer, which steps in one of the ways."""

    def __init__(self, name: str, groups: list[list[Tensor]], **options: Any) -> None:
        self.groups = [[torch.nn.Parameter(param.clone()) for param in group] for group in groups]
        given = [{"params": list(group)} for group in self.groups]
        self.optimizer = emo_torch.create_optimizer(name, given, **options)
        self.before: dict[Any, Tensor] = {}
        self.second = emo_torch.EmoLynx(self.params(), lr=1e-3, foreach=options.get("foreach"))

    def params(self) -> list[Any]:
        return [param for group in self.groups for param in group]

    def pick(self, index: int) -> Any:
        return self.params()[index % len(self.params())]

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Replaces a parameter by another one."""
        self.optimizer.state.pop(old, None)
        self.second.state.pop(old, None)
        lists = [*self.groups, *(group["params"] for group in self.optimizer.param_groups)]
        for params in (*lists, self.second.param_groups[0]["params"]):
            params[:] = [new if param is old else param for param in params]

    def values(self) -> list[tuple[Tensor, Any]]:
        """Returns parameters and states, each with its bound."""
        found: list[tuple[Tensor, Any]] = []
        # Sums over all parameters scale each parameter, so that the coarsest dtype decides.
        memory = self.memory_of_sums()
        every = {wide_dtype(param) for param in self.params()} | {tensor.dtype for tensor in memory}
        for param in self.params():
            states = (self.optimizer.state.get(param, {}), self.second.state.get(param, {}))
            values = [param.detach(), *(state[name] for state in states for name in sorted(state))]
            dtypes = every if memory else {wide_dtype(param)}
            bounds: list[Any] = [_bound(value, dtypes) for value in values]
            if param.dtype in NARROW and param in self.before:
                # The update is rounded, too: if terms cancel, its unit is many units of the sum.
                update = (param - self.before[param]).detach().float().abs()
                bounds[0] = update * torch.finfo(param.dtype).eps + NARROW_BOUND
            found += zip(values, bounds, strict=True)
        return found

    def memory_of_sums(self) -> list[Tensor]:
        """Returns memory that depends on sums over all parameters; EmoTion enlarges their last digits."""
        has_sums = isinstance(self.optimizer, NormOptimizer | emo_torch.EmoPilot | emo_torch.EmoPilotAiry)
        return list(self.optimizer.named_memory().values()) if has_sums else []


class Changes(RuleBasedStateMachine):
    """Steps of both ways, and the changes between the steps."""

    @initialize(
        name=st.sampled_from(COMPILED_MEMBERS),
        shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=5),
        dtype=st.sampled_from(DTYPES[:2]),
        use_shadow=st.booleans(),
        is_coded=st.booleans(),
        mode=st.sampled_from(MODES),
        cut=st.integers(0, 4),
        first_steps=st.integers(0, 3),
    )
    def start(
        self,
        name: str,
        shapes: Any,
        dtype: Any,
        use_shadow: bool,
        is_coded: bool,
        mode: str,
        cut: int,
        first_steps: int,
    ) -> None:
        params = [_random(shape, dtype, seed) for seed, shape in enumerate(shapes)]
        groups = [group for group in (params[:cut], params[cut:]) if group]
        options: dict[str, Any] = {"lr": 1e-2, "weight_decay_mode": mode}
        if name not in WITHOUT_SHADOW:
            options["use_shadow"] = use_shadow
        if is_coded and MEMBERS[name].make.recipe.may_be_8bit:
            options["moment_dtype"] = EIGHT_BIT
        self.fast = Side(name, groups, **options)
        self.plain = Side(name, groups, **options, foreach=False, fused=False)
        self.sides = (self.fast, self.plain)
        self.changes = 0
        # Whether a moment was removed; a load may refuse such a state.
        self.has_lost = False
        self.frozen: set[int] = set()
        for seed in range(first_steps):  # Two steps make a plan.
            self.take("optimizer", seed, "contiguous", -1, 1.0 + seed)

    def both(self, change: Callable[[Side], Any]) -> None:
        """Changes both sides, and mostly steps after it: only some changes follow each other directly."""
        for side in self.sides:
            change(side)
        self.changes += 1
        for seed in range(2 if self.changes % 3 else 0):
            self.take("optimizer", self.changes + seed, "contiguous", -1, 1.0 + 0.5 * seed)

    def take(self, which: str, seed: int, layout: str, absent: int, loss: float) -> None:
        """Takes one step on each side, and compares the sides."""

        def step(side: Side) -> None:
            for index, param in enumerate(side.params()):
                grad = _random(param.shape, param.dtype, seed + index)
                is_absent = index == absent or index in self.frozen
                param.grad = None if is_absent else GRADIENT_LAYOUTS[layout](grad)
            side.before = {param: param.detach().clone() for param in side.params()}
            getattr(side, which).step(loss=loss)

        for side in self.sides:
            step(side)
        fast, plain = self.fast.values(), self.plain.values()
        for (one, bound), (other, _) in zip(fast, plain, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            ours, theirs = one.as_subclass(Tensor), other.as_subclass(Tensor)
            if one.dtype in NARROW:
                _assert_rounded_alike(ours, theirs, bound)
            elif one.dtype == torch.uint8:
                _assert_coded_alike(ours, theirs)
            else:
                torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound, equal_nan=True)
            one.copy_(other)  # A difference by rounding must not grow.
        for one, other in zip(*(side.memory_of_sums() for side in self.sides), strict=True):
            one.copy_(other)

    @rule(
        seed=seeds,
        layout=st.sampled_from(sorted(GRADIENT_LAYOUTS)),
        absent=st.integers(-9, 5),
        losses=st.lists(st.sampled_from([1.0, 1.5, 3.0, 0.5, float("nan")]), min_size=1, max_size=4),
    )
    def step(self, seed: int, layout: str, absent: int, losses: list[float]) -> None:
        for index, loss in enumerate(losses):
            self.take("optimizer", seed + index, layout, absent, loss)

    @rule(seed=seeds)
    def step_of_another_optimizer(self, seed: int) -> None:
        self.take("second", seed, "contiguous", -1, 1.0)

    @rule(dtype=st.sampled_from(DTYPES), index=st.integers(-6, 5))
    def cast(self, dtype: torch.dtype, index: int) -> None:
        def change(side: Side) -> None:
            for param in side.params() if index < 0 else [side.pick(index)]:
                param.grad = None
                param.data = param.data.to(dtype)

        self.both(change)

    @rule(index=indices, dtype=st.sampled_from(DTYPES[:2]))
    def swap_tensors(self, index: int, dtype: torch.dtype) -> None:
        def change(side: Side) -> None:
            param = side.pick(index)
            param.grad = None
            torch.utils.swap_tensors(param, torch.nn.Parameter(_random(param.shape, dtype, 5)))

        self.both(change)

    @rule(index=indices, layout=layouts)
    def replace_data(self, index: int, layout: str) -> None:
        def change(side: Side) -> None:
            param = side.pick(index)
            param.data = LAYOUTS[layout](param.detach())

        self.both(change)

    @rule(index=indices, shape=st.sampled_from(SHAPES), seed=seeds)
    def replace_parameter(self, index: int, shape: Any, seed: int) -> None:
        def change(side: Side) -> None:
            side.replace(side.pick(index), torch.nn.Parameter(_random(shape, torch.float32, seed)))

        self.both(change)

    @rule(index=indices, shape=st.sampled_from(SHAPES), seed=seeds)
    def resize(self, index: int, shape: Any, seed: int) -> None:
        def change(side: Side) -> None:
            param = side.pick(index)
            param.grad = None
            param.data = _random(shape, param.dtype, seed)
            side.optimizer.state.pop(param, None)
            side.second.state.pop(param, None)

        self.both(change)

    @rule(index=indices)
    def freeze_or_unfreeze(self, index: int) -> None:
        self.frozen ^= {index % len(self.fast.params())}
        self.both(lambda side: side.pick(index).requires_grad_(not side.pick(index).requires_grad))

    @rule(index=indices, other=indices, skip=st.integers(0, 2))
    def share_storage(self, index: int, other: int, skip: int) -> None:
        def change(side: Side) -> None:
            one, two = side.pick(index), side.pick(other)
            if one.dtype == two.dtype and 0 < one.numel() <= two.numel() - skip and two.is_contiguous():
                one.data = two.data.view(-1)[skip : skip + one.numel()].view(one.shape)

        self.both(change)

    @precondition(lambda self: self.fast.optimizer.state)
    @rule(
        index=indices,
        place=indices,
        layout=st.sampled_from(
            [*sorted(LAYOUTS), "of another type", *map(str, DTYPES), "in place", "lost"]
        ),
    )
    def change_a_moment(self, index: int, place: int, layout: str) -> None:
        def change(side: Side) -> None:
            state = side.optimizer.state.get(side.pick(index))
            if not state:
                return
            name = sorted(state)[place % len(state)]
            if layout == "lost":
                del state[name]
                self.has_lost = True
            elif layout == "in place":
                state[name].data = state[name].data.clone()
            elif layout.startswith("torch"):
                dtypes = {str(dtype): dtype for dtype in DTYPES}
                # A shadow must have the dtype of the computation.
                if state[name].is_floating_point() and "shadow" not in name and "norm" not in name:
                    state[name] = state[name].to(dtypes[layout])
            elif state[name].is_floating_point():
                state[name] = GRADIENT_LAYOUTS[layout](state[name])

        self.both(change)

    @rule(into_another=st.booleans())
    def reload(self, into_another: bool) -> None:
        def change(side: Side) -> None:
            optimizer: Any = side.optimizer
            if into_another:
                side.optimizer = type(optimizer)(
                    [{"params": list(group["params"])} for group in optimizer.param_groups]
                )
            saved = optimizer.state_dict()
            with contextlib.suppress(ValueError) if self.has_lost else contextlib.nullcontext():
                side.optimizer.load_state_dict(saved)

        self.both(change)

    @rule()
    def copy_everything(self) -> None:
        def change(side: Side) -> None:
            side.groups, side.optimizer, side.second = copy.deepcopy(
                (side.groups, side.optimizer, side.second)
            )

        self.both(change)

    @rule(index=indices, seed=seeds, is_new=st.booleans())
    def regroup(self, index: int, seed: int, is_new: bool) -> None:
        def change(side: Side) -> None:
            groups = side.optimizer.param_groups
            group = groups[index % len(groups)]["params"]
            if is_new and len(side.params()) < 7:
                param = torch.nn.Parameter(_random(SHAPES[index], torch.float32, seed))
                side.groups.append([param])
                side.optimizer.add_param_group({"params": [param]})
            elif len(group) > 1:
                group.append(group.pop(0))
            else:
                groups.append(groups.pop(0))

        self.both(change)

    @rule(
        options=st.fixed_dictionaries(
            {},
            optional={
                "lr": st.sampled_from([1e-3, 1e-1, 0.0]),
                "betas": st.sampled_from([(0.5, 0.6), (0.0, 0.9)]),
                "weight_decay": st.sampled_from([0.0, WEIGHT_DECAY]),
                "weight_decay_mode": st.sampled_from(MODES),
                "use_shadow": st.booleans(),
                "shadow_rate": st.sampled_from([0.1, 1.0]),
                "eps": st.sampled_from([1e-8, 1e-3]),
            },
        ),
        index=indices,
    )
    def change_options(self, options: dict[str, Any], index: int) -> None:
        def change(side: Side) -> None:
            groups = side.optimizer.param_groups
            group = groups[index % len(groups)]
            group.update({name: value for name, value in options.items() if name in group})

        self.both(change)

    @rule(way=st.sampled_from([{}, {"fused": True}, {"foreach": False}]))
    def change_the_way(self, way: dict[str, bool]) -> None:
        for group in self.fast.optimizer.param_groups:
            group.update({"fused": None, "foreach": None, **way})

    @rule(count=st.integers(1, 3))
    def change_threads(self, count: int) -> None:
        torch.set_num_threads(count)

    def teardown(self) -> None:
        torch.set_num_threads(1)


def _run(cases: int, *, is_repeatable: bool) -> None:
    run_state_machine_as_test(
        Changes,
        settings=settings(
            max_examples=cases,
            stateful_step_count=12,
            deadline=None,
            derandomize=is_repeatable,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def _run_apart(cases: int, *more: str) -> subprocess.CompletedProcess[str]:
    """Tries a number of sequences in a process of its own, so that a crash fails only the test."""
    command = [sys.executable, "-P", __file__, "batch", str(cases), *more]
    environment = {**os.environ, "PYTHONPATH": str(Path(emo_torch.__file__).parents[1])}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.skipif(_fused.library() is None, reason="NO C COMPILER WAS FOUND")
def test_the_compiled_way_equals_the_readable_one_whatever_changes() -> None:
    run = _run_apart(CASES_IN_THE_SUITE, "repeatable")
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-8000:]


def _main(arguments: list[str]) -> None:
    if arguments[0] == "batch":
        _run(int(arguments[1]), is_repeatable="repeatable" in arguments)
        return
    if _fused.library() is None:
        sys.exit("There is no compiled code, and nothing to compare: run `python emo_torch/build.py`")
    wanted = int(arguments[0])
    for done in range(0, wanted, CASES_IN_THE_SUITE):
        cases = min(CASES_IN_THE_SUITE, wanted - done)
        run = _run_apart(cases)
        if run.returncode != 0:
            sys.exit(f"{run.stdout}{run.stderr}\nended with {run.returncode} after {done} cases")
        print(f"{done + cases} of {wanted} sequences", flush=True)


if __name__ == "__main__":
    _main(sys.argv[1:])
