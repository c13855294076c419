from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._pieces.shadow_effect import row_and_column_means

KINDS = [emo_optax.keep_elements, emo_optax.keep_rows_and_columns()]


def test_step_scale_falls_from_1_to_0_with_the_size_of_the_scalar() -> None:
    scales = emo_optax.step_scale(jnp.asarray([0.0, 0.25, -0.25, 1.0, -1.0]))
    np.testing.assert_array_equal(scales, [1.0, 0.75, 0.75, 0.0, 0.0])


def test_an_element_is_kept_from_the_cube_of_the_tolerance_on() -> None:
    gradient = jnp.asarray([0.125, -0.125, 0.1249, -0.1249, 0.0, 3.0, -3.0])
    kept = emo_optax.keep_elements(gradient, jnp.asarray(0.5))
    assert kept.tolist() == [True, True, False, False, False, True, True]


def test_a_vectors_element_is_kept_above_the_tolerance_to_three_halves() -> None:
    keep = emo_optax.keep_rows_and_columns()
    gradient = jnp.asarray([0.125, -0.125, 0.1251, -0.1251, 0.0, -3.0])
    assert keep(gradient, jnp.asarray(0.25)).tolist() == [False, False, True, True, False, True]
    assert not bool(keep(jnp.asarray(0.125), jnp.asarray(0.25)))
    assert bool(keep(jnp.asarray(-0.126), jnp.asarray(0.25)))


def test_rows_and_columns_are_kept_above_the_cube_of_the_tolerance() -> None:
    keep = emo_optax.keep_rows_and_columns(eps=0.0)
    gradient = jnp.asarray([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    # Means of squares: rows 2, 1, 0; columns 5/3, 1/3.
    for bound, expected in (
        (0.33, [[True, True], [True, True], [False, False]]),
        (0.34, [[True, False], [True, False], [False, False]]),
        (0.999, [[True, False], [True, False], [False, False]]),
        (1.001, [[True, False], [False, False], [False, False]]),
        (1.7, [[False] * 2] * 3),
    ):
        assert keep(gradient, jnp.asarray(np.cbrt(bound), jnp.float32)).tolist() == expected
    # The test is strict: a row whose mean is the bound itself does not move.
    assert keep(jnp.ones((2, 3)), jnp.asarray(1.0)).tolist() == [[False] * 3] * 2


def test_rows_of_a_tensor_are_slices_of_its_first_axis() -> None:
    keep = emo_optax.keep_rows_and_columns(eps=0.0)
    gradient = np.ones((2, 3, 4), np.float32)
    gradient[0] = 0.0
    gradient[:, 1, 2] = 0.0
    kept = keep(jnp.asarray(gradient), jnp.asarray(0.01))
    np.testing.assert_array_equal(kept, gradient != 0.0)


def test_eps_is_added_to_the_means_of_rows_and_columns() -> None:
    zeros, tolerance = jnp.zeros((2, 2)), jnp.asarray(0.5)
    assert not np.any(np.asarray(emo_optax.keep_rows_and_columns(0.124)(zeros, tolerance)))
    assert np.all(np.asarray(emo_optax.keep_rows_and_columns(0.126)(zeros, tolerance)))
    # With the default, the default theta stops nothing, however restless the loss.
    assert np.all(np.asarray(emo_optax.keep_rows_and_columns()(zeros, jnp.asarray(2e-4))))


@pytest.mark.parametrize("keep", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1, 1), (2, 0, 2), (2, 1, 3)])
def test_what_is_kept_fits_the_gradients_shape(keep: Any, shape: tuple[int, ...]) -> None:
    kept = jax.jit(keep)(jnp.ones(shape), jnp.asarray(1e-4))
    assert kept.dtype == jnp.bool_
    assert jnp.broadcast_shapes(kept.shape, shape) == shape
    assert np.all(np.asarray(kept))


def test_the_default_theta_stops_zeros_and_what_is_under_1e_12() -> None:
    gradient = jnp.asarray([0.0, 0.99e-12, -0.99e-12, 1.01e-12, -1.01e-12, 1.0])
    for optimizer in (
        emo_optax.share_emotion(emo_optax.filter_by_emotion(optax.identity())),
        emo_optax.emotional(optax.identity()),
        emo_optax.emo_sens(),
        emo_optax.emo_cats(),
    ):
        updates, _ = optimizer.update(gradient, optimizer.init(gradient), jnp.zeros(6), value=1.0)
        np.testing.assert_array_equal(updates != 0.0, [False, False, False, True, True, True])


