from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.reference_test import find_in_state


def test_ratio_of_v2_is_the_scalars_size_above_a_tenth() -> None:
    scalars = jnp.asarray([0.0, 0.0999, -0.0999, 0.1001, -0.1001, 0.5, -1.0])
    np.testing.assert_allclose(
        emo_optax.shadow_ratio_v2(scalars), [0, 0, 0, 0.1001, 0.1001, 0.5, 1.0], rtol=1e-6
    )
    with jax.enable_x64(True):
        assert float(emo_optax.shadow_ratio_v2(jnp.asarray(0.1))) == 0.0


def test_ratio_of_v1_has_three_pieces() -> None:
    scalars = jnp.asarray([0.61, 1.0, -0.61, -1.0, 0.59, -0.59, 0.31, -0.31, 0.29, -0.29, 0.0])
    np.testing.assert_allclose(
        emo_optax.shadow_ratio_v1(scalars),
        [0.822, 0.9, 0.1, 0.1, 0.3, 0.3, 0.3, 0.3, 0, 0, 0],
        rtol=1e-6,
    )
    with jax.enable_x64(True):  # every bound is strict
        edges = emo_optax.shadow_ratio_v1(jnp.asarray([0.6, -0.6, 0.3, -0.3]))
        np.testing.assert_array_equal(edges, [0.3, 0.3, 0.0, 0.0])


def run(optimizer: Any, params: Any, moves: Any, losses: Any) -> tuple[Any, Any]:
    state = optimizer.init(params)
    for move, loss in zip(moves, losses, strict=True):
        updates, state = optimizer.update(jnp.full_like(params, move), state, params, value=loss)
        params = optax.apply_updates(params, updates)
    return params, state


def test_the_first_time_the_shadow_becomes_a_copy_and_pulls_nothing() -> None:
    optimizer = emo_optax.share_emotion(emo_optax.blend_with_shadow(optax.scale(-1.0)))
    params, state = run(optimizer, jnp.asarray([5.0, 7.0]), (1.0, 1.0), (1.0, 3.0))
    blend = find_in_state(state, emo_optax.BlendWithShadowState)
    np.testing.assert_array_equal(blend.shadow, [4.0, 6.0])  # before this step's move
    np.testing.assert_array_equal(params, [3.0, 5.0])
    assert bool(blend.exists)
    assert float(blend.ratio) == 0.0
    assert float(emo_optax.get_emotion(state).scalar) > 0.9


def test_a_loss_at_rest_makes_no_shadow() -> None:
    optimizer = emo_optax.share_emotion(emo_optax.blend_with_shadow(optax.scale(-1.0)))
    params, state = run(optimizer, jnp.asarray([5.0]), (1.0,) * 4, (1.0, 1.01, 1.0, np.nan))
    blend = find_in_state(state, emo_optax.BlendWithShadowState)
    assert not blend.exists
    np.testing.assert_array_equal(blend.shadow, [0.0])
    np.testing.assert_array_equal(params, [1.0])


def test_later_the_parameters_are_blended_first_and_the_shadow_follows_the_blend() -> None:
    with jax.enable_x64(True):
        optimizer = emo_optax.share_emotion(
            emo_optax.blend_with_shadow(
                optax.scale(-1.0), lambda s: 0.25 * jnp.ones_like(s), shadow_rate=0.2
            )
        )
        params, state = run(optimizer, jnp.asarray([5.0]), (1.0, 0.0, 0.5), (1.0, 1.0, 1.0))
    # p 5, shadow 5; p 4: blend 4.25, shadow 5 - 0.2 0.75 = 4.85;
    # p 4.25: blend 0.75 4.25 + 0.25 4.85 = 4.4, shadow 4.85 - 0.2 0.45 = 4.76; p 3.9.
    blend = find_in_state(state, emo_optax.BlendWithShadowState)
    np.testing.assert_allclose(blend.shadow, [4.76], rtol=1e-14)
    np.testing.assert_allclose(params, [3.9], rtol=1e-14)
    assert float(blend.ratio) == 0.25


def test_the_default_rate_is_a_twentieth() -> None:
    with jax.enable_x64(True):
        optimizer = emo_optax.share_emotion(
            emo_optax.blend_with_shadow(optax.scale(-1.0), lambda s: 0.5 + 0 * s)
        )
        _, state = run(optimizer, jnp.asarray([5.0]), (1.0, 0.0), (1.0, 1.0))
    blend = find_in_state(state, emo_optax.BlendWithShadowState)
    np.testing.assert_allclose(blend.shadow, [4.975], rtol=1e-14)


def test_the_ratio_follows_the_scalar_by_the_version_asked_for() -> None:
    losses = (1.0, 1.5, 1.5)  # s = tanh(0.725) and tanh(5 (1.255 - 1.00995)) = tanh(1.22525)
    s = np.tanh(1.22525)
    expected: dict[Any, float] = {"v2.0": s, "v1.0": 0.7 + 0.2 * s}
    for version, ratio in expected.items():
        optimizer = emo_optax.share_emotion(emo_optax.blend_with_shadow(optax.scale(-1.0), version))
        params, state = run(optimizer, jnp.asarray([5.0]), (0.0, 1.0, 0.0), losses)
        blend = find_in_state(state, emo_optax.BlendWithShadowState)
        assert float(blend.ratio) == pytest.approx(ratio, rel=1e-6)
        assert float(emo_optax.get_emotion(state).shadow_ratio) == float(blend.ratio)
        np.testing.assert_allclose(params, [4 + ratio], rtol=1e-6)


