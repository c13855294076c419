from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax


def test_one_signal_stays_and_the_other_is_of_now() -> None:
    stop = emo_optax.early_stop()
    state, update = stop.init(), jax.jit(stop.update)
    seen = []
    for loss in [0.7] * 33 + [9.0] + [0.7] * 5:
        state = update(state, loss)
        seen.append((bool(state.should_stop), bool(state.is_quiet)))
    assert seen == [(False, False)] * 31 + [(True, True)] * 2 + [(True, False)] * 6


def test_the_monitor_gives_the_signals_of_an_optimizer() -> None:
    stop, tracker = emo_optax.early_stop(), optax.chain(optax.sgd(0.1), emo_optax.track_emotion())

    @jax.jit
    def step(state: emo_optax.EarlyStopState, tracked: optax.OptState, loss: jax.Array) -> tuple:  # type: ignore[type-arg]
        _, tracked = tracker.update(jnp.ones(1), tracked, value=loss)
        return stop.update(state, loss), tracked

    state, tracked = stop.init(), tracker.init(jnp.ones(1))
    for loss in [1.0, np.nan, 1.1] + [1.05] * 300 + [5.0]:
        state, tracked = step(state, tracked, loss)
        emotion = emo_optax.get_emotion(tracked)
        assert (emotion.should_stop, emotion.is_quiet) == (state.should_stop, state.is_quiet)
    assert bool(state.should_stop)
    assert not state.is_quiet
    assert int(emo_optax.get_emotion(state).held) == 1


def test_it_runs_inside_a_loop_of_jax() -> None:
    stop = emo_optax.early_stop()
    state = jax.lax.while_loop(
        lambda state: ~state.should_stop, lambda state: stop.update(state, 0.5), stop.init()
    )
    assert int(state.emotion.felt) == 32


def test_bounds_and_gain_are_options() -> None:
    quiet = []
    choices: tuple[dict[str, Any], ...] = ({}, {"gain": 0.1}, {"mean_below": 1.0, "variance_below": 1.0})
    for options in choices:
        stop = emo_optax.early_stop(**options)
        state, update = stop.init(), jax.jit(stop.update)
        for step in range(60):
            state = update(state, 1.0 + 0.1 * (-1) ** step)
        quiet.append((bool(state.is_quiet), bool(state.should_stop)))
    assert quiet == [(False, False), (True, True), (True, True)]


@pytest.mark.parametrize("name", ["short_factor", "long_factor", "mean_below", "variance_below", "gain"])
def test_bad_options_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"Invalid {name}"):
        emo_optax.early_stop(**{name: -1.0})  # type: ignore[arg-type]


def test_a_loss_that_is_none_or_no_scalar_is_refused() -> None:
    stop = emo_optax.early_stop()
    with pytest.raises(emo_optax.LossMissingError):
        stop.update(stop.init(), None)
    with pytest.raises(ValueError, match="must be a scalar"):
        stop.update(stop.init(), jnp.ones(2))
