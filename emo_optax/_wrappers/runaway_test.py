from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

GRADIENT = np.asarray([0.5, 0.5, 0.5, -0.2], np.float32)
TREE = {"first": GRADIENT[:3], "second": GRADIENT[3:], "empty": np.zeros((0, 2), np.float32)}


def scale_of(gradient: Any) -> float:
    return 1.0 - float(emo_optax.runaway_emotion(emo_optax.gradient_moments(gradient)))


def test_the_update_is_scaled_and_the_gradient_of_all_leaves_decides() -> None:
    inner = optax.adamw(0.1, weight_decay=0.5)
    optimizer = emo_optax.scale_by_runaway(inner)
    params = jax.tree.map(jnp.ones_like, TREE)
    updates, state = optimizer.update(TREE, optimizer.init(params), params)
    plain, _ = inner.update(TREE, inner.init(params), params)
    for name in TREE:
        np.testing.assert_allclose(updates[name], scale_of(GRADIENT) * plain[name], rtol=1e-6)
    shown = emo_optax.get_runaway(state)
    assert float(shown.scale) == pytest.approx(scale_of(GRADIENT))
    assert [field.shape for field in shown] == [(4,), (), ()]


def test_the_state_is_stable_under_scan_and_made_of_shapes() -> None:
    optimizer = optax.chain(
        emo_optax.track_runaway(), emo_optax.scale_by_runaway(optax.adam(0.1), bounds=(0.0, 2.0))
    )
    params = jnp.ones(4)
    shapes = optimizer.init(jax.eval_shape(lambda: params))
    state = optimizer.init(params)
    assert str(jax.tree.structure(shapes)) == str(jax.tree.structure(state))
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)

    def step(carry: Any, gradient: jax.Array) -> Any:
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), emo_optax.get_runaway(state).emotion

    (params, _), emotions = jax.lax.scan(step, (params, state), jnp.stack([GRADIENT, 2 * GRADIENT]))
    np.testing.assert_allclose(emotions, [1 - scale_of(GRADIENT), 1 - scale_of(2 * GRADIENT)], rtol=1e-6)
    assert np.isfinite(params).all()


def test_extra_arguments_reach_the_inner_optimizer() -> None:
    optimizer = emo_optax.scale_by_runaway(emo_optax.emo_sens(0.1))
    _, state = optimizer.update(GRADIENT, optimizer.init(jnp.ones(4)), jnp.ones(4), value=2.0)
    assert float(emo_optax.get_emotion(state).long) == 2.0


def test_tracking_changes_nothing() -> None:
    monitor = emo_optax.track_runaway()
    updates, state = monitor.update(TREE, monitor.init(TREE))
    assert updates is TREE
    assert float(emo_optax.get_runaway(state).scale) == pytest.approx(scale_of(GRADIENT))


def test_a_gradient_with_a_nan_leaves_the_step_as_it_is() -> None:
    optimizer = emo_optax.scale_by_runaway(optax.sgd(1.0))
    gradient = jnp.asarray([1.0, np.nan])
    updates, state = optimizer.update(gradient, optimizer.init(jnp.ones(2)))
    assert float(updates[0]) == -1.0
    shown = emo_optax.get_runaway(state)
    assert float(shown.scale) == 1.0
    assert np.isnan(shown.moments).all()


def test_numpy_numbers_and_injected_options_stay_in_the_dtype() -> None:
    optimizer = emo_optax.scale_by_runaway(eps=np.float64(1e-8), bounds=(np.float64(0.0), 2))
    updates, _ = optimizer.update(GRADIENT, optimizer.init(GRADIENT))
    assert updates.dtype == np.float32
    injected = optax.inject_hyperparams(emo_optax.scale_by_runaway)(eps=0.5)
    updates, _ = injected.update(GRADIENT, injected.init(GRADIENT))
    assert updates.dtype == np.float32
    assert not np.allclose(updates, scale_of(GRADIENT) * GRADIENT, rtol=1e-3)


def test_narrow_gradients_are_summed_wide() -> None:
    many = jnp.full(100_000, 0.5, jnp.bfloat16)
    np.testing.assert_allclose(emo_optax.gradient_moments(many), [0.5, 0.25, 0.125, 0.0625], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, "Invalid eps"),
        ({"bounds": (2.0, 0.0)}, "must not be above"),
        ({"bounds": 1.0}, "must be a pair"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    for make in (emo_optax.scale_by_runaway, emo_optax.track_runaway):
        with pytest.raises(ValueError, match=message):
            make(**options)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="does not support complex"):
        emo_optax.gradient_moments(jnp.ones(2, jnp.complex64))
    with pytest.raises(ValueError, match="There is no runaway detection in this state"):
        emo_optax.get_runaway(optax.adam(0.1).init(jnp.ones(1)))


@pytest.mark.parametrize("inner", [emo_optax.emo_pilot(), emo_optax.autopilot(optax.sgd(0.1))])
def test_optimizers_that_steer_their_steps_are_refused(inner: Any) -> None:
    with pytest.raises(TypeError, match=r"steer their steps already.*track_runaway"):
        emo_optax.scale_by_runaway(optax.chain(optax.clip(1.0), inner)).init(TREE)
    optax.chain(emo_optax.track_runaway(), inner).init(TREE)


def test_random_keys_in_a_state_are_no_numbers() -> None:
    noisy = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1))
    optimizers = {
        "scale_by_runaway": emo_optax.scale_by_runaway(noisy),
        "emotional": emo_optax.emotional(noisy),
        "autopilot": emo_optax.autopilot(noisy),
        "accumulate": emo_optax.accumulate(noisy, 1),
    }
    params = jax.tree.map(jnp.ones_like, TREE)
    for name, optimizer in optimizers.items():
        extra = {} if name == "scale_by_runaway" else {"value": 1.0}
        state = optimizer.init(params)
        updates, _ = optimizer.update(TREE, state, params, **extra)
        compiled, _ = jax.jit(optimizer.update)(TREE, state, params, **extra)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, compiled)
