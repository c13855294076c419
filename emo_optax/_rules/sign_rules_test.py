"""The sums of norms of EmoTion and EmoVoid, and the rules that read them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import emo_optax
from emo_optax._pieces.pulse_reference_test import Reference


def test_the_sum_is_taken_in_float32() -> None:
    half = jnp.full(70_000, 2.0, jnp.float16)  # 140 000 is more than float16 holds
    assert float(emo_optax.sum_of_norms({"a": half, "b": -half})) == 280_000.0
    assert emo_optax.sum_of_norms({"a": half}).dtype == jnp.float32
    many = jnp.full(1 << 16, 1.0 + 2**-7, jnp.bfloat16)
    assert float(emo_optax.sum_of_norms([many])) == float(1 << 16) * (1.0 + 2**-7)
    assert float(emo_optax.sum_of_norms({})) == 0.0
    with jax.enable_x64(True):
        assert emo_optax.sum_of_norms([jnp.ones(2), half]).dtype == jnp.float64


def test_the_sign_is_that_of_the_gradient() -> None:
    gradient = jnp.asarray([3e38, -2e-38, 0.0, -2.0], jnp.float32)
    updates, _ = emo_optax.scale_by_sign().update(gradient, emo_optax.scale_by_sign().init(gradient))
    np.testing.assert_array_equal(updates, [1.0, -1.0, 0.0, -1.0])
    for option, value in (("b1", 1.0), ("b2", -0.1), ("eps", -1.0)):
        with pytest.raises(ValueError, match=f"Invalid {option}"):
            emo_optax.scale_by_sign(**{option: value})


def test_the_norm_is_held_at_first_and_once_more_at_each_rise_of_the_stop_signal() -> None:
    losses = [0.01] * 80 + [3.0] * 8 + [0.01] * 700
    params = {"w": np.asarray([1.0, -2.0, 3.0])}
    reference = Reference("emo_void", params, 50.0)
    sums, stops = [], []
    with jax.enable_x64(True):
        optimizer = emo_optax.emo_void(50.0)
        current = jax.tree.map(jnp.asarray, params)
        state, update = optimizer.init(current), jax.jit(optimizer.update)
        for loss in losses:
            grads = {"w": np.asarray([-1.0, 2.0, -0.5])}  # away from 0: the sum grows unless it is held
            reference.step(grads, loss)
            updates, state = update(grads, state, current, value=loss)
            current = optax.apply_updates(current, updates)
            np.testing.assert_allclose(current["w"], reference.params["w"], rtol=0, atol=1e-11)
            pulse = emo_optax.get_pulse(state)
            before = current["w"] + pulse.pulse * np.sign(grads["w"])  # scaled, and not yet moved
            sums.append(float(jnp.abs(before).sum()))
            stops.append(bool(pulse.should_stop))
    rises = [step for step in range(1, len(stops)) if stops[step] and not stops[step - 1]]
    assert len(rises) == 2
    # The first rise comes before the 56th step and ends the stretch: one more step is scaled.
    assert [step for step, total in enumerate(sums) if abs(total - 6.0) < 1e-6] == [*range(rises[0] + 2)]
    # The second rise holds the sum of its own step for one step.
    held = [step for step in range(56, len(sums)) if abs(sums[step] - sums[step - 1]) < 1e-6]
    assert held == [rises[1] + 1]


@pytest.mark.parametrize("name", ["emo_tion", "emo_void"])
def test_replicas_and_shares_of_parameters_step_as_the_whole(name: str) -> None:
    make = functools.partial(getattr(emo_optax, name), 50.0)
    params = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    losses = (1.0, 2.0, 0.5, 0.4)

    def train(optimizer: Any, params: Any) -> Any:
        def step(carry: Any, loss: Any) -> Any:
            params, state = carry
            updates, state = optimizer.update(jnp.cos(9.0 * params), state, params, value=loss)
            return (optax.apply_updates(params, updates), state), None

        params, state = jax.lax.scan(step, (params, optimizer.init(params)), jnp.asarray(losses))[0]
        moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == params.shape]
        return jnp.stack([params, *moments], axis=-1)

    whole = jax.jit(functools.partial(train, make()))(params)
    # Under vmap with an axis name each row is a share of the parameters, as on a device of its own.
    by_rows = jax.jit(jax.vmap(functools.partial(train, make(axis_name="x")), axis_name="x"))
    shares = by_rows(params)
    np.testing.assert_allclose(shares, whole, rtol=1e-5)
    copies = jnp.broadcast_to(params, (3, *params.shape))
    replicas = by_rows(copies)
    for replica in replicas:
        np.testing.assert_allclose(replica, whole, rtol=1e-6)
    rows = jax.jit(jax.vmap(functools.partial(train, make())))(params)  # each row an optimizer of its own
    assert float(jnp.max(jnp.abs(rows - whole))) > 1e-4
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        functools.partial(train, make(axis_name="x")),
        mesh=mesh,
        in_specs=P("x"),
        out_specs=P("x"),
        check_vma=False,
    )
    np.testing.assert_allclose(jax.jit(mapped)(params), whole, rtol=1e-5)


def test_a_moment_may_be_narrow() -> None:
    optimizer = emo_optax.emo_tion(moment_dtype=jnp.bfloat16)
    params = jnp.ones(7)
    state = optimizer.init(params)
    assert emo_optax.to_arrays(state)["exp_avg/"].dtype == np.float32
    moment = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (7,)]
    assert [leaf.dtype for leaf in moment] == [jnp.bfloat16]


def test_what_holds_a_norm_needs_a_pulse_and_parameters() -> None:
    piece = emo_optax.hold_norm(optax.identity())
    params = jnp.ones(2)
    with pytest.raises(emo_optax.EmotionMissingError, match="share_pulse"):
        piece.update(params, piece.init(params), params)
    with pytest.raises(ValueError, match="params"):
        piece.update(params, piece.init(params))
    rule = emo_optax.scale_by_fresh_sign()
    with pytest.raises(ValueError, match="params"):
        rule.update(params, rule.init(params))
    with pytest.raises(ValueError, match="Invalid b1"):
        emo_optax.scale_by_fresh_sign(1.0)


@pytest.mark.parametrize(
    ("saver", "loader"),
    [("emo_sens3", "emo_airy3"), ("emo_tion", "emo_airy3"), ("emo_navi36", "emo_fact36")],
)
def test_a_state_with_moments_is_refused_by_members_without_moments(saver: str, loader: str) -> None:
    params = {"weight": jnp.ones((3, 2))}
    state = getattr(emo_optax, saver)(1e-2).init(params)
    optimizer = getattr(emo_optax, loader)(1e-2)
    with pytest.raises(ValueError, match=r"The state does not fit this optimizer.*extra: .*weight"):
        optimizer.update(params, state, params, value=1.0)
