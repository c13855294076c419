"""A run moved from one package to the other goes on as if it had not been."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import emo_optax
import emo_torch
from parity_tests import sequences
from parity_tests.cases import program
from parity_tests.compare import differences, with_sums
from parity_tests.drive import Arrays, compiled, give_gradient, to_numpy, to_torch
from parity_tests.family import FAMILY, ROUNDED, optax_options
from parity_tests.tolerances import bound

STEPS = 24


class _Optax:
    def __init__(self, name: str, params: Arrays, options: dict[str, Any], arrays: Arrays | None) -> None:
        known = optax_options(FAMILY[name].known(options))
        init, self._step = compiled(FAMILY[name].optax, tuple(sorted(known.items())))
        self.params: Any = {key: jnp.asarray(value) for key, value in params.items()}
        self.state = init(self.params)
        if arrays is not None:
            self.state = emo_optax.from_arrays(arrays, self.state)

    def step(self, grads: Arrays, loss: float) -> None:
        self.params, self.state = self._step(self.params, self.state, grads, loss)

    def leave(self) -> tuple[Arrays, Arrays]:
        params = {key: np.asarray(value) for key, value in self.params.items()}
        return params, emo_optax.to_arrays(self.state)


class _Torch:
    def __init__(self, name: str, params: Arrays, options: dict[str, Any], arrays: Arrays | None) -> None:
        self.params = {key: torch.nn.Parameter(to_torch(value)) for key, value in params.items()}
        ordered = [self.params[key] for key in sorted(self.params)]  # As the leaves of a tree.
        self.optimizer = FAMILY[name].torch(ordered, **FAMILY[name].known(options))
        if arrays is not None:
            emo_torch.from_arrays(arrays, self.optimizer, self.params.items())

    def step(self, grads: Arrays, loss: float) -> None:
        for key, param in self.params.items():
            give_gradient(param, grads[key])
        self.optimizer.step(loss=loss)

    def leave(self) -> tuple[Arrays, Arrays]:
        params = {key: to_numpy(value) for key, value in self.params.items()}
        return params, emo_torch.to_arrays(self.optimizer, self.params.items())


SIDES: dict[str, Callable[..., Any]] = {"optax": _Optax, "torch": _Torch}


def _run(
    name: str, options: dict[str, Any], dtype: str, legs: list[str], path: Path, few: bool = True
) -> tuple[Arrays, Arrays]:
    """Runs the legs one after the other, each on its side, and hands the state on through a file."""
    names = sequences.FEW if few else tuple(sequences.SHAPES)
    params = {key: value for key, value in sequences.params(dtype).items() if key in names}
    grads = sequences.all_gradients(dtype, 0, STEPS)
    losses = sequences.losses("not_finite", STEPS)
    arrays: Arrays | None = None
    each = STEPS // len(legs)
    for index, side in enumerate(legs):
        runner = SIDES[side](name, params, options, arrays)
        for step in range(index * each, (index + 1) * each):
            runner.step({key: grads[step][key] for key in names}, float(losses[step]))
        params, arrays = runner.leave()
        package = emo_optax if side == "optax" else emo_torch
        package.save_arrays(path / f"{index}.safetensors", arrays)
        arrays = package.load_arrays(path / f"{index}.safetensors")
    assert arrays is not None
    return params, arrays


def _has_few(options: dict[str, Any], dtype: str, legs: list[str]) -> bool:
    """Returns whether a move is made with few parameters: each member moves all shapes once."""
    return not (dtype == "float64" and legs == THERE_AND_BACK and "use_shadow" in options)


def _beside_its_program(name: str, options: dict[str, Any], dtype: str, legs: list[str]) -> Any:
    """Sends moves that Optax takes in one program to one process, which compiles it once."""
    return pytest.mark.xdist_group(program(name, options, dtype, _has_few(options, dtype, legs)))


def _shadow(use_shadow: bool) -> dict[str, Any]:
    # Without the default, which `compiled` would take for another program than the one of the lockstep.
    return {"use_shadow": True} if use_shadow else {}


THERE, BACK, THERE_AND_BACK = ["torch", "optax"], ["optax", "torch"], ["torch", "optax", "torch"]
LEAST = [(True, THERE_AND_BACK, "float64")]
"""The moves of a member whose cousin has the same moments."""
MOVES = [(True, legs, "float64") for legs in (THERE, BACK, THERE_AND_BACK)]
MOVES += [(False, THERE_AND_BACK, "float64")]
MOVES += [(True, THERE_AND_BACK, "float32"), (True, THERE_AND_BACK, "bfloat16")]
"""Moves: whether there are shadows, the sides, the dtype. A state without shadows has fewer arrays."""
CASES = [
    pytest.param(
        member.name,
        use_shadow,
        legs,
        dtype,
        id="-".join([member.name, *legs, dtype, str(use_shadow)]),
        marks=_beside_its_program(member.name, _shadow(use_shadow), dtype, legs),
    )
    for member in FAMILY.values()
    for use_shadow, legs, dtype in (LEAST if member.cousin else MOVES)
]


@pytest.mark.parametrize(("name", "use_shadow", "legs", "dtype"), CASES)
def test_goes_on_as_if_it_had_not_moved(
    name: str, use_shadow: bool, legs: list[str], dtype: str, tmp_path: Path
) -> None:
    _assert_goes_on(name, _shadow(use_shadow), dtype, legs, tmp_path)


@pytest.mark.parametrize("legs", [THERE, BACK, THERE_AND_BACK], ids="-".join)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, marks=_beside_its_program(name, options, "bfloat16", THERE))
        for name in ROUNDED
        for options in ROUNDED[name]
    ],
    ids=str,
)
def test_goes_on_with_what_rounding_keeps(
    name: str, options: dict[str, Any], legs: list[str], tmp_path: Path
) -> None:
    arrays = _assert_goes_on(name, options, "bfloat16", legs, tmp_path)
    has_rest = any(bool(np.any(arrays[key])) for key in arrays if key.startswith("compensation/"))
    assert has_rest == (options["rounding"] == "kahan")


def _assert_goes_on(
    name: str, options: dict[str, Any], dtype: str, legs: list[str], tmp_path: Path
) -> Arrays:
    """Asserts that a run that was moved ends as one that stayed; returns the arrays that it ends with."""
    few = _has_few(options, dtype, legs)
    with jax.enable_x64(dtype == "float64"):
        stayed = _run(name, options, dtype, [legs[-1]], tmp_path, few)
        moved = _run(name, options, dtype, legs, tmp_path, few)
    assert moved[1].keys() == stayed[1].keys()
    values, references = (
        with_sums({f"param/{key}": value for key, value in params.items()} | arrays)
        for params, arrays in (moved, stayed)
    )
    for key, reference in references.items():
        gap = differences(values[key][None], reference[None], bound(key, dtype, options))[0]
        assert gap.excess <= 1.0, key
    return moved[1]


def test_weight_decay_keeps_the_learning_rate_that_it_is_divided_by(tmp_path: Path) -> None:
    options = {"decoupled_weight_decay": True, "lr": 2e-3, "weight_decay": 1e-4}
    with jax.enable_x64(True):
        _, arrays = _run("EmoCats", options, "float64", ["optax", "torch"], tmp_path)
    assert arrays["weight_decay_divisor"] == 2e-3


def test_schedules_go_on_at_the_step_of_the_move() -> None:
    params = {"weight": jnp.ones(2)}
    schedule = optax.linear_schedule(1e-2, 0.0, 10)
    optimizer = emo_optax.emo_sens(schedule, weight_decay=schedule)
    state = optimizer.init(params)
    for loss in (1.0, float("nan"), 0.5):
        _, state = optimizer.update(params, state, params, value=loss)
    moved = emo_optax.from_arrays(emo_optax.to_arrays(state), optimizer.init(params))
    for one, other in zip(jax.tree.leaves(moved), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_injected_schedules_go_on_at_the_step_of_the_move() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    there = emo_torch.EmoSens([weight])
    for loss in (1.0, float("nan"), 0.5):
        weight.grad = torch.ones(2)
        there.step(loss=loss)
    schedule = optax.linear_schedule(1e-1, 0.0, 10)
    optimizer = optax.inject_hyperparams(emo_optax.emo_sens)(schedule)
    params: Any = {"weight": jnp.ones(2)}
    arrays = emo_torch.to_arrays(there, [("weight", weight)])
    state = emo_optax.from_arrays(arrays, optimizer.init(params))
    _, state = optimizer.update(params, state, params, value=0.4)
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(float(schedule(3)))
    assert int(state.count) == 4


def _arrays() -> tuple[dict[str, Any], Arrays]:
    params: Any = {"weight": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    return params, emo_optax.to_arrays(emo_optax.emo_sens(use_shadow=True).init(params))


BROKEN: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "version": (lambda arrays: arrays.update(version=np.asarray(99, np.int32)), "99"),
    "no version": (lambda arrays: arrays.pop("version"), "'version'"),
    "rule": (lambda arrays: arrays.update(rule=np.frombuffer(b"lion", np.uint8)), "'lion'"),
    "missing": (lambda arrays: arrays.pop("exp_avg/weight"), "'exp_avg/weight' is missing"),
    "shape": (lambda arrays: arrays.update({"shadow/bias": np.ones(4)}), r"'shadow/bias'.*\(4,\)"),
    "extra": (lambda arrays: arrays.update({"exp_avg/other": np.ones(4)}), "exp_avg/other"),
    "float kind": (lambda arrays: arrays.update({"exp_avg/bias": np.ones(3, int)}), "'exp_avg/bias' holds"),
    "complex": (
        lambda arrays: arrays.update({"exp_avg/bias": np.ones(3, complex)}),
        "'exp_avg/bias' holds",
    ),
    "text": (lambda arrays: arrays.update({"shadow/bias": np.full(3, "1")}), "'shadow/bias' holds"),
    "whole kind": (lambda arrays: arrays.update({"emotion/felt": np.asarray(1.5)}), "'emotion/felt' holds"),
    "bool kind": (
        lambda arrays: arrays.update({"emotion/shadow_exists": np.asarray(2)}),
        "'emotion/shadow_exists' holds int64, not booleans",
    ),
    "version kind": (lambda arrays: arrays.update(version=np.asarray(1.0)), "'version' holds"),
    "rule text": (lambda arrays: arrays.update(rule=np.asarray("uncorrected_adam")), "'rule' holds <U16"),
    "rule object": (lambda arrays: arrays.update(rule=np.asarray(None)), "'rule' holds object"),
    "rule bytes": (
        lambda arrays: arrays.update(rule=np.asarray([255, 254], np.uint8)),
        "another optimizer",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_arrays_are_refused_by_name_and_change_nothing(fault: str) -> None:
    params, arrays = _arrays()
    breaks, message = BROKEN[fault]
    broken = dict(arrays)
    breaks(broken)
    with pytest.raises(ValueError, match=message):
        emo_optax.from_arrays(broken, emo_optax.emo_sens(use_shadow=True).init(params))

    named = {key: torch.nn.Parameter(torch.ones(value.shape)) for key, value in params.items()}
    optimizer = emo_torch.EmoSens(list(named.values()), use_shadow=True)
    for param in named.values():
        param.grad = torch.ones_like(param)
    optimizer.step(loss=0.7)
    before = emo_torch.to_arrays(optimizer, named.items())
    with pytest.raises(ValueError, match=message):
        emo_torch.from_arrays(broken, optimizer, named.items())
    after = emo_torch.to_arrays(optimizer, named.items())
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_what_is_not_of_the_family_is_refused() -> None:
    with pytest.raises(ValueError, match="no rule of a member"):
        emo_optax.to_arrays(optax.adam(1e-3).init(jnp.ones(2)))
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="has no name"):
        emo_torch.to_arrays(emo_torch.EmoSens([weight]), [])
