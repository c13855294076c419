"""Every optimizer of Optax, made emotional."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import emo_optax

SPECIAL: dict[str, Callable[[], Any]] = {
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=0),
}
EXCEPTIONS = {
    "dpsgd": "takes the gradient of every example, not that of the batch",
    "galore": "drops the extra arguments and projects gradients that are matrices",
    "lbfgs": "searches along its step, and calls a `value_fn` of its own",
    "optimistic_adam": "has become optimistic_adam_v2",
    "sophia": "calls an `obj_fn` of its own for the curvature",
}
NOT_OPTIMIZERS = ("scale_by_learning_rate", "scale_by_rprop", "scale_by_madgrad")


def _takes_a_learning_rate() -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    for module in (optax, optax.contrib):
        for name, function in vars(module).items():
            if not inspect.isfunction(function) or name.startswith("_") or name in NOT_OPTIMIZERS:
                continue
            parameters = inspect.signature(function).parameters
            if "learning_rate" in parameters:
                given = {"learning_rate": 0.1}
                found[name] = lambda function=function, given=given: function(**given)  # type: ignore[misc]
    return {**found, **SPECIAL}


ALL = _takes_a_learning_rate()
OPTIMIZERS = {name: make for name, make in ALL.items() if name not in EXCEPTIONS}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
LOSSES = (1.0, 3.0, np.nan, 0.5)


def params() -> dict[str, jax.Array]:
    generator = np.random.default_rng(0)
    return {
        "matrix": jnp.asarray(generator.normal(size=(3, 4)), jnp.float32),
        "vector": jnp.asarray(generator.normal(size=5), jnp.float32),
    }


def gradients(step: int) -> dict[str, jax.Array]:
    generator = np.random.default_rng(100 + step)
    matrix = generator.normal(size=(3, 4))
    matrix[0, 0] = 0.0
    return {
        "matrix": jnp.asarray(matrix, jnp.float32),
        "vector": jnp.asarray(generator.normal(size=5), jnp.float32),
    }


def test_every_optimizer_is_here_or_excepted() -> None:
    assert set(EXCEPTIONS) <= set(ALL)
    assert len(OPTIMIZERS) >= 40
    assert {"adam", "adamw", "sgd", "lion", "adabelief", "muon", "prodigy"} <= set(OPTIMIZERS)


@every_optimizer
def test_a_step_is_the_optimizers_own_filtered_and_scaled(make: Any) -> None:
    inner = make()
    alone = optax.with_extra_args_support(inner)
    optimizer = emo_optax.emotional(inner, theta=0.3)

    @jax.jit
    def both(grads: Any, state: Any, inner_state: Any, params: Any, loss: Any) -> Any:
        updates, state = optimizer.update(grads, state, params, value=loss)
        inner_updates, inner_state = alone.update(grads, inner_state, params, value=loss)
        return updates, state, inner_updates, inner_state

    where, state, inner_state = params(), optimizer.init(params()), alone.init(params())
    structure: Any = jax.tree.structure(state)
    for step, loss in enumerate(LOSSES):
        grads = gradients(step)
        # Optimizers that read the loss themselves would put a number that is not finite into their
        # estimates.
        finite = jnp.asarray(1.0 if np.isnan(loss) else loss)
        updates, state, inner_updates, inner_state = both(grads, state, inner_state, where, finite)
        size = abs(float(emo_optax.get_emotion(state).scalar))
        for name, update in updates.items():
            kept = np.abs(grads[name]) >= (0.3 * (1 + size)) ** 3
            expected = kept * (1 - size) * np.asarray(inner_updates[name], np.float64)
            np.testing.assert_allclose(update, expected, rtol=2e-4, atol=1e-7)
            assert update.dtype == where[name].dtype
            assert np.isfinite(update).all()
        assert jax.tree.structure(state) == structure
        where = optax.apply_updates(where, updates)
    assert any(float(jnp.abs(update).max()) > 0 for update in updates.values())
    assert int(emo_optax.get_emotion(state).felt) == len(LOSSES)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "adafactor", "schedule_free"])
def test_without_emotion_it_is_the_optimizer_alone(name: str) -> None:
    inner = OPTIMIZERS[name]()
    alone = optax.with_extra_args_support(inner)
    optimizer = emo_optax.emotional(inner, gain=0.0, theta=0.0)
    updates, _ = optimizer.update(gradients(0), optimizer.init(params()), params(), value=1.0)
    expected, _ = alone.update(gradients(0), alone.init(params()), params(), value=1.0)
    for name in updates:
        np.testing.assert_array_equal(updates[name], expected[name].astype(jnp.float32))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "adafactor", "muon"])
def test_a_missing_loss_is_an_error(name: str) -> None:
    optimizer = emo_optax.emotional(OPTIMIZERS[name](), use_shadow=True)
    with pytest.raises(emo_optax.LossMissingError):
        optimizer.update(gradients(0), optimizer.init(params()), params())


def test_a_schedule_free_wrapper_outside_moves_its_own_parameters_as_far_as_is_felt() -> None:
    base = optax.sgd(0.1)
    optimizer = optax.contrib.schedule_free(emo_optax.emotional(base, theta=0.0), 0.1)
    where, state = params(), optimizer.init(params())
    for step, loss in enumerate((1.0, 1.2, 0.9, 1.1)):
        before, grads = state.z, gradients(step)
        updates, state = optimizer.update(grads, state, where, value=loss)
        where = optax.apply_updates(where, updates)
        part = float(emo_optax.get_emotion(state).step_scale)
        for name, moved in state.z.items():
            expected = np.asarray(before[name]) - 0.1 * part * np.asarray(grads[name])
            np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
    assert part < 0.9
