from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._pieces.weight_decay import WeightDecayMode


def test_decay_adds_a_share_of_the_parameters_to_the_updates() -> None:
    decay = emo_optax.add_weight_decay(0.25)
    params = {"w": jnp.asarray([4.0, -8.0]), "b": jnp.asarray(2.0)}
    updates, _ = decay.update(jax.tree.map(jnp.ones_like, params), decay.init(params), params)
    np.testing.assert_array_equal(updates["w"], [2.0, -1.0])
    assert float(updates["b"]) == 1.5


def test_the_default_share_is_a_hundredth_and_sign_turns_it() -> None:
    for sign in (1.0, -1.0):
        decay = emo_optax.add_weight_decay(sign=sign)
        updates, _ = decay.update(jnp.zeros(1), decay.init(jnp.ones(1)), jnp.ones(1))
        np.testing.assert_allclose(updates, [0.01 * sign], rtol=1e-6)


@pytest.mark.parametrize(
    "mask", [{"w": True, "b": False}, lambda tree: jax.tree.map(lambda leaf: np.ndim(leaf) == 1, tree)]
)
def test_only_what_the_mask_holds_true_decays(mask: Any) -> None:
    decay = emo_optax.add_weight_decay(0.5, mask)
    params = {"w": jnp.asarray([4.0]), "b": jnp.asarray(2.0)}
    updates, _ = decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)
    np.testing.assert_array_equal(updates["w"], [2.0])
    assert float(updates["b"]) == 0.0


def test_a_schedule_of_the_share_starts_at_its_step_0_and_counts_each_step() -> None:
    decay = emo_optax.add_weight_decay(lambda step: 1.0 + step)
    state = decay.init(jnp.ones(1))
    shares = []
    for _ in range(3):
        updates, state = decay.update(jnp.zeros(1), state, jnp.ones(1))
        shares.append(float(updates[0]))
    assert shares == [1.0, 2.0, 3.0]
    assert (int(state.steps), state.steps.dtype, state.divisor) == (3, jnp.int32, ())


def test_a_divisor_is_the_first_value_of_a_learning_rate() -> None:
    for divisor in (0.5, jnp.asarray(0.5), lambda step: 0.5 + step):
        decay = emo_optax.add_weight_decay(0.25, divisor=divisor)
        state = decay.init(jnp.ones(1))
        for _ in range(3):
            updates, state = decay.update(jnp.zeros(1), state, jnp.ones(1))
            np.testing.assert_array_equal(updates, [0.5])
        assert (float(state.divisor), state.steps) == (0.5, ())


@pytest.mark.parametrize("divisor", [0.0, 0, jnp.zeros([]), lambda step: 0.1 * step])
def test_a_divisor_that_starts_at_zero_is_refused(divisor: Any) -> None:
    with pytest.raises(ValueError, match="that is 0"):
        emo_optax.add_weight_decay(0.25, divisor=divisor).init(jnp.ones(1))


def test_decay_is_added_in_the_wider_of_the_two_dtypes_and_float32_at_least() -> None:
    decay = emo_optax.add_weight_decay(2.0**-10)
    state = decay.init(jnp.ones(1))
    half, single = jnp.ones(1, jnp.bfloat16), jnp.ones(1, jnp.float32)
    for update, param in ((half, single), (single, half), (half, half)):
        updates, _ = decay.update(update, state, param)
        assert updates.dtype == jnp.float32
        np.testing.assert_array_equal(updates, [1 + 2.0**-10])


def test_decay_needs_the_parameters() -> None:
    decay = emo_optax.add_weight_decay()
    with pytest.raises(ValueError, match="`params` was not given"):
        decay.update(jnp.zeros(1), decay.init(jnp.ones(1)))


