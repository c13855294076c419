"""Gradients through updates, against finite differences: the part that flows through the loss included."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import emo_optax

LEFT_OUT = ("emo_neco", "emo_zeal", "emo_cats3", "emo_fact36", "emo_navi36")
"""The first steps of two switch at bounds that a large jump of the loss may cross. The other three have the
rule of one that is here (EmoCats, EmoFact, EmoNavi), and the memory of another (EmoSens3, EmoLynx36)."""
SMOOTH = [name for name in emo_optax.list_optimizers() if name not in LEFT_OUT]


def after_three_steps(optimizer: Any, scale: jax.Array, flows: jax.Array) -> jax.Array:
    """Returns a loss after three steps, as a function of the scale of the loss that is trained on.

    The optimizer takes the loss, and `flows` (1 or 0) says whether the loss is differentiated there.
    """
    params = {"w": jnp.asarray([[1.0, -2.0, 0.5], [0.3, 0.7, -1.1]]), "b": jnp.asarray([0.4, -0.8])}
    state = optimizer.init(params)

    def loss_of(params: Any) -> jax.Array:
        parts = [jnp.sum(jnp.cosh(leaf - 0.25)) for leaf in jax.tree.leaves(params)]
        return scale * sum(parts[1:], parts[0])

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params)
        still = jax.lax.stop_gradient(loss)
        updates, state = optimizer.update(grads, state, params, value=still + flows * (loss - still))
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, state), length=3)
    return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(params))  # type: ignore[return-value]


def three_ways(optimizer: Any) -> tuple[float, float, float]:
    """Returns the gradient, the central difference, and the gradient where the loss is stopped.

    One program computes all.
    """
    at, by = jnp.asarray(0.9), 1e-6
    both = jax.jit(jax.value_and_grad(lambda *given: after_three_steps(optimizer, *given)))
    flows, stops = jnp.asarray(1.0), jnp.asarray(0.0)
    difference = (both(at + by, flows)[0] - both(at - by, flows)[0]) / (2 * by)
    return float(both(at, flows)[1]), float(difference), float(both(at, stops)[1])


def make(name: str) -> Any:
    known = inspect.signature(getattr(emo_optax, name)).parameters
    options = {"gain": 1.0, "use_shadow": True} if "gain" in known else {}
    return emo_optax.create_optimizer(name, 0.03, **options)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_through_three_updates_is_that_of_finite_differences(name: str) -> None:
    with jax.enable_x64(True):
        complete, difference, stopped = three_ways(make(name))
    assert complete == pytest.approx(difference, rel=1e-5, abs=1e-7)
    if name in ("emo_sens", "emo_airy", "emo_cats"):  # The emotion's part is missing only there.
        assert abs(stopped - complete) > 0.05 * abs(complete)


WRAPPED: dict[str, Callable[[], Any]] = {
    "emotional": lambda: emo_optax.emotional(optax.sgd(0.03), gain=1.0),
    "accumulate": lambda: emo_optax.accumulate(emo_optax.emo_sens(0.03, gain=1.0), 1),
    "track_emotion": lambda: optax.chain(emo_optax.track_emotion(), emo_optax.emo_sens(0.03, gain=1.0)),
    "share_emotion": lambda: emo_optax.share_emotion(
        optax.chain(optax.sgd(0.03), emo_optax.scale_by_emotion()), gain=1.0
    ),
}


@pytest.mark.parametrize("way", WRAPPED)
def test_a_wrapper_and_a_monitor_leave_the_gradient_whole(way: str) -> None:
    with jax.enable_x64(True):
        complete, difference, stopped = three_ways(WRAPPED[way]())
    assert complete == pytest.approx(difference, rel=1e-5)
    assert abs(stopped - complete) > 1e-3 * abs(complete)


def test_a_loss_that_is_not_finite_leaves_the_gradient_finite() -> None:
    optimizer = emo_optax.emo_sens(0.03)
    params = jnp.asarray([1.0, -2.0])
    _, state = optimizer.update(params, optimizer.init(params), params, value=1.0)

    def moved(loss: jax.Array) -> jax.Array:
        updates, _ = optimizer.update(params, state, params, value=loss)
        return jnp.sum(updates)

    slope = jax.jit(jax.grad(moved))
    for loss in (jnp.nan, jnp.inf):
        assert float(slope(jnp.asarray(loss))) == 0.0