def test_where_the_ratio_is_zero_the_shadow_rests() -> None:
    optimizer = emo_optax.share_emotion(
        emo_optax.blend_with_shadow(optax.scale(-1.0), lambda s: jnp.where(s > 0.3, 0.5, 0.0))
    )
    params, state = run(optimizer, jnp.asarray([5.0]), (0.0, 1.0, 1.0), (1.0, 1.5, 0.0))
    assert float(emo_optax.get_emotion(state).scalar) < 0
    blend = find_in_state(state, emo_optax.BlendWithShadowState)
    assert bool(blend.exists)
    assert float(blend.ratio) == 0.0
    np.testing.assert_array_equal(blend.shadow, [5.0])
    np.testing.assert_array_equal(params, [3.0])


def test_inner_sees_the_blended_parameters_and_the_caller_adds_to_the_unblended() -> None:
    optimizer = emo_optax.share_emotion(
        emo_optax.blend_with_shadow(
            optax.chain(optax.add_decayed_weights(1.0), optax.scale(-0.5)), lambda s: 0.5 + 0 * s
        )
    )
    params = jnp.asarray([4.0])
    state = optimizer.init(params)
    _, state = optimizer.update(jnp.zeros(1), state, params, value=1.0)  # the shadow is 4
    updates, _ = optimizer.update(jnp.zeros(1), state, jnp.asarray([2.0]), value=1.0)
    np.testing.assert_array_equal(updates, [-0.5])  # 2 to the blend, 3, to its half, 1.5


def test_alone_in_a_chain_it_adds_the_pull_to_the_updates() -> None:
    optimizer = optax.chain(
        optax.sgd(0.5),
        emo_optax.share_emotion(emo_optax.blend_with_shadow(None, lambda s: 0.5 + 0 * s)),
        emo_optax.track_emotion(),
    )
    params, _ = run(optimizer, jnp.asarray([5.0]), (2.0, 0.0), (1.0, 1.0))
    np.testing.assert_array_equal(params, [4.5])


def test_the_shadow_of_half_precision_parameters_is_kept_in_float32() -> None:
    seen = []

    def spy(updates: Any, state: Any, params: Any) -> Any:
        seen.append(params.dtype)
        return updates, state

    inner = optax.GradientTransformation(lambda _: optax.EmptyState(), spy)
    optimizer = emo_optax.share_emotion(emo_optax.blend_with_shadow(inner, lambda s: 0.5 + 0 * s))
    params = jnp.full(1, 256.0, jnp.bfloat16)
    params, state = run(optimizer, params, (1.0, 0.0), (1.0, 1.0))
    shadow = find_in_state(state, emo_optax.BlendWithShadowState).shadow
    assert shadow.dtype == jnp.float32
    assert seen == [jnp.bfloat16] * 2


def test_blend_needs_the_parameters() -> None:
    optimizer = emo_optax.share_emotion(emo_optax.blend_with_shadow())
    with pytest.raises(ValueError, match="`params` was not given"):
        optimizer.update(jnp.ones(1), optimizer.init(jnp.ones(1)), value=1.0)


def test_moments_are_not_blended() -> None:
    optimizer = emo_optax.share_emotion(
        emo_optax.blend_with_shadow(optax.trace(0.9), lambda s: 0.5 + 0 * s)
    )
    _, state = run(optimizer, jnp.asarray([5.0]), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    blend = find_in_state(state, emo_optax.BlendWithShadowState)
    np.testing.assert_allclose(blend.inner_state.trace, [2.71], rtol=1e-6)


@pytest.mark.parametrize("ratio", [0.001, 0.5, 1.0])
@pytest.mark.parametrize("rate", [0.001, 0.05, 1.0])
def test_the_blend_is_the_one_of_the_formula_for_every_ratio_and_rate(ratio: float, rate: float) -> None:
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        piece = emo_optax.share_emotion(
            emo_optax.blend_with_shadow(None, lambda s: ratio * jnp.ones_like(s), shadow_rate=rate)
        )
        params = random.normal(size=9)
        state = piece.init(jnp.asarray(params))
        shadow = params
        for step in range(4):
            move = random.normal(size=9)
            updates, state = piece.update(jnp.asarray(move), state, jnp.asarray(params), value=1.0)
            blended = params if step == 0 else (1.0 - ratio) * params + ratio * shadow
            shadow = shadow + rate * (blended - shadow)
            np.testing.assert_allclose(params + np.asarray(updates), blended + move, rtol=0.0, atol=1e-14)
            params = blended + move
            np.testing.assert_allclose(
                find_in_state(state, emo_optax.BlendWithShadowState).shadow, shadow, rtol=0.0, atol=1e-14
            )