def test_the_place_in_a_chain_makes_it_l2_decoupled_or_absolute() -> None:
    rule, rate = optax.scale(3.0), optax.scale(-0.5)
    chains = {
        "l2": (emo_optax.add_weight_decay(0.25), rule, rate),
        "decoupled": (rule, emo_optax.add_weight_decay(0.25), rate),
        "absolute": (rule, rate, emo_optax.add_weight_decay(0.25, sign=-1.0)),
    }
    expected = {"l2": -0.5 * 3 * (1 + 2), "decoupled": -0.5 * (3 + 2), "absolute": -1.5 - 2}
    for mode, pieces in chains.items():
        optimizer = optax.chain(*pieces)
        params = jnp.asarray([8.0])
        updates, _ = optimizer.update(jnp.ones(1), optimizer.init(params), params)
        assert float(updates[0]) == expected[mode]


@pytest.mark.parametrize(
    ("mode", "expected"), [("decoupled", 8 * (1 - 0.5 * 0.25)), ("absolute", 8 * (1 - 0.25)), ("l2", 7.5)]
)
def test_the_modes_of_a_member_shrink_a_parameter_without_gradient_as_defined(
    mode: WeightDecayMode, expected: float
) -> None:
    # L2 makes a gradient of 2 from none, whose sign is the step.
    optimizer = emo_optax.emo_cats(0.5, weight_decay=0.25, weight_decay_mode=mode)
    params = jnp.asarray([8.0])
    updates, _ = optimizer.update(jnp.zeros(1), optimizer.init(params), params, value=1.0)
    assert float(params[0] + updates[0]) == expected


def test_neither_the_scale_nor_the_filter_touches_the_decay_unless_it_is_l2() -> None:
    scale = 1 - np.tanh(0.725)
    expected_by_mode: dict[WeightDecayMode, list[float]] = {
        "decoupled": [-0.5 * 2 - 0.5 * scale, -0.5 * 2],
        "absolute": [-2 - 0.5 * scale, -2.0],
        "l2": [-0.5 * scale, -0.5 * scale],
    }
    for mode, expected in expected_by_mode.items():
        optimizer = emo_optax.emo_cats(0.5, weight_decay=0.25, weight_decay_mode=mode, theta=0.5)
        params = jnp.asarray([8.0, 8.0])
        grads = jnp.asarray([1.0, 0.01])
        _, state = optimizer.update(grads, optimizer.init(params), params, value=1.0)
        updates, _ = optimizer.update(grads, state, params, value=1.5)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_decay_acts_on_the_blended_parameters() -> None:
    optimizer = emo_optax.emo_cats(
        0.5, weight_decay=0.5, use_shadow=True, shadow_ratio=lambda s: 0.5 + 0 * s
    )
    params = jnp.asarray([4.0])
    _, state = optimizer.update(jnp.zeros(1), optimizer.init(params), params, value=1.0)
    updates, _ = optimizer.update(jnp.zeros(1), state, jnp.asarray([8.0]), value=1.0)
    assert float(8.0 + updates[0]) == 6.0 - 0.5 * 0.5 * 6.0


def test_an_unknown_mode_is_refused_with_those_known() -> None:
    for member in (emo_optax.emo_sens, emo_optax.emo_airy, emo_optax.emo_cats):
        with pytest.raises(ValueError, match="'decoupled', 'absolute', 'l2'"):
            member(weight_decay_mode="L2")  # type: ignore[arg-type]


def test_the_usual_mask_is_of_two_dimensions_and_more() -> None:
    params = {
        "scalar": jnp.ones(()),
        "bias": jnp.ones(2),
        "matrix": jnp.ones((2, 2)),
        "empty": jnp.ones((0, 1, 2)),
    }
    expected = {"scalar": False, "bias": False, "matrix": True, "empty": True}
    assert emo_optax.decay_mask(params) == expected
    shapes = jax.eval_shape(lambda: params)
    assert emo_optax.decay_mask(shapes) == expected
    decay = emo_optax.add_weight_decay(0.5, mask=emo_optax.decay_mask)
    decay.init(shapes)
    updates, _ = decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)
    assert {name: bool((update > 0).any()) for name, update in updates.items()} == {
        **expected,
        "empty": False,
    }
