"""Hyperparameters of the members under `optax.inject_hyperparams`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.reference_test import (
    Reference,
    make_grads,
    make_params,
    run_steps,
    spiky_losses,
)
from emo_optax._wrappers.wrappers_test import MEMBERS, PARAMS, assert_same, every_member, train

# ---- Hyperparameters injected


def _moving(start: float, slope: float) -> Any:
    return lambda step: start + slope * step


INJECTED: dict[str, tuple[float, float]] = {
    # Each with a start and a slope over 12 steps that stay in range.
    "learning_rate": (0.05, 0.01),
    "b1": (0.9, -0.03),
    "b2": (0.95, -0.02),
    "eps": (1e-3, 1e-3),
    "weight_decay": (0.1, 0.05),
    "theta": (0.3, 0.03),
    "short_factor": (0.3, 0.05),
    "long_factor": (0.01, 0.02),
    "gain": (5.0, -0.3),
    "shadow_rate": (0.05, 0.05),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_every_number_may_be_injected_and_scheduled(name: str) -> None:
    steps = 12
    params, grads, losses = make_params(), make_grads(steps), spiky_losses(19)[7:]
    reference = Reference(name, params, use_shadow=True)
    for step in range(steps):
        for option, (start, slope) in INJECTED.items():
            value = start + slope * step
            is_function = option in ("learning_rate", "weight_decay")
            setattr(reference, option, (lambda _, value=value: value) if is_function else value)
        reference.step(grads[step], losses[step])
    schedules = {option: _moving(start, slope) for option, (start, slope) in INJECTED.items()}
    with jax.enable_x64(True):
        optimizer = optax.inject_hyperparams(MEMBERS[name])(use_shadow=True, **schedules)
        got, state, _ = run_steps(optimizer, params, grads, losses)
    for leaf, expected in reference.params.items():
        np.testing.assert_allclose(got[leaf][-1], expected, rtol=1e-11, atol=1e-11, err_msg=leaf)
    for option, (start, slope) in INJECTED.items():
        assert float(state.hyperparams[option]) == pytest.approx(start + 11 * slope)


@pytest.mark.parametrize("name", MEMBERS)
def test_injected_numbers_may_be_changed_by_hand(name: str) -> None:
    params, grads, losses = make_params(), make_grads(4), spiky_losses(12)[8:]
    with jax.enable_x64(True):
        optimizer = optax.inject_hyperparams(MEMBERS[name])(learning_rate=0.1, use_shadow=True)
        assert set(optimizer.init(jnp.ones(1)).hyperparams) == set(INJECTED)
        state = optimizer.init(jax.tree.map(jnp.asarray, params))
        reference = Reference(name, params, learning_rate=0.1, use_shadow=True)
        step = jax.jit(optimizer.update)
        current = jax.tree.map(jnp.asarray, params)
        for index in range(4):
            updates, state = step(grads[index], state, current, value=losses[index])
            current = optax.apply_updates(current, updates)
            reference.step(grads[index], losses[index])
            if index == 1:
                state.hyperparams["learning_rate"] = jnp.asarray(0.02)
                state.hyperparams["gain"] = jnp.asarray(2.0)
                reference.learning_rate = lambda _: 0.02
                reference.gain = 2.0
    for leaf, expected in reference.params.items():
        np.testing.assert_allclose(current[leaf], expected, rtol=1e-11, atol=1e-11, err_msg=leaf)


def test_functions_that_are_no_schedules_are_injected_as_static() -> None:
    options: dict[str, Any] = {
        "use_shadow": True,
        "shadow_ratio": lambda s: 0.5 * s * s,
        "mask": lambda tree: jax.tree.map(lambda leaf: np.ndim(leaf) > 1, tree),
        "weight_decay": 0.5,
    }
    static = optax.inject_hyperparams(emo_optax.emo_sens, static_args=("shadow_ratio", "mask"))
    assert_same(train(static(0.1, **options))[0], train(emo_optax.emo_sens(0.1, **options))[0], 1e-5)
    with pytest.raises(TypeError, match="Pass static_args="):
        optax.inject_hyperparams(emo_optax.emo_sens)(0.1, **options).init(PARAMS)


@every_member
def test_numbers_injected_beside_half_precision_parameters_may_be_kept_in_float32(member: Any) -> None:
    params = jnp.asarray([1.0, -2.0], jnp.bfloat16)
    results = []
    for optimizer in (member(0.1), optax.inject_hyperparams(member, hyperparam_dtype=jnp.float32)(0.1)):
        state = optimizer.init(params)
        for loss in (1.0, 1.1, 1.0):
            updates, state = optimizer.update(params, state, params, value=loss)
        results.append(np.asarray(updates, np.float32))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-2)


@pytest.mark.parametrize("in_jit", [False, True])
def test_emo_cats_keeps_the_first_learning_rate_as_divisor_when_it_is_changed(in_jit: bool) -> None:
    optimizer = optax.inject_hyperparams(emo_optax.emo_cats)(
        learning_rate=0.5, weight_decay=0.125, decoupled_weight_decay=True
    )
    params, grads = jnp.asarray([8.0]), jnp.zeros(1)
    init, update = map(jax.jit, (optimizer.init, optimizer.update)) if in_jit else optimizer
    state = init(params)
    updates, state = update(grads, state, params, value=1.0)
    np.testing.assert_allclose(updates, [-0.5 * 0.125 / 0.5 * 8])
    state.hyperparams["learning_rate"] = jnp.asarray(0.25)
    updates, state = update(grads, state, params, value=1.0)
    np.testing.assert_allclose(updates, [-0.25 * 0.125 / 0.5 * 8])


@pytest.mark.parametrize("in_jit", [False, True])
def test_emo_cats_divides_by_a_schedules_first_value_even_when_the_rate_ends_at_zero(in_jit: bool) -> None:
    def schedule(step: Any) -> Any:
        return jnp.maximum(0.5 - 0.25 * step, 0.0)

    for factory in (emo_optax.emo_cats, optax.inject_hyperparams(emo_optax.emo_cats)):
        optimizer = factory(learning_rate=schedule, weight_decay=0.125, decoupled_weight_decay=True)
        update = jax.jit(optimizer.update) if in_jit else optimizer.update
        params, grads = jnp.asarray([8.0]), jnp.zeros(1)
        state = optimizer.init(params)
        moved = []
        for _ in range(4):
            updates, state = update(grads, state, params, value=1.0)
            moved.append(float(updates[0]))
        np.testing.assert_allclose(moved, [-1.0, -0.5, 0.0, 0.0])