def test_the_default_theta_of_emo_airy_stops_a_vectors_elements_under_1e_6_alone() -> None:
    optimizer = emo_optax.emo_airy()
    tree = {"v": jnp.asarray([0.0, 0.995e-6, 1.005e-6, -0.995e-6, -1.005e-6])}
    tree["m"] = jnp.full((1, 2), 1e-20)
    updates, _ = optimizer.update(tree, optimizer.init(tree), jax.tree.map(jnp.zeros_like, tree), value=1.0)
    assert (updates["v"] != 0.0).tolist() == [False, False, True, False, True]
    assert (updates["m"] != 0.0).tolist() == [[True, True]]


def test_the_bound_of_the_filter_rises_with_the_size_of_the_scalar() -> None:
    for second in (1.5, 0.5):  # |s| = tanh(0.725) = 0.6200: the bound is (0.5 * 1.62)^3 = 0.5315
        optimizer = emo_optax.share_emotion(emo_optax.filter_by_emotion(optax.identity(), 0.5))
        gradient = jnp.asarray([0.130, 0.120, 0.5310, 0.5320, -0.5310, -0.5320])
        state = optimizer.init(gradient)
        updates, state = optimizer.update(gradient, state, value=1.0)
        assert (updates != 0.0).tolist() == [True, False, True, True, True, True]
        updates, state = optimizer.update(gradient, state, value=second)
        assert (updates != 0.0).tolist() == [False, False, False, True, False, True]


def test_a_theta_of_zero_filters_nothing() -> None:
    optimizer = emo_optax.share_emotion(emo_optax.filter_by_emotion(optax.sgd(1.0, momentum=0.5), 0.0))
    state = optimizer.init(jnp.zeros(2))
    for _ in range(2):
        updates, state = optimizer.update(jnp.asarray([1.0, 0.0]), state, value=1.0)
    np.testing.assert_array_equal(updates, [-1.5, 0.0])
    _, state = optimizer.update(jnp.ones(2), state, value=1.0)
    updates, _ = optimizer.update(jnp.zeros(2), state, value=1.0)
    np.testing.assert_array_equal(updates, [-0.875, -0.5])


def test_the_filter_looks_at_the_gradient_and_lets_the_inner_state_see_all_of_it() -> None:
    optimizer = emo_optax.share_emotion(emo_optax.filter_by_emotion(optax.trace(0.5), 0.5))
    state = optimizer.init(jnp.zeros(2))
    _, state = optimizer.update(jnp.asarray([8.0, 0.1]), state, value=1.0)
    updates, state = optimizer.update(jnp.asarray([0.1, 8.0]), state, value=1.0)
    np.testing.assert_allclose(updates, [0.0, 8.05], rtol=1e-6)
    np.testing.assert_allclose(state.inner_state.inner_state.trace, [4.1, 8.05], rtol=1e-6)


def test_the_filter_takes_another_test_of_what_to_keep() -> None:
    def keep_above_mean(gradient: jax.Array, tolerance: jax.Array) -> jax.Array:
        return gradient > jnp.mean(gradient) + tolerance

    optimizer = emo_optax.share_emotion(
        emo_optax.filter_by_emotion(optax.scale(-1.0), 2.0, keep=keep_above_mean)
    )
    gradient = jnp.asarray([0.0, 3.9, 8.1])  # mean 4, tolerance 2
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), value=1.0)
    np.testing.assert_allclose(updates, [0.0, 0.0, -8.1], rtol=1e-6)


def test_the_filter_judges_half_precision_gradients_in_float32() -> None:
    # The bound, 0.00993^3, is 16.43 times the smallest float16; rounded to float16 it would be 16.
    optimizer = emo_optax.share_emotion(emo_optax.filter_by_emotion(optax.identity(), 0.00993))
    gradient = jnp.asarray([16 * 2.0**-24, 17 * 2.0**-24], jnp.float16)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), value=1.0)
    assert updates.dtype == jnp.float16
    assert (updates != 0.0).tolist() == [False, True]


def test_the_filter_stops_what_is_not_a_number() -> None:
    optimizer = emo_optax.share_emotion(emo_optax.filter_by_emotion(optax.scale(2.0)))
    gradient = jnp.asarray([np.nan, 1.0])
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), value=1.0)
    np.testing.assert_array_equal(updates, [0.0, 2.0])


