"""Several micro-batches to a step: the optimizer gets the loss and the gradients of the full batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._devices_test import OF_EACH_RULE
from emo_optax._members.reference_test import find_in_state

FEATURES = jnp.asarray(np.random.RandomState(0).normal(size=(4, 6, 3)), jnp.float32)
TARGETS = jnp.asarray(np.random.RandomState(1).normal(size=(4, 6)), jnp.float32)
GRADS = jnp.asarray([0.3, -2.0])


def loss_of(params: Any, features: Any, targets: Any) -> Any:
    return jnp.mean(jnp.square(features @ params["w"] + params["b"] - targets))


def start() -> Any:
    return {"w": jnp.asarray([1.0, -2.0, 0.5]), "b": jnp.zeros([])}


def feed(optimizer: Any, losses: Any, grads: Any = None) -> tuple[list[Any], Any]:
    """Returns the updates of each call, and the last state."""
    params = jnp.ones(2)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    moved = []
    for index, loss in enumerate(losses):
        gradient = GRADS if grads is None else grads[index]
        updates, state = update(gradient, state, params, value=jnp.asarray(loss, jnp.float32))
        moved.append(np.asarray(updates))
    return moved, state


def recorder() -> Any:
    """Remembers the last eight losses that it was given."""

    def update(updates: Any, state: Any, params: Any = None, *, value: Any, **_: Any) -> Any:
        del params
        return updates, jnp.concatenate([state[1:], value[None]])

    return optax.GradientTransformationExtraArgs(lambda _: jnp.zeros(8), update)


def test_the_optimizer_sees_the_mean_of_the_losses_once_each_k() -> None:
    moved, state = feed(emo_optax.accumulate(recorder(), 3), (1.0, 2.0, 6.0, 10.0, 20.0, 90.0))
    np.testing.assert_array_equal(state.multi_steps.inner_opt_state[-3:], [0.0, 3.0, 40.0])
    assert [bool(np.any(updates)) for updates in moved] == [False, False, True] * 2
    _, last_ones = feed(optax.MultiSteps(recorder(), 3), (1.0, 2.0, 6.0, 10.0, 20.0, 90.0))
    np.testing.assert_array_equal(last_ones.inner_opt_state[-3:], [0.0, 6.0, 90.0])  # without the helper


@pytest.mark.parametrize("name", OF_EACH_RULE)
def test_micro_batches_equal_the_full_batch(name: str) -> None:
    alone = emo_optax.create_optimizer(name, 0.1)
    optimizer = emo_optax.accumulate(alone, 3)

    def step_of(optimizer: Any, carry: Any, batch: Any) -> Any:
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params, *batch)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    def step(carry: Any, batch: Any) -> Any:
        micro, full = carry
        parts = jax.tree.map(lambda leaf: leaf.reshape(3, 2, *leaf.shape[1:]), batch)
        micro, _ = jax.lax.scan(lambda each, part: (step_of(optimizer, each, part), None), micro, parts)
        full = step_of(alone, full, batch)
        return (micro, full), (micro[0], full[0])

    begun = ((start(), optimizer.init(start())), (start(), alone.init(start())))
    (micro, full), params = jax.jit(lambda *given: jax.lax.scan(step, *given))(begun, (FEATURES, TARGETS))
    for one, other in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)
    for one, other in zip(
        jax.tree.leaves(micro[1].multi_steps.inner_opt_state), jax.tree.leaves(full[1]), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_microbatching_equals_the_full_batch_without_a_wrapper() -> None:
    mean = optax.microbatching.AccumulationType.MEAN
    both = jax.value_and_grad(loss_of)
    in_parts = optax.microbatching.microbatch(both, (1, 2), 2, mean)
    results = []
    for gradient_of in (both, in_parts):
        optimizer = emo_optax.emo_sens(0.1)

        def step(of: Any, by: Any, params: Any, state: Any, features: Any, targets: Any) -> Any:
            loss, grads = of(params, features, targets)
            updates, state = by.update(grads, state, params, value=loss)
            return optax.apply_updates(params, updates), state

        step = jax.jit(functools.partial(step, gradient_of, optimizer))
        params = start()
        state = optimizer.init(params)
        for features, targets in zip(FEATURES, TARGETS, strict=True):
            params, state = step(params, state, features, targets)
        results.append((params, emo_optax.get_emotion(state)))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_loss_that_is_not_finite_makes_the_step_hold_its_loss(bad: float) -> None:
    optimizer = emo_optax.accumulate(emo_optax.emo_sens(0.1), 2)
    _, state = feed(optimizer, (1.0, 2.0, bad, 2.0, 4.0, bad, 3.0, 3.0))
    emotion = emo_optax.get_emotion(state)
    assert (int(emotion.felt), int(emotion.held)) == (2, 2)
    assert float(emotion.short) == pytest.approx(0.3 * 3.0 + 0.7 * 1.5)
    assert np.isfinite(state.loss)


def test_a_micro_batch_that_is_skipped_is_left_out_with_its_loss() -> None:
    optimizer = emo_optax.accumulate(recorder(), 2, optax.skip_not_finite)
    bad = GRADS * jnp.nan
    grads = (bad, GRADS, bad, bad, GRADS, GRADS, bad, GRADS)
    moved, state = feed(optimizer, (np.nan, 1.0, 50.0, np.nan, 3.0, 7.0, 60.0, 9.0), grads)
    np.testing.assert_array_equal(state.multi_steps.inner_opt_state[-3:], [0.0, 2.0, 8.0])
    np.testing.assert_array_equal([np.any(updates) for updates in moved], [0, 0, 0, 0, 1, 0, 0, 1])


@pytest.mark.parametrize("name", ["emo_sens", "ref_adamw_mini_schedule_free"])
def test_a_skip_by_a_member_leaves_its_state_alone(name: str) -> None:
    optimizer = emo_optax.accumulate(emo_optax.create_optimizer(name, 0.1), 2, optax.skip_not_finite)
    _, expected = feed(optimizer, (1.0, 3.0, 7.0))
    _, state = feed(optimizer, (1.0, np.nan, 3.0, 7.0), (GRADS, GRADS * jnp.inf, GRADS, GRADS))
    for one, other in zip(
        jax.tree.leaves(state._replace(multi_steps=state.multi_steps._replace(skip_state=()))),
        jax.tree.leaves(expected._replace(multi_steps=expected.multi_steps._replace(skip_state=()))),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_k_may_follow_a_schedule() -> None:
    optimizer = emo_optax.accumulate(recorder(), lambda step: jnp.where(step < 2, 1, 3))
    moved, state = feed(optimizer, (5.0, 6.0, 1.0, 2.0, 6.0, 10.0, 20.0, 90.0))
    np.testing.assert_array_equal(state.multi_steps.inner_opt_state[-5:], [0.0, 5.0, 6.0, 3.0, 40.0])
    assert [bool(np.any(updates)) for updates in moved] == [True, True] + [False, False, True] * 2


def test_equal_losses_have_themselves_as_their_mean_to_the_last_bit() -> None:
    losses = np.linspace(0.1, 7.3, 8, dtype=np.float32)
    _, state = feed(emo_optax.accumulate(recorder(), 7), np.repeat(losses, 7))
    np.testing.assert_array_equal(state.multi_steps.inner_opt_state, losses)


def test_it_works_in_a_chain_under_scan_and_donates() -> None:
    alone = emo_optax.emo_cats(0.1, use_shadow=True)
    optimizer = optax.chain(optax.clip(1.0), emo_optax.accumulate(alone, 2), optax.scale(2.0))
    params = jnp.ones(2)

    def step(carry: Any, loss: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(GRADS, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params: Any, state: Any, losses: Any) -> Any:
        return jax.lax.scan(step, (params, state), losses)[0]

    losses = jnp.asarray([1.0, 2.0, 1.0, 4.0])
    after, state = train(params, optimizer.init(params), losses)
    expected, inner = params, alone.init(params)
    for loss in (1.5, 2.5):
        updates, inner = alone.update(jnp.clip(GRADS, -1, 1), inner, expected, value=loss)
        expected = expected + 2.0 * updates
    np.testing.assert_allclose(after, expected, rtol=1e-6)
    assert int(emo_optax.get_emotion(state).felt) == 2
    leaves = [leaf for leaf in jax.tree.leaves(optimizer.init(params)) if leaf.size]
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    donating = jax.jit(lambda p, s: step((p, s), 1.0)[0], donate_argnums=(0, 1))
    donating(*donating(jnp.ones(2), optimizer.init(jnp.ones(2))))


def test_the_state_is_as_wide_as_the_parameters_and_keeps_its_dtypes() -> None:
    optimizer = emo_optax.accumulate(emo_optax.emo_sens(0.1), 2)
    with jax.enable_x64(True):
        for dtype in (jnp.float64, jnp.float32, jnp.bfloat16):
            wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
            params = jnp.ones(2, dtype)
            state = optimizer.init(params)
            after = jax.eval_shape(lambda s, p: optimizer.update(p, s, p, value=1.0)[1], state, params)
            assert state.loss.dtype == after.loss.dtype == wide
            assert not after.loss.weak_type
            for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
                assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_a_missing_or_misshaped_loss_is_refused() -> None:
    optimizer = emo_optax.accumulate(emo_optax.emo_sens(0.1), 2)
    params = jnp.ones(2)
    state = optimizer.init(params)
    with pytest.raises(emo_optax.LossMissingError):
        optimizer.update(GRADS, state, params)
    with pytest.raises(ValueError, match="must be a scalar"):
        optimizer.update(GRADS, state, params, value=jnp.ones(1))


def test_a_k_that_is_none_is_refused() -> None:
    k: Any
    for k in (0, -3, np.int64(0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            emo_optax.accumulate(emo_optax.emo_sens(0.1), k)
    for k in (2.0, True, None, "2"):
        with pytest.raises(TypeError, match="must be a whole number or a function"):
            emo_optax.accumulate(emo_optax.emo_sens(0.1), k)


def test_the_state_holds_nothing_but_arrays() -> None:
    state = emo_optax.accumulate(emo_optax.emo_sens(0.1), 2).init(jnp.ones(2))
    assert isinstance(state, emo_optax.AccumulateState)
    assert find_in_state(state, emo_optax.EmotionState) is not None
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
