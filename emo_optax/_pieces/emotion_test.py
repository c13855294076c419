from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax import EmotionState
from emo_optax._members.reference_test import spiky_losses

feel = jax.jit(emo_optax.feel)


def feel_all(losses: Any, dtype: Any = jnp.float32, **options: float) -> EmotionState:
    step = jax.jit(lambda state, loss: emo_optax.feel(state, loss, **options))
    state = emo_optax.init_emotion(dtype)
    for loss in losses:
        state = step(state, jnp.asarray(loss, dtype))
    return state


def same(state: EmotionState, other: EmotionState, *, but: tuple[str, ...] = ()) -> bool:
    return all(
        np.array_equal(getattr(state, name), getattr(other, name))
        for name in EmotionState.parts()
        if name not in but
    )


def test_before_any_loss_everything_is_zero() -> None:
    state = emo_optax.init_emotion(jnp.float32)
    assert [np.shape(value) for value in state.named().values()] == [(), (), (), (), (), (32,), ()]
    assert not any(np.any(np.asarray(value)) for value in state.named().values())


def test_averages_start_at_the_first_loss_so_the_first_scalar_is_zero() -> None:
    state = feel_all([-3.5])
    assert (float(state.short), float(state.long), float(state.scalar)) == (-3.5, -3.5, 0.0)
    assert int(state.felt) == 1


def test_three_losses_give_the_averages_and_scalar_made_by_hand() -> None:
    with jax.enable_x64(True):
        state = feel_all([2.0, 1.0, 3.0], jnp.float64)
    # short: 2, 1.7, 2.09; long: 2, 1.99, 2.0001
    assert float(state.short) == pytest.approx(2.09, abs=1e-14)
    assert float(state.long) == pytest.approx(2.0001, abs=1e-14)
    assert float(state.scalar) == pytest.approx(np.tanh(5 * 0.0899), abs=1e-14)
    np.testing.assert_allclose(state.history[-3:], [0, np.tanh(-1.45), np.tanh(0.4495)], atol=1e-14)
    assert not np.any(np.asarray(state.history[:-3]))


def test_scalar_is_above_zero_where_the_loss_is_above_its_trend() -> None:
    assert float(feel_all([1.0, 1.1]).scalar) > 0.1
    assert float(feel_all([1.0, 0.9]).scalar) < -0.1


def test_factors_and_gain_are_options() -> None:
    with jax.enable_x64(True):
        state = feel_all([1.0, 3.0], jnp.float64, short_factor=0.5, long_factor=0.25, gain=0.8)
    assert (float(state.short), float(state.long)) == (2.0, 1.5)
    assert float(state.scalar) == pytest.approx(np.tanh(0.4), abs=1e-14)


@pytest.mark.parametrize("option", ["short_factor", "long_factor", "gain"])
@pytest.mark.parametrize(
    "piece",
    [
        emo_optax.track_emotion,
        lambda **options: emo_optax.share_emotion(emo_optax.scale_by_emotion(), **options),
    ],
)
def test_pieces_with_an_emotion_of_their_own_take_its_options(piece: Any, option: str) -> None:
    states = []
    for optimizer in (piece(), piece(**{option: 0.7})):
        state = optimizer.init(jnp.ones(1))
        for loss in (1.0, 1.5):
            _, state = optimizer.update(jnp.ones(1), state, jnp.ones(1), value=loss)
        states.append(emo_optax.get_emotion(state))
    expected = {
        "short_factor": (1.35, 1.005, np.tanh(5 * 0.345)),
        "long_factor": (1.15, 1.35, np.tanh(-1.0)),
        "gain": (1.15, 1.005, np.tanh(0.7 * 0.145)),
    }[option]
    np.testing.assert_allclose(states[1][:3], expected, rtol=1e-6)
    np.testing.assert_allclose(states[0][:3], (1.15, 1.005, np.tanh(0.725)), rtol=1e-6)


def test_history_is_a_queue_of_the_last_32_scalars() -> None:
    losses = spiky_losses(40)
    scalars = []
    state = emo_optax.init_emotion(jnp.float32)
    for loss in losses:
        state = feel(state, jnp.asarray(loss, jnp.float32))
        scalars.append(float(state.scalar))
    np.testing.assert_array_equal(state.history, np.asarray(scalars[8:], np.float32))


def test_a_constant_loss_leaves_both_averages_alone_to_the_last_bit() -> None:
    for loss in (0.1, 1234.567, 3e38):
        state = feel_all([loss] * 20)
        assert float(state.short) == float(state.long) == np.float32(loss)
        assert float(state.scalar) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_changes_nothing_but_the_count_held(bad: float) -> None:
    before = feel_all(spiky_losses(10))
    after = feel(before, jnp.asarray(bad, jnp.float32))
    assert same(before, after, but=("held",))
    assert (int(before.held), int(after.held)) == (0, 1)


def test_averages_start_at_the_first_finite_loss() -> None:
    state = feel_all([np.nan, np.inf, 4.0])
    assert (float(state.short), float(state.long), float(state.scalar)) == (4.0, 4.0, 0.0)
    assert (int(state.felt), int(state.held)) == (1, 2)