def test_the_scale_is_1_on_the_first_step_and_shrinks_both_ways() -> None:
    for second in (1.5, 0.5):
        optimizer = optax.chain(optax.sgd(2.0), emo_optax.share_emotion(emo_optax.scale_by_emotion()))
        tree = {"w": jnp.ones((2, 2)), "b": jnp.asarray(3.0, jnp.bfloat16)}
        state = optimizer.init(tree)
        updates, state = optimizer.update(tree, state, value=1.0)
        np.testing.assert_array_equal(updates["w"], np.full((2, 2), -2.0))
        updates, state = optimizer.update(tree, state, value=second)
        np.testing.assert_allclose(updates["w"], np.full((2, 2), -2 * (1 - np.tanh(0.725))), rtol=1e-6)
        assert updates["b"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "piece",
    [
        emo_optax.scale_by_emotion(),
        emo_optax.filter_by_emotion(optax.identity()),
        emo_optax.blend_with_shadow(),
    ],
)
def test_a_sharing_piece_outside_of_any_emotion_says_so(piece: Any) -> None:
    params = jnp.ones(2)
    for optimizer in (
        piece,
        optax.chain(optax.sgd(0.1), piece),
        optax.chain(emo_optax.track_emotion(), piece),
    ):
        with pytest.raises(emo_optax.EmotionMissingError, match=r"emo_optax\.share_emotion") as caught:
            optimizer.update(params, optimizer.init(params), params, value=1.0)
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("around", [emo_optax.share_emotion, emo_optax.emotional])
def test_a_sharing_piece_takes_the_emotion_around_it_however_deep(around: Any) -> None:
    piece = optax.chain(
        optax.clip_by_global_norm(1e9),
        optax.masked(optax.chain(optax.sgd(1.0), emo_optax.scale_by_emotion()), {"w": True, "b": False}),
    )
    options = {"shadow_effect": False} if around is emo_optax.emotional else {}
    optimizer = around(piece, gain=0.8, **options)
    tree = {"w": jnp.ones(2), "b": jnp.ones(2)}
    state = optimizer.init(tree)
    for loss in (1.0, 3.0):  # short = 1.6, long = 1.02
        updates, state = optimizer.update(tree, state, tree, value=loss)
    np.testing.assert_allclose(updates["w"], np.full(2, np.tanh(0.8 * 0.58) - 1), rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], [1.0, 1.0])
    emotions = [n for n in jax.tree.leaves(state, is_leaf=_is_emotion) if _is_emotion(n)]
    assert len(emotions) == 1


def _is_emotion(node: Any) -> bool:
    return isinstance(node, emo_optax.EmotionState)


def test_filter_and_scale_with_emotions_of_their_own_equal_shared_ones() -> None:
    own = optax.chain(
        emo_optax.share_emotion(emo_optax.filter_by_emotion(optax.adam(0.1), 0.5)),
        emo_optax.share_emotion(emo_optax.scale_by_emotion()),
    )
    shared = emo_optax.share_emotion(
        optax.chain(
            emo_optax.filter_by_emotion(optax.adam(0.1), 0.5),
            emo_optax.scale_by_emotion(),
        )
    )
    gradient = jnp.asarray([0.2, 1.0, -0.01])
    results = []
    for optimizer in (own, shared):
        state = optimizer.init(gradient)
        for loss in (1.0, 1.1, 0.9):
            updates, state = optimizer.update(gradient, state, value=loss)
        results.append(np.asarray(updates))
    np.testing.assert_array_equal(results[0], results[1])


def test_a_filter_of_rows_and_columns_that_stops_nothing_is_left_out() -> None:
    matrix, vector = jnp.ones((2, 2)), jnp.ones(2)
    keep: Any = emo_optax.keep_rows_and_columns(1e-8)
    assert keep.keeps_all(matrix, 1e-4)
    assert keep.keeps_all(matrix, 1.07e-3)  # (2 theta)^3 is 9.8e-9 here
    assert not keep.keeps_all(matrix, 1.08e-3)
    assert not keep.keeps_all(vector, 1e-4)
    assert not keep.keeps_all(matrix, jnp.asarray(1e-4))  # an injected threshold may change
    not_known: Any = emo_optax.keep_rows_and_columns(jnp.asarray(1e-8))
    assert not not_known.keeps_all(matrix, 1e-4)
    for theta, stopped in ((1e-4, 0), (0.1, 4), (jnp.asarray(0.1), 4)):
        piece = emo_optax.share_emotion(emo_optax.filter_by_emotion(optax.identity(), theta, keep=keep))
        comparisons = str(jax.make_jaxpr(piece.update)(matrix, piece.init(matrix), value=1.0))
        updates, _ = piece.update(1e-6 * matrix, piece.init(matrix), value=1.0)
        assert int(jnp.sum(updates == 0.0)) == stopped
        assert ("bool[2,2]" in comparisons) == (stopped > 0)


def test_means_of_squares_are_those_of_numpy() -> None:
    gradient = np.random.default_rng(0).normal(size=(3, 4, 5))
    with jax.enable_x64(True):
        rows, columns = row_and_column_means(jnp.asarray(gradient), 0.0)
        np.testing.assert_allclose(rows, (gradient**2).mean((1, 2)), rtol=1e-14)
        np.testing.assert_allclose(columns, (gradient**2).mean(0), rtol=1e-14)
    rows, columns = row_and_column_means(jnp.asarray([[0.0, 1e-30], [0.0, jnp.inf]]), 0.0)
    np.testing.assert_array_equal(rows, [0.0, jnp.inf])
    np.testing.assert_array_equal(columns, [0.0, jnp.inf])
