"""The steering of EmoPilot around other transformations, and its pieces alone."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.emo_pilot_test import problem, run


@pytest.mark.parametrize("inner", [optax.sgd(1e-2, momentum=0.9), optax.adam(1e-2), optax.lion(1e-3)])
def test_autopilot_steers_any_optimizer(inner: Any) -> None:
    start = jnp.asarray([[1.0, -2.0], [0.5, 3.0]])
    optimizer = emo_optax.autopilot(inner)
    params, state = start, optimizer.init(start)
    step = jax.jit(
        lambda p, s, loss: optimizer.update(jax.grad(lambda q: jnp.sum(q**2))(p), s, p, value=loss)
    )
    for index in range(150):
        loss = jnp.sum(params**2) if index != 50 else jnp.nan
        updates, state = step(params, state, loss)
        params = optax.apply_updates(params, updates)
    assert jnp.sum(params**2) < 0.5 * jnp.sum(start**2)
    assert emo_optax.get_pilot(state).skipped == 1
    assert emo_optax.eval_params(state, params).shape == params.shape


def test_autopilot_with_courage_1_and_no_ceiling_is_the_optimizer_itself() -> None:
    params = jnp.full((3,), 2.0)
    inner = optax.adam(1e-3)
    optimizer = emo_optax.autopilot(inner, min_courage=1.0, max_courage=1.0)
    state, plain = optimizer.init(params), inner.init(params)
    for _ in range(10):
        updates, state = optimizer.update(params, state, params, value=1.0)
        wanted, plain = inner.update(params, plain, params)
        np.testing.assert_allclose(updates, wanted, rtol=1e-6)


def test_averaged_weights_alone_around_any_optimizer() -> None:
    params, grads, losses = problem(dtype=np.float32)
    optimizer = emo_optax.average_weights(optax.adamw(1e-2))
    ended, state = run(optimizer, params, grads, losses)
    wanted, _ = run(optax.with_extra_args_support(optax.adamw(1e-2)), params, grads, losses)
    jax.tree.map(np.testing.assert_array_equal, ended, wanted)
    assert np.any(emo_optax.eval_params(state, ended)["a"] != ended["a"])


def test_the_gate_alone() -> None:
    piece = emo_optax.gate_by_norm()
    state = piece.init(jnp.ones(2))
    for size, wanted in ((1.0, 1.0), (math.nan, math.nan), (1.0, 1.0), (1e6, 2.5), (0.0, 0.0)):
        updates, state = piece.update(jnp.asarray([size, 0.0]), state)
        np.testing.assert_allclose(updates[0], wanted)
