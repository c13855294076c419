"""The values of the metrics, and their cost: nothing without a call."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

NAMES = [
    *("short", "long", "scalar", "step_scale", "shadow_ratio", "learning_rate", "masked_share"),
    *("should_stop", "is_quiet", "felt", "held"),
]
PARAMS = {"w": jnp.ones((2, 4)), "b": jnp.ones(6, jnp.bfloat16)}
GRADS = jax.tree.map(
    lambda param: (np.arange(param.size) % 2).reshape(param.shape).astype(param.dtype), PARAMS
)


def step(optimizer: Any, state: Any, *losses: float) -> Any:
    """Takes steps on gradients of which a half is 0."""
    update = jax.jit(lambda state, loss: optimizer.update(GRADS, state, PARAMS, value=loss)[1])
    for loss in losses:
        state = update(state, loss)
    return state


def test_the_metrics_are_the_emotion_and_what_it_does() -> None:
    optimizer = emo_optax.emo_sens(0.1, use_shadow=True)
    state = step(optimizer, optimizer.init(PARAMS), 2.0, 1.0, float("nan"), 1.5)
    emotion = emo_optax.get_emotion(state)
    metrics = emo_optax.get_metrics(state, grads=GRADS, learning_rate=0.1)
    assert list(metrics) == [f"emotion/{name}" for name in NAMES]
    assert {type(value) for value in metrics.values()} == {float}
    for name in ("short", "long", "scalar", "step_scale", "shadow_ratio", "felt", "held"):
        assert metrics[f"emotion/{name}"] == float(getattr(emotion, name))
    assert metrics["emotion/shadow_ratio"] > 0.1
    assert metrics["emotion/learning_rate"] == pytest.approx(0.1 * (1 - abs(float(emotion.scalar))))
    assert metrics["emotion/masked_share"] == 0.5
    assert (metrics["emotion/felt"], metrics["emotion/held"]) == (3.0, 1.0)
    assert (metrics["emotion/should_stop"], metrics["emotion/is_quiet"]) == (0.0, 0.0)
    metrics = emo_optax.get_metrics(step(optimizer, state, *[1.5] * 500))
    assert (metrics["emotion/should_stop"], metrics["emotion/is_quiet"]) == (1.0, 1.0)


def test_what_was_not_given_is_left_out() -> None:
    state = emo_optax.emo_sens().init(PARAMS)
    metrics = emo_optax.get_metrics(state)
    assert not {"emotion/learning_rate", "emotion/masked_share"} & metrics.keys()
    assert "emotion/masked_share" not in emo_optax.get_metrics(state, grads={"w": jnp.zeros((0, 2))})


def test_the_learning_rate_is_as_it_is_where_the_rule_does_not_scale() -> None:
    optimizer = emo_optax.emo_navi(0.5)
    state = step(optimizer, optimizer.init(PARAMS), 2.0, 1.0)
    metrics = emo_optax.get_metrics(state, grads=GRADS, learning_rate=0.5, shadow_effect=False)
    assert metrics["emotion/step_scale"] < 0.9
    assert metrics["emotion/learning_rate"] == 0.5
    assert metrics["emotion/masked_share"] == 0.0


def test_the_share_is_that_of_the_elements_that_do_not_move() -> None:
    keeps = {
        emo_optax.emo_sens: emo_optax.keep_elements,
        emo_optax.emo_airy: emo_optax.keep_rows_and_columns(1e-8),
        emo_optax.emo_cats: emo_optax.keep_elements,
    }
    for make, keep in keeps.items():
        optimizer = make(1e-3, theta=0.2, weight_decay=0.0)
        grads = jnp.linspace(-0.2, 0.2, 30).reshape(6, 5)
        params = jnp.full((6, 5), 2.0)
        updates, state = optimizer.update(grads, optimizer.init(params), params, value=1.0)
        share = float(jnp.mean(updates == 0))
        assert 0.0 < share < 1.0
        metrics = emo_optax.get_metrics(state, grads=grads, theta=0.2, keep=keep)
        assert metrics["emotion/masked_share"] == pytest.approx(share)


@pytest.mark.parametrize("name", ["chain", "accumulating", "emotional", "partition", "injected"])
def test_wrapped_states_have_metrics(name: str) -> None:
    wrapped: dict[str, Any] = {
        "chain": optax.chain(optax.clip_by_global_norm(1.0), emo_optax.emo_sens(0.1)),
        "accumulating": optax.MultiSteps(emo_optax.emo_sens(0.1), 1),
        "emotional": emo_optax.emotional(optax.adamw(0.1)),
        "partition": optax.partition({"a": emo_optax.emo_sens(0.1)}, {"w": "a", "b": "a"}),
        "injected": optax.inject_hyperparams(emo_optax.emo_sens)(0.1),
    }
    optimizer = wrapped[name]
    state = step(optimizer, optimizer.init(PARAMS), 2.0, 1.0)
    metrics = emo_optax.get_metrics(state)
    assert metrics["emotion/felt"] == 2.0
    assert metrics["emotion/scalar"] == pytest.approx(-0.8957, abs=1e-3)


def test_arrays_are_handed_out_inside_of_jit_and_scan() -> None:
    optimizer = emo_optax.emo_sens(0.1)
    schedule = optax.linear_schedule(0.1, 0.0, 10)

    def body(carry: Any, loss: jax.Array) -> Any:
        state, count = carry
        _, state = optimizer.update(GRADS, state, PARAMS, value=loss)
        rate = schedule(count)
        metrics = emo_optax.get_metrics(state, grads=GRADS, learning_rate=rate, as_floats=False)
        return (state, count + 1), metrics

    losses = jnp.asarray([2.0, 1.0, 3.0])
    (state, _), metrics = jax.lax.scan(body, (optimizer.init(PARAMS), 0), losses)
    assert {value.shape for value in metrics.values()} == {(3,)}
    numbers = emo_optax.get_metrics(state, grads=GRADS, learning_rate=schedule(2))
    assert {name: float(value[-1]) for name, value in metrics.items()} == pytest.approx(numbers)


def test_numbers_inside_of_jit_are_refused() -> None:
    state = emo_optax.emo_sens().init(PARAMS)
    with pytest.raises(TypeError, match="as_floats=False"):
        jax.jit(emo_optax.get_metrics)(state)


def test_numbers_are_fetched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = emo_optax.emo_sens(0.1)
    state = step(optimizer, optimizer.init(PARAMS), 2.0, 1.0)
    emo_optax.get_metrics(state, grads=GRADS, learning_rate=0.1)
    fetched = []

    def asarray(value: Any, *rest: Any, own: Any = np.asarray, **options: Any) -> Any:
        if isinstance(value, jax.Array):
            fetched.append(value.shape)
        return own(value, *rest, **options)

    monkeypatch.setattr("emo_optax._wrappers.metrics.np.asarray", asarray)
    emo_optax.get_metrics(state, grads=GRADS, learning_rate=0.1)
    assert fetched == [(len(NAMES),)]


def test_counts_and_float64_come_through_whole() -> None:
    with jax.enable_x64(True):
        optimizer = emo_optax.emo_sens(0.1)
        params = jnp.ones(2, jnp.float64)
        _, state = optimizer.update(params, optimizer.init(params), params, value=0.1)
        assert emo_optax.get_metrics(state)["emotion/long"] == 0.1
    state = emo_optax.track_emotion().init(PARAMS)
    state = state._replace(emotion=state.emotion.replace(felt=2**24 + 1))
    assert emo_optax.get_metrics(state)["emotion/felt"] == 2**24 + 1


def test_bad_input_is_refused() -> None:
    state = emo_optax.emo_sens().init(PARAMS)
    with pytest.raises(TypeError, match=r"pass its value at the step"):
        emo_optax.get_metrics(state, learning_rate=optax.constant_schedule(0.1))
    with pytest.raises(ValueError, match="Invalid theta"):
        emo_optax.get_metrics(state, grads=GRADS, theta=-1.0)
    with pytest.raises(ValueError, match="no emotion in this state"):
        emo_optax.get_metrics(optax.adam(0.1).init(PARAMS))
    with pytest.raises(ValueError, match=r"must be one number, and has the shape \(2,\)"):
        emo_optax.get_metrics(state, learning_rate=jnp.ones(2))


@pytest.mark.parametrize("name", ["emo_sens", "emo_pilot", "emo_sens3", "emo_navi36"])
def test_a_state_of_many_models_has_arrays_and_no_numbers(name: str) -> None:
    optimizer = emo_optax.create_optimizer(name)
    params = jnp.ones((3, 2))
    state = jax.vmap(optimizer.init)(params)
    losses = jnp.asarray([1.0, 2.0, 3.0])
    _, state = jax.vmap(lambda g, s, p, v: optimizer.update(g, s, p, value=v))(
        params, state, params, losses
    )
    with pytest.raises(ValueError, match=r"batch axis.*shape \(3,\).*as_floats=False"):
        emo_optax.get_metrics(state)
    metrics = emo_optax.get_metrics(state, as_floats=False)
    title = next(name for name in metrics if name.endswith("/long"))
    np.testing.assert_array_equal(metrics[title], losses)
