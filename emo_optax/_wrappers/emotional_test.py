from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.reference_test import find_in_state

SCALE = 1 - np.tanh(0.725)
"""The step scale after the losses 1 and 1.5, or 1 and 0.5: short - long = 0.145 in size."""


def step(optimizer: Any, grads: Any, params: Any, losses: Any) -> tuple[Any, Any]:
    """Repeats the same gradient at the same parameters and returns the last updates and state."""
    state = optimizer.init(params)
    for loss in losses:
        updates, state = optimizer.update(grads, state, params, value=loss)
    return updates, state


@pytest.mark.parametrize(
    "inner",
    [
        optax.sgd(0.1, momentum=0.9),
        optax.adam(0.1),
        optax.adamw(0.1, weight_decay=0.1),
        optax.lion(0.1),
        optax.rmsprop(0.1),
        optax.adafactor(0.1, min_dim_size_to_factor=2),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adabelief(optax.linear_schedule(0.1, 0.2, 5))),
    ],
)
def test_any_optimizer_made_emotional_takes_its_own_step_scaled_and_filtered(inner: Any) -> None:
    params = {"w": jnp.asarray([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.asarray([0.5, 1.0])}
    grads = {"w": jnp.asarray([[0.3, -0.1], [0.0, 2.0]]), "b": jnp.asarray([0.0, 1.0])}
    state, emotional_state = inner.init(params), (made := emo_optax.emotional(inner)).init(params)
    for loss, scale in ((1.0, 1.0), (1.5, SCALE)):
        plain, state = inner.update(grads, state, params)
        updates, emotional_state = made.update(grads, emotional_state, params, value=loss)
        for name, gradient in grads.items():
            expected = np.where(gradient == 0.0, 0.0, plain[name] * scale)
            np.testing.assert_allclose(updates[name], expected, rtol=2e-6, atol=1e-9)


def test_without_the_shadow_effect_only_the_emotion_is_added() -> None:
    params = jnp.asarray([1.0, 2.0])
    made = emo_optax.emotional(optax.sgd(0.5, momentum=0.9), shadow_effect=False)
    grads = jnp.asarray([1.0, 0.0])
    updates, state = step(made, grads, params, (1.0, 1.5))
    np.testing.assert_allclose(updates, [-0.95, 0.0])
    assert float(emo_optax.get_emotion(state).scalar) == pytest.approx(1 - SCALE, rel=1e-6)


def test_theta_and_keep_reach_the_filter() -> None:
    params = jnp.zeros((2, 2))
    grads = jnp.asarray([[0.4, 1.0], [0.4, 0.4]])
    made = emo_optax.emotional(optax.sgd(1.0), theta=0.8)  # 0.512 at rest
    np.testing.assert_allclose(step(made, grads, params, (1.0,))[0], [[0, -1], [0, 0]])
    keep = emo_optax.keep_rows_and_columns(0.0)  # means: rows 0.58, 0.16; columns 0.16, 0.58
    made = emo_optax.emotional(optax.sgd(1.0), theta=0.8, keep=keep)
    np.testing.assert_allclose(step(made, grads, params, (1.0,))[0], [[0, -1], [0, 0]])
    made = emo_optax.emotional(optax.sgd(1.0), theta=0.5, keep=keep)
    np.testing.assert_allclose(step(made, grads, params, (1.0,))[0], -grads)


@pytest.mark.parametrize(
    ("option", "expected"),
    [("short_factor", 0.345), ("long_factor", 0.2), ("gain", 0.145 * 0.14)],
)
def test_options_of_the_emotion_reach_it(option: str, expected: float) -> None:
    # 0.7: short 1.35; long 1.35 against 1.15, so s < 0; gain 0.7 against 5.
    options: dict[str, Any] = {option: 0.7}
    made = emo_optax.emotional(optax.sgd(1.0), **options)
    _, state = step(made, jnp.ones(1), jnp.ones(1), (1.0, 1.5))
    sign = -1 if option == "long_factor" else 1
    scalar = float(emo_optax.get_emotion(state).scalar)
    assert scalar == pytest.approx(sign * np.tanh(5 * expected), rel=1e-5)


def test_the_shadow_comes_before_the_inner_optimizer_and_is_not_scaled() -> None:
    made = emo_optax.emotional(
        optax.sgd(1.0), use_shadow=True, shadow_ratio=lambda s: 0.25 + 0 * s, shadow_rate=0.5
    )
    state = made.init(jnp.zeros(1))
    updates, state = made.update(jnp.ones(1), state, jnp.asarray([4.0]), value=1.0)
    np.testing.assert_array_equal(updates, [-1.0])
    # The blend of 8 with 4 is 7, whatever the scale; the shadow goes halfway there.
    updates, state = made.update(jnp.ones(1), state, jnp.asarray([8.0]), value=1.5)
    np.testing.assert_allclose(updates, [-1 - SCALE], rtol=1e-6)
    np.testing.assert_allclose(find_in_state(state, emo_optax.BlendWithShadowState).shadow, [5.5])
    assert float(emo_optax.get_emotion(state).shadow_ratio) == 0.25


def test_without_the_shadow_no_copy_of_the_parameters_is_kept() -> None:
    params = jnp.zeros(1000)
    for member in (emo_optax.emo_sens, emo_optax.emo_airy, emo_optax.emo_cats):
        sizes = [
            sum(leaf.size for leaf in jax.tree.leaves(member(use_shadow=on).init(params)))
            for on in (False, True)
        ]
        assert sizes[1] - sizes[0] == 1002


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_updates_have_the_parameters_dtypes_and_are_rounded_once(dtype: Any) -> None:
    params = jnp.asarray([3.0, -1.0], dtype)
    made = emo_optax.emotional(optax.sgd(1.0))
    updates, _ = step(made, jnp.asarray([0.1, 0.7], jnp.float32), params, (1.0, 1.5))
    assert updates.dtype == dtype
    exact = jnp.asarray(-np.asarray([0.1, 0.7], np.float32) * np.float32(SCALE)).astype(dtype)
    np.testing.assert_allclose(
        updates.astype(jnp.float32), exact.astype(jnp.float32), rtol=1e-6 if dtype == jnp.float32 else 0
    )


def test_complex_parameters_are_refused_by_name() -> None:
    params = {"net": {"w": jnp.ones(2), "z": jnp.ones(2, jnp.complex64)}}
    for optimizer in (
        emo_optax.emotional(optax.sgd(0.1)),
        emo_optax.emo_sens(),
        emo_optax.emo_airy(),
        emo_optax.emo_cats(),
    ):
        with pytest.raises(ValueError, match=r"params\['net'\]\['z'\] is complex") as caught:
            optimizer.init(params)
        assert "two real parameters" in str(caught.value)


def test_a_member_is_its_pieces_put_together() -> None:
    pieces = emo_optax.emotional(
        optax.chain(
            emo_optax.filter_by_emotion(emo_optax.scale_by_uncorrected_adam()),
            emo_optax.scale_by_emotion(),
            emo_optax.add_weight_decay(0.01),
            optax.scale_by_learning_rate(0.1),
        ),
        shadow_effect=False,
        use_shadow=True,
    )
    params = jnp.asarray([1.0, -2.0])
    grads = jnp.asarray([0.5, 0.0])
    losses = (1.0, 1.5, 1.6, 0.2)
    expected, _ = step(emo_optax.emo_sens(0.1, use_shadow=True), grads, params, losses)
    np.testing.assert_array_equal(step(pieces, grads, params, losses)[0], expected)


def test_a_look_at_the_emotion_shows_it_all() -> None:
    losses = (1.0, 1.5, np.nan, 1.5)
    optimizer = emo_optax.emo_sens(use_shadow=True)
    _, state = step(optimizer, jnp.ones(1), jnp.ones(1), losses)
    emotion = emo_optax.get_emotion(state)
    s = np.tanh(5 * (1.255 - 1.00995))
    np.testing.assert_allclose(
        [float(field) for field in emotion], [1.255, 1.00995, s, 1 - s, s, 0, 0, 3, 1], rtol=1e-6
    )
    assert emotion._fields == (
        "short", "long", "scalar", "step_scale", "shadow_ratio", "should_stop", "is_quiet", "felt", "held",
    )  # fmt: skip
    assert all(isinstance(field, jax.Array) and field.shape == () for field in emotion)
    assert [field.dtype for field in emotion] == [np.float32] * 5 + [np.bool_] * 2 + [np.int32] * 2


def test_a_look_at_an_optimizer_without_shadow_shows_a_ratio_of_zero() -> None:
    _, state = step(emo_optax.emo_cats(), jnp.ones(1), jnp.ones(1), (1.0, 9.0))
    emotion = emo_optax.get_emotion(state)
    assert float(emotion.shadow_ratio) == 0.0
    assert emotion.shadow_ratio.dtype == np.float32
    assert float(emotion.step_scale) == 1 - abs(float(emotion.scalar))


def test_a_look_at_a_state_without_emotion_says_so() -> None:
    states: list[Any] = [optax.adam(0.1).init(jnp.ones(1)), (), None, {}]
    for state in states:
        with pytest.raises(ValueError, match="no emotion in this state"):
            emo_optax.get_emotion(state)


def test_a_step_on_a_loss_held_uses_the_scalar_of_the_last_one_felt() -> None:
    params, grads = jnp.asarray([1.0]), jnp.asarray([1.0])
    for bad in (np.nan, np.inf, -np.inf):
        for losses in ((1.0, 1.5, bad), (bad, 1.0, bad, 1.5, bad, bad)):
            made = emo_optax.emotional(optax.sgd(1.0))
            updates, state = step(made, grads, params, losses)
            np.testing.assert_allclose(updates, [-SCALE], rtol=1e-6)
            assert int(emo_optax.get_emotion(state).held) == len(losses) - 2


def test_before_any_finite_loss_steps_are_taken_at_rest() -> None:
    updates, state = step(emo_optax.emotional(optax.sgd(1.0)), jnp.ones(1), jnp.ones(1), [np.nan] * 3)
    np.testing.assert_array_equal(updates, [-1.0])
    assert (int(emo_optax.get_emotion(state).felt), int(emo_optax.get_emotion(state).held)) == (0, 3)
