import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emo_optax

feel = jax.jit(emo_optax.feel)


def quiet(history: list[float] | np.ndarray, felt: int = 32, **bounds: float) -> bool:
    answer = emo_optax.went_quiet(jnp.asarray(history, jnp.float32), jnp.asarray(felt), **bounds)
    assert answer.shape == ()
    assert answer.dtype == jnp.bool_
    return bool(answer)


def test_quiet_takes_32_losses() -> None:
    assert quiet(np.zeros(32), felt=32)
    assert quiet(np.zeros(32), felt=1000)
    assert not quiet(np.zeros(32), felt=31)
    assert not quiet(np.zeros(32), felt=0)


def test_the_mean_is_taken_of_absolute_values_and_must_lie_below_its_bound() -> None:
    swinging = np.tile([0.06, -0.06], 16)  # mean 0, mean of sizes 0.06, variance 0.0036
    assert not quiet(swinging)
    assert quiet(swinging * 0.8)
    assert quiet(np.full(32, -0.049))
    assert not quiet(np.full(32, -0.051))
    assert not quiet(np.full(32, 0.0625), mean_below=0.0625)
    assert quiet(np.full(32, 0.0625), mean_below=0.0626)


def test_the_variance_is_taken_over_32_and_must_lie_below_its_bound() -> None:
    # One scalar of x among zeros: the mean is x/32, the variance x^2 31/32^2 (over 32).
    one = np.zeros(32)
    one[5] = np.sqrt(0.00498 * 32**2 / 31)  # 0.00514 over 31, above the bound
    assert quiet(one)
    one[5] = np.sqrt(0.00502 * 32**2 / 31)
    assert not quiet(one)
    # The mean is taken away: a constant has none.
    assert quiet(np.full(32, 0.5), mean_below=0.6, variance_below=1e-6)


def test_both_bounds_are_strict() -> None:
    halves = np.tile([0.5, -0.5], 16)  # mean of sizes 0.5, variance 0.25, both exact
    assert not quiet(halves, mean_below=0.5, variance_below=1.0)
    assert not quiet(halves, mean_below=1.0, variance_below=0.25)
    assert quiet(halves, mean_below=0.501, variance_below=0.251)


def test_a_constant_loss_stops_at_the_32nd_step_and_not_before() -> None:
    state = emo_optax.init_emotion(jnp.float32)
    stops = []
    for _ in range(33):
        state = feel(state, jnp.asarray(0.7))
        stops.append(bool(state.should_stop))
    assert stops == [False] * 31 + [True] * 2


def test_losses_held_do_not_count_towards_the_32() -> None:
    state = emo_optax.init_emotion(jnp.float32)
    for _ in range(31):
        state = feel(state, jnp.asarray(0.7))
    for _ in range(5):
        state = feel(state, jnp.asarray(np.nan, jnp.float32))
    assert not state.should_stop
    assert bool(feel(state, jnp.asarray(0.7)).should_stop)


def test_a_loss_held_neither_sets_nor_clears_the_signal() -> None:
    state = emo_optax.init_emotion(jnp.float32)
    # A history as quiet as this would stop, were a loss felt.
    state = state.replace(felt=jnp.asarray(40, jnp.int32))
    assert not feel(state, jnp.asarray(np.nan, jnp.float32)).should_stop
    state = state.replace(should_stop=jnp.asarray(True))
    assert bool(feel(state, jnp.asarray(np.nan, jnp.float32)).should_stop)


@pytest.mark.parametrize("after", [[50.0] * 3, [np.nan, 50.0]])
def test_the_signal_stays_set(after: list[float]) -> None:
    state = emo_optax.init_emotion(jnp.float32)
    for loss in [0.7] * 32 + after:
        state = feel(state, jnp.asarray(loss, jnp.float32))
    assert float(state.scalar) > 0.9
    assert bool(state.should_stop)


def test_restless_losses_never_stop() -> None:
    state = emo_optax.init_emotion(jnp.float32)
    for step in range(100):
        state = feel(state, jnp.asarray(1.0 + 0.2 * (-1) ** step, jnp.float32))
    assert not state.should_stop


def test_a_late_quiet_of_32_steps_stops() -> None:
    state = emo_optax.init_emotion(jnp.float32)
    for loss in [1.0, 1.05] + [1.0] * 20:  # the long average stays within 5e-4 of 1
        state = feel(state, jnp.asarray(loss, jnp.float32))
    state = feel(state, jnp.asarray(2.0))
    stops = []
    # Held up by the spike's scalars (up to 0.9) until the last of them leaves the window.
    for _ in range(60):
        state = feel(state, jnp.asarray(1.0))
        stops.append(bool(state.should_stop))
    assert not any(stops[:31])
    assert stops[-1]
