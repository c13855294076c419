"""Equinox: modules with leaves that are no arrays, `filter_jit`, donation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emo_optax

eqx = pytest.importorskip("equinox", reason="Equinox is not installed")

FEATURES = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)


def loss_of(model: Any, features: Any) -> Any:
    return jnp.mean(jnp.square(jax.vmap(model)(features) - 1.0))


@pytest.mark.parametrize("name", ["emo_sens", "emo_airy", "ref_adamw_mini_schedule_free"])
def test_a_model_trains_the_same_with_its_buffers_donated(name: str) -> None:
    optimizer = emo_optax.create_optimizer(name, 0.05)

    def step(model: Any, state: Any, features: Any) -> Any:
        loss, grads = eqx.filter_value_and_grad(loss_of)(model, features)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return eqx.apply_updates(model, updates), state

    results = []
    for donate in ("none", "all"):
        jitted = eqx.filter_jit(step, donate=donate)
        # An activation is a leaf that is no array; where the parameters stand, it is None.
        model = eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
        state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
        for _ in range(3):
            before = state
            model, state = jitted(model, state, jnp.array(FEATURES))
        kept = [leaf.is_deleted() for leaf in jax.tree.leaves(before)]
        assert any(kept) == (donate == "all")
        results.append(jax.tree.leaves(eqx.filter((model, state), eqx.is_array)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_loss_is_felt() -> None:
    optimizer = emo_optax.emo_sens(0.05)
    model = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    loss, grads = eqx.filter_value_and_grad(loss_of)(model, FEATURES)
    with pytest.raises(emo_optax.LossMissingError):
        optimizer.update(grads, state, model)
    _, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array), value=loss)
    assert float(emo_optax.get_emotion(state).long) == float(loss)