def test_losses_held_leave_no_trace_in_what_follows() -> None:
    losses = spiky_losses(50)
    broken = np.insert(losses, [0, 0, 5, 20, 20, 20, 49], [np.nan, np.inf, -np.inf, *[np.nan] * 4])
    with_gaps, without = feel_all(broken), feel_all(losses)
    assert same(with_gaps, without, but=("held",))
    assert int(with_gaps.held) == 7


def test_only_losses_that_are_not_finite_leave_the_emotion_at_rest() -> None:
    state = feel_all([np.nan] * 40)
    assert same(state, emo_optax.init_emotion(jnp.float32), but=("held",))
    assert int(state.held) == 40


def test_huge_finite_losses_of_both_signs_do_not_poison() -> None:
    huge = float(np.finfo(np.float32).max)
    state = feel_all([huge, -huge, huge, -huge, 0.0, 1e38, -1e38])
    assert all(np.all(np.isfinite(np.asarray(field))) for field in state)
    assert int(state.felt) + int(state.held) == 7
    assert -1.0 <= float(state.scalar) <= 1.0
    for _ in range(600):
        state = feel(state, jnp.asarray(0.5))
    assert float(state.short) == pytest.approx(0.5, abs=1e-5)
    assert np.isfinite(float(state.long))


def test_gain_of_zero_feels_nothing_even_for_huge_losses() -> None:
    huge = float(np.finfo(np.float32).max)
    losses = [-huge, *[0.0] * 30, *[0.9 * huge] * 12]
    state = feel_all(losses, gain=0.0)
    assert float(state.scalar) == 0.0


def test_share_emotion_feels_once_and_hands_the_emotion_to_everything_inside() -> None:
    seen = []

    def spy(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params
        seen.append((extra["emotion"], extra["value"], extra["more"]))
        return updates, state

    watcher = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), spy)
    optimizer = emo_optax.share_emotion(optax.chain(watcher, optax.scale(2.0), watcher))
    params = jnp.ones(2)
    updates, state = optimizer.update(params, optimizer.init(params), params, value=1.5, more="kept")
    np.testing.assert_array_equal(updates, [2.0, 2.0])
    assert [(value, more) for _, value, more in seen] == [(1.5, "kept")] * 2
    assert all(same(emotion, state.emotion) for emotion, _, _ in seen)
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)


def test_an_inner_emotion_of_its_own_is_not_the_one_around_it() -> None:
    optimizer = emo_optax.share_emotion(
        emo_optax.share_emotion(emo_optax.scale_by_emotion(), gain=0.0), gain=5.0
    )
    state = optimizer.init(jnp.ones(1))
    for loss in (1.0, 2.0):
        updates, state = optimizer.update(jnp.ones(1), state, value=loss)
    assert float(state.emotion.scalar) > 0.8
    np.testing.assert_array_equal(updates, [1.0])


def test_track_emotion_passes_the_updates_unchanged() -> None:
    optimizer = optax.chain(emo_optax.track_emotion(), optax.sgd(0.5))
    grads = {"w": jnp.asarray([1.0, -2.0]), "b": jnp.asarray(3.0, jnp.bfloat16)}
    state = optimizer.init(grads)
    for loss in (1.0, 9.0):
        updates, state = optimizer.update(grads, state, value=loss)
    np.testing.assert_array_equal(updates["w"], [-0.5, 1.0])
    assert updates["b"].dtype == jnp.bfloat16
    assert float(emo_optax.get_emotion(state).scalar) > 0.9


def test_emotion_is_float64_where_a_parameter_is() -> None:
    optimizer = emo_optax.track_emotion()
    with jax.enable_x64(True):
        double = optimizer.init({"a": jnp.ones(1, jnp.float32), "b": jnp.ones(1, jnp.float64)})
        single = optimizer.init({"a": jnp.ones(1, jnp.float32), "b": jnp.ones(1, jnp.bfloat16)})
    assert (double.emotion.numbers.dtype, single.emotion.numbers.dtype) == (np.float64, np.float32)
    assert {each.emotion.counts.dtype for each in (double, single)} == {np.dtype(np.int32)}


@pytest.mark.parametrize("option", ["short_factor", "long_factor", "gain"])
def test_a_numpy_double_as_an_option_does_not_widen_the_emotion(option: str) -> None:
    with jax.enable_x64(True):
        optimizer = emo_optax.track_emotion(**{option: np.float64(0.5)})  # type: ignore[arg-type]
        params = jnp.ones(1, jnp.float32)
        before = optimizer.init(params)
        _, after = optimizer.update(params, before, params, value=1.0)
    assert [a.dtype for a in after.emotion] == [b.dtype for b in before.emotion]


def test_each_field_of_a_new_emotion_has_a_buffer_of_its_own() -> None:
    fields = emo_optax.init_emotion(jnp.float32)
    assert len({field.unsafe_buffer_pointer() for field in fields}) == len(fields)
