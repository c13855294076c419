"""The option `axis_name`; `_devices_test.py` has the replicas on devices of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

LOSSES = jnp.asarray([[1.0, 2.0, 3.0, 6.0], [2.0, 2.0, 1.0, 1.0], [1.0, jnp.nan, 1.0, 1.0]])
MEAN = (3.0, 1.5, np.nan)
GRADS = jnp.asarray([0.5, -2.0])


# Everything that takes the option.
TAKERS: dict[str, Any] = {
    **{
        name: lambda n=name, **options: emo_optax.create_optimizer(n, 0.1, **options)
        for name in emo_optax.list_optimizers()
    },
    "emotional": lambda **options: emo_optax.emotional(optax.sgd(0.1), **options),
    "share_emotion": lambda **options: emo_optax.share_emotion(
        optax.chain(optax.sgd(0.1), emo_optax.scale_by_emotion()), **options
    ),
    "track_emotion": emo_optax.track_emotion,
    "scale_by_emotion": lambda **options: emo_optax.share_emotion(emo_optax.scale_by_emotion(), **options),
    "filter_by_emotion": lambda **options: emo_optax.share_emotion(
        emo_optax.filter_by_emotion(optax.sgd(0.1)), **options
    ),
    "blend_with_shadow": lambda **options: emo_optax.share_emotion(
        emo_optax.blend_with_shadow(), **options
    ),
    "switch_by_emotion": lambda **options: emo_optax.share_emotion(
        emo_optax.switch_by_emotion([optax.scale(0.1)], lambda _: jnp.asarray(0)), **options
    ),
    "accumulate": lambda **options: emo_optax.accumulate(emo_optax.emo_sens(0.1), 2, **options),
    "injected": lambda **options: optax.inject_hyperparams(emo_optax.emo_sens)(0.1, **options),
}
every_taker = pytest.mark.parametrize("make", TAKERS.values(), ids=TAKERS)


@every_taker
def test_replicas_under_vmap_feel_the_mean(make: Any) -> None:
    def train(optimizer: Any, losses: Any) -> Any:
        def step(carry: Any, loss: Any) -> Any:
            params, state = carry
            updates, state = optimizer.update(GRADS, state, params, value=loss)
            return (params + updates, state), None

        params = jnp.ones(2)
        return jax.lax.scan(step, (params, optimizer.init(params)), losses)[0]

    replicas = jax.jit(jax.vmap(lambda losses: train(make(axis_name="i"), losses), 1, axis_name="i"))
    together, expected = replicas(LOSSES), replicas(jnp.stack([jnp.asarray(MEAN)] * 4, 1))
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(one, np.broadcast_to(one[:1], one.shape))


def test_both_losses_are_averaged() -> None:
    optimizer = emo_optax.ref_adamw_mini_schedule_free(axis_name="i")

    def step(loss: Any, val_loss: Any) -> Any:
        params = jnp.ones(2)
        _, state = optimizer.update(GRADS, optimizer.init(params), params, value=loss, val_value=val_loss)
        return emo_optax.get_divergence(state)

    replicas = jax.jit(jax.vmap(step, axis_name="i"))
    after = replicas(jnp.asarray([1.0, 3.0]), jnp.asarray([4.0, 6.0]))
    np.testing.assert_array_equal(after.previous, [2.0, 2.0])
    np.testing.assert_array_equal(after.val_previous, [5.0, 5.0])


def test_what_reads_the_loss_inside_reads_the_mean() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, value: Any, **_: Any) -> Any:
        del params, state
        return updates, value

    inner = optax.GradientTransformationExtraArgs(lambda _: jnp.zeros([]), update)
    optimizer = emo_optax.share_emotion(inner, axis_name="i")
    state = optimizer.init(GRADS)
    replicas = jax.vmap(lambda loss: optimizer.update(GRADS, state, value=loss)[1], axis_name="i")
    after = jax.jit(replicas)(LOSSES[0])
    np.testing.assert_array_equal(after.inner_state, [3.0] * 4)


@every_taker
def test_an_axis_that_is_not_there_is_an_error_that_says_what_to_do(make: Any) -> None:
    optimizer = make(axis_name="batch")
    params = jnp.ones(2)
    state = optimizer.init(params)
    for update in (optimizer.update, jax.jit(optimizer.update)):
        with pytest.raises(ValueError, match=r"axis_name='batch'.* no such axis .*do not pass axis_name"):
            update(GRADS, state, params, value=1.0)


def test_a_monitor_without_its_axis_says_so() -> None:
    monitor = emo_optax.early_stop(axis_name="batch")
    with pytest.raises(ValueError, match="no such axis"):
        monitor.update(monitor.init(), 1.0)


@every_taker
@pytest.mark.parametrize("axis_name", [3, ["x"], (), ("x", 1), b"x"])
def test_what_names_no_axis_is_refused(make: Any, axis_name: Any) -> None:
    with pytest.raises(TypeError, match="must be a name, a tuple of names or None"):
        make(axis_name=axis_name).init(jnp.ones(2))
    with pytest.raises(TypeError, match="must be a name, a tuple of names or None"):
        emo_optax.early_stop(axis_name=axis_name)


@pytest.mark.parametrize("make", [emo_optax.emo_pilot, emo_optax.emo_pilot_airy, "autopilot"])
def test_an_axis_that_is_not_there_is_named(make: Any) -> None:
    params = jnp.ones(4)
    optimizer = (
        emo_optax.autopilot(optax.sgd(0.1), shard_axis_name="dta")
        if make == "autopilot"
        else make(shard_axis_name="dta")
    )
    with pytest.raises(ValueError, match=r"shard_axis_name='dta'.* no such axis .*do not pass"):
        optimizer.update(params, optimizer.init(params), params, value=1.0)
