"""Gradients through updates, against finite differences: the part that flows through the loss included."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import emo_optax

NAMES = emo_optax.list_optimizers()
SMOOTH = [name for name in NAMES if name not in ("emo_neco", "emo_zeal")]
"""The first steps of the others switch at bounds that a large jump of the loss may cross."""


def after_three_steps(optimizer: Any, scale: jax.Array, stops: bool = False) -> jax.Array:
    """Returns a loss after three steps, as a function of the scale of the loss that is trained on."""
    params = {"w": jnp.asarray([[1.0, -2.0, 0.5], [0.3, 0.7, -1.1]]), "b": jnp.asarray([0.4, -0.8])}
    state = optimizer.init(params)

    def loss_of(params: Any) -> jax.Array:
        parts = [jnp.sum(jnp.cosh(leaf - 0.25)) for leaf in jax.tree.leaves(params)]
        return scale * sum(parts[1:], parts[0])

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params)
        value = jax.lax.stop_gradient(loss) if stops else loss
        updates, state = optimizer.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, state), length=3)
    return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(params))  # type: ignore[return-value]


def both_ways(optimizer: Any) -> tuple[float, float]:
    """Returns the gradient and the central difference; one program computes both."""
    at, by = jnp.asarray(0.9), 1e-6
    both = jax.jit(jax.value_and_grad(lambda scale: after_three_steps(optimizer, scale)))
    _, complete = both(at)
    return float(complete), float((both(at + by)[0] - both(at - by)[0]) / (2 * by))


def with_the_loss_stopped(optimizer: Any) -> float:
    """Returns the gradient where the caller stops the loss that the optimizer takes."""
    return float(
        jax.jit(jax.grad(lambda scale: after_three_steps(optimizer, scale, True)))(jnp.asarray(0.9))
    )


@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_through_three_updates_is_that_of_finite_differences(name: str) -> None:
    with jax.enable_x64(True):
        known = inspect.signature(getattr(emo_optax, name)).parameters
        options = {"gain": 1.0, "use_shadow": True} if "gain" in known else {}
        complete, difference = both_ways(emo_optax.create_optimizer(name, 0.03, **options))
    assert complete == pytest.approx(difference, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["emo_sens", "emo_airy", "emo_cats"])
def test_the_emotions_part_is_missing_only_where_the_caller_stops_it(name: str) -> None:
    with jax.enable_x64(True):
        optimizer = emo_optax.create_optimizer(name, 0.03, gain=1.0)
        complete, difference = both_ways(optimizer)
        stopped = with_the_loss_stopped(optimizer)
    assert complete == pytest.approx(difference, rel=1e-5)
    assert abs(stopped - complete) > 0.05 * abs(complete)


def test_a_wrapper_and_a_monitor_leave_the_gradient_whole() -> None:
    with jax.enable_x64(True):
        for optimizer in (
            emo_optax.emotional(optax.sgd(0.03), gain=1.0),
            emo_optax.accumulate(emo_optax.emo_sens(0.03, gain=1.0), 1),
            optax.chain(emo_optax.track_emotion(), emo_optax.emo_sens(0.03, gain=1.0)),
            emo_optax.share_emotion(optax.chain(optax.sgd(0.03), emo_optax.scale_by_emotion()), gain=1.0),
        ):
            complete, difference = both_ways(optimizer)
            stopped = with_the_loss_stopped(optimizer)
            assert complete == pytest.approx(difference, rel=1e-5)
            assert abs(stopped - complete) > 1e-3 * abs(complete)


def test_a_loss_that_is_not_finite_leaves_the_gradient_finite() -> None:
    optimizer = emo_optax.emo_sens(0.03)
    params = jnp.asarray([1.0, -2.0])
    _, state = optimizer.update(params, optimizer.init(params), params, value=1.0)

    def moved(loss: jax.Array) -> jax.Array:
        updates, _ = optimizer.update(params, state, params, value=loss)
        return jnp.sum(updates)

    for loss in (jnp.nan, jnp.inf):
        assert float(jax.grad(moved)(jnp.asarray(loss))) == 0.0
