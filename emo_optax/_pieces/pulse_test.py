"""The pulse by itself: its formulas, its options, and the schedule made from it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._pieces.pulse_reference_test import Memory, spiky_losses


@functools.cache
def _compiled(options: tuple[tuple[str, Any], ...]) -> Any:
    def run(losses: jax.Array, state: Any) -> Any:
        def step(state: Any, loss: jax.Array) -> Any:
            state = emo_optax.feel_pulse(state, loss, **dict(options))
            return state, state

        return jax.lax.scan(step, state, losses)[1]

    return jax.jit(run)


def feel(losses: Any, **options: Any) -> Any:
    """Returns the states after each loss."""
    losses = jnp.asarray(losses, jnp.result_type(float))
    ceiling = options.get("ceiling")
    state = emo_optax.init_pulse(losses.dtype, options.get("scope", 1.0), ceiling=ceiling)
    return _compiled(tuple(options.items()))(losses, state)


def with_gaps(losses: np.ndarray) -> np.ndarray:
    losses = losses.copy()
    losses[[0, 5, 30]] = np.nan, np.inf, -np.inf
    return losses


@pytest.mark.parametrize("kind", ["spiky", "gaps", "negative", "tiny", "zero first"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scope": 10.0},
        {"scope": 0.0},
        {"steady": True},
        {"spike_limit": 3.0},
        {"steady": True, "spike_limit": 1.5, "scope": 0.3},
        {"loss_unit": "first", "stopcoef": 0.6},
        {"loss_unit": 7.0, "stopcoef": 0.3},
        {"ceiling": 2e-4},
    ],
    ids=str,
)
def test_follows_the_definition(kind: str, options: dict[str, Any]) -> None:
    losses = spiky_losses()
    losses = {
        "spiky": losses,
        "gaps": with_gaps(losses),
        "negative": losses - 1.0,
        "tiny": losses * 1e-6,
        "zero first": np.concatenate([[0.0, 0.0], losses[:-2]]),
    }[kind]
    memory, rows = Memory(**options), []
    for loss in losses:
        memory.feel(float(loss))
        rows.append(
            {
                "short": memory.short,
                "medium": memory.medium,
                "long": memory.long,
                "scalar": memory.s,
                "level": memory.h,
                "noise": memory.n,
                "distance": memory.q,
                "course": memory.k,
                "unit": memory.first,
                "pulse": memory.pulse,
                "felt": memory.felt,
                "held": memory.held,
                "should_stop": memory.should_stop,
            }
        )
    with jax.enable_x64(True):
        states = jax.tree.map(np.asarray, feel(losses, **options))
    for name in rows[0]:
        found, expected = getattr(states, name), [row[name] for row in rows]
        if name in ("felt", "held", "should_stop"):
            np.testing.assert_array_equal(found, expected, err_msg=name)
            continue
        rtol, atol = (1e-11, 0.0) if name == "pulse" else (1e-12, 1e-12)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol, err_msg=name)
    if options.get("scope") == 0.0:
        assert memory.branches >= {"floor"}


def test_a_flat_loss_keeps_the_rate_of_one_spike_without_steady_and_not_with_it() -> None:
    random = np.random.default_rng(3)
    losses = 1.0 + 0.01 * random.normal(size=(601, 20))
    losses[300] *= 3.0
    ends = {}
    for steady in (False, True):
        runs = [np.asarray(feel(column, steady=steady).pulse) for column in losses.T]
        pulses = np.median(runs, axis=0)
        ends[steady] = pulses[[299, 300, 320, 600]]
    np.testing.assert_allclose(ends[False], [1.0e-4, 2.7e-3, 3.0e-3, 3.0e-3], rtol=0.15)
    np.testing.assert_allclose(ends[True], [1.0e-4, 5.0e-5, 1.1e-4, 1.0e-4], rtol=0.05)


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1000.0])
def test_with_the_first_loss_as_the_unit_no_unit_matters(unit: float) -> None:
    losses = np.maximum(np.exp(-np.arange(900) / 150.0), 0.01) + 0.003 * np.sin(np.arange(900))
    with jax.enable_x64(True):
        runs = {scale: feel(scale * losses, loss_unit="first") for scale in (1.0, unit)}
        np.testing.assert_allclose(runs[unit].pulse, runs[1.0].pulse, rtol=1e-11)
        np.testing.assert_array_equal(runs[unit].should_stop, runs[1.0].should_stop)
        assert bool(runs[1.0].should_stop.any())
        published = feel(unit * losses)
        assert bool(np.any(published.should_stop != feel(losses).should_stop))


def test_the_options_leave_quiet_and_falling_losses_alone() -> None:
    losses = 2.0 * np.exp(-np.arange(300) / 80.0)
    with jax.enable_x64(True):
        plain = feel(losses).pulse
        for options in ({"steady": True}, {"spike_limit": 3.0}, {"loss_unit": 1.0}):
            np.testing.assert_array_equal(feel(losses, **options).pulse, plain, err_msg=str(options))


def test_negative_losses_have_a_trend_of_their_own_in_a_unit() -> None:
    losses = np.linspace(-1.0, -3.0, 400)
    assert float(feel(losses).pulse[-1]) == pytest.approx(3e-3, rel=1e-5)
    assert float(feel(losses, loss_unit="first").pulse[-1]) < 1e-3


def test_the_stop_signal_is_not_latched() -> None:
    losses = np.concatenate([np.full(60, 0.01), np.full(10, 5.0)])
    stops = np.asarray(feel(losses).should_stop)
    assert stops[59]
    assert not stops[-1]


def test_a_held_loss_is_as_if_it_had_not_been() -> None:
    losses = spiky_losses()
    whole = np.insert(losses, [0, 0, 10, 40], [np.nan, np.inf, np.nan, -np.inf])
    kept = np.isfinite(whole)
    with jax.enable_x64(True):
        with_them, without = feel(whole), feel(losses)
        np.testing.assert_array_equal(with_them.pulse[kept], without.pulse)
        np.testing.assert_array_equal(with_them.level[kept], without.level)
        assert with_them.pulse[0] == with_them.pulse[1] == pytest.approx(1e-4, rel=1e-12)
        assert with_them.pulse[12] == with_them.pulse[11]
        assert int(with_them.held[-1]) == 4


def test_a_loss_that_the_averages_cannot_take_is_held() -> None:
    losses = jnp.asarray([3e38, -3e38, 1.0], jnp.float32)
    states = feel(losses)
    assert [int(held) for held in states.held] == [0, 1, 1]
    assert bool(jnp.all(jnp.isfinite(states.pulse)))
    with jax.debug_nans(True):
        state = emo_optax.init_pulse(jnp.float32)
        for loss in (np.nan, 1.0, np.inf, 2.0):
            value = jnp.asarray(1.0) if np.isnan(loss) else jnp.asarray(loss)
            state = emo_optax.feel_pulse(state, value, spike_limit=3.0, loss_unit="first")


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("learning_rate", (-1.0, float("inf"), float("nan"))),
        ("stopcoef", (-0.1, float("nan"), float("inf"))),
        ("steady", (1, "yes", None)),
        ("spike_limit", (1.0, 0.5, float("inf"), float("nan"), "3", True)),
        ("loss_unit", (0.0, -1.0, float("nan"), float("inf"), "last", True, (1.0,))),
    ],
)
@pytest.mark.parametrize("make", [emo_optax.scale_by_pulse, emo_optax.pulse_schedule, emo_optax.emo_tion])
def test_an_option_out_of_its_range_is_refused(make: Any, option: str, values: Any) -> None:
    for value in values:
        with pytest.raises((ValueError, TypeError), match=f"Invalid {option.replace('_', '[ _]')}"):
            make(**{option: value})
    with pytest.raises((ValueError, TypeError), match="Invalid"):
        emo_optax.pulse_schedule(ceiling=-1.0)
    with pytest.raises(TypeError, match="Invalid axis_name"):
        make(axis_name=3)


def test_a_state_of_another_kind_is_refused() -> None:
    state = emo_optax.init_pulse(jnp.float32)
    for wrong in ({"numbers": jnp.ones(9)}, {"numbers": jnp.ones(10, int)}, {"counts": jnp.ones(3)}):
        with pytest.raises(ValueError, match=f"pulse.{next(iter(wrong))}"):
            emo_optax.feel_pulse(state._replace(**wrong), jnp.asarray(1.0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_schedule_drives_any_optimizer(dtype: Any) -> None:
    schedule = emo_optax.pulse_schedule(50.0, ceiling=3e-3)
    optimizer = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(schedule))
    params, grads = jnp.ones(3, dtype), jnp.full(3, 0.5, dtype)
    state, memory, traces = optimizer.init(params), Memory(50.0, ceiling=3e-3), []
    assert float(state[1].hyperparams["learning_rate"]) == pytest.approx(3e-3)

    @jax.jit
    def step(state: Any, loss: Any) -> Any:
        traces.append(loss)
        return optimizer.update(grads, state, params, value=loss)

    for loss in with_gaps(spiky_losses(40)):
        updates, state = step(state, jnp.asarray(loss, jnp.float32))
        memory.feel(float(np.float32(loss)))
        assert float(state[1].hyperparams["learning_rate"]) == pytest.approx(memory.pulse, rel=2e-3)
        np.testing.assert_allclose(np.asarray(updates, float), -0.5 * memory.pulse, rtol=1e-2)
        pulse = emo_optax.get_pulse(state)
        assert int(pulse.felt) == memory.felt
        assert pulse.pulse.dtype == jnp.float32
    assert len(traces) == 1
    with pytest.raises(emo_optax.LossMissingError):
        optimizer.update(grads, state, params)


def test_the_pulse_stands_in_the_place_of_a_learning_rate() -> None:
    optimizer = optax.chain(optax.scale_by_adam(), emo_optax.scale_by_pulse(2.0, flip_sign=False))
    params = jnp.ones(3)
    state = optimizer.init(params)
    assert float(emo_optax.get_pulse(state).pulse) == pytest.approx(2e-4)
    updates, state = optimizer.update(params, state, params, value=1.0)
    np.testing.assert_allclose(updates, 2e-4, rtol=1e-5)
    shared = emo_optax.scale_by_pulse(shared=True)
    with pytest.raises(emo_optax.EmotionMissingError, match="share_pulse"):
        shared.update(params, shared.init(params))
    with pytest.raises(emo_optax.LossMissingError):
        optimizer.update(params, state, params)
    with pytest.raises(ValueError, match="no pulse in this state"):
        emo_optax.get_pulse(emo_optax.emo_sens().init(params))
