"""Flax: `TrainState`, NNX's optimizers and `DynamicScale`, against a loop of Optax's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

pytest.importorskip("flax", reason="Flax is not installed")

from flax import nnx
from flax.training import train_state
from flax.training.dynamic_scale import DynamicScale

from emo_optax.integrations.flax import TrainState

TARGET = jnp.asarray([[0.3, -0.1], [0.0, 2.0]])
LOSSES = 4


def start() -> Any:
    return {"w": jnp.asarray([[1.0, -2.0], [3.0, 0.5]])}


def loss_of(params: Any) -> Any:
    return jnp.mean(jnp.square(params["w"] - TARGET))


def tx() -> Any:
    return optax.chain(optax.clip_by_global_norm(1.0), emo_optax.emo_sens(0.1, use_shadow=True))


def by_hand(optimizer: Any, steps: int = LOSSES) -> tuple[Any, Any]:
    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    params = start()
    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def assert_close(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_train_state_hands_the_loss_on_under_jit() -> None:
    traces = []

    def step(state: TrainState) -> TrainState:
        traces.append(state)
        loss, grads = jax.value_and_grad(loss_of)(state.params)
        return state.apply_gradients(grads=grads, value=loss)

    step = jax.jit(step, donate_argnums=0)
    state = TrainState.create(apply_fn=None, params=start(), tx=tx())
    made_with = state.tx
    state = state.replace(step=jnp.asarray(0))
    for _ in range(LOSSES):
        state = step(state)
    assert_close((state.params, state.opt_state), by_hand(tx()))
    assert int(state.step) == LOSSES
    assert state.tx is made_with
    assert len(traces) == 1


def test_a_train_state_without_the_loss_says_what_to_do() -> None:
    state = TrainState.create(apply_fn=None, params=start(), tx=tx())
    with pytest.raises(emo_optax.LossMissingError, match=r"value=loss"):
        state.apply_gradients(grads=start())


def test_flaxs_own_train_state_fails_and_the_error_names_ours() -> None:
    state = train_state.TrainState.create(apply_fn=None, params=start(), tx=tx())
    with pytest.raises(emo_optax.LossMissingError, match=r"emo_optax\.integrations\.flax\.TrainState"):
        state.apply_gradients(grads=start())


def test_fields_of_a_derived_train_state_are_replaced() -> None:
    class WithStatistics(TrainState):
        batch_stats: Any

    kind: Any = WithStatistics
    state = kind.create(apply_fn=None, params=start(), tx=tx(), batch_stats=jnp.zeros(2))
    state = state.apply_gradients(grads=start(), value=1.0, batch_stats=jnp.ones(2))
    assert isinstance(state, WithStatistics)
    np.testing.assert_array_equal(state.batch_stats, [1.0, 1.0])
    assert float(emo_optax.get_emotion(state.opt_state).long) == 1.0


def test_another_argument_of_the_optimizer_goes_along() -> None:
    optimizer = emo_optax.ref_adamw_mini_schedule_free(0.1)
    state = TrainState.create(apply_fn=None, params=start(), tx=optimizer)
    state = state.apply_gradients(grads=start(), value=1.0, extra_args={"val_value": 3.0})
    assert float(emo_optax.get_divergence(state.opt_state).val_previous) == 3.0


def test_an_optimizer_that_reads_no_loss_steps_as_under_flaxs_own() -> None:
    states = [
        kind.create(apply_fn=None, params=start(), tx=optax.adamw(0.1))
        for kind in (TrainState, train_state.TrainState)
    ]
    ours = states[0].apply_gradients(grads=start(), value=1.0)
    assert_close(ours.params, states[1].apply_gradients(grads=start()).params)


class Model(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(start()["w"])


@pytest.mark.parametrize("kind", [nnx.Optimizer, nnx.ModelAndOptimizer])
def test_averaged_weights_are_read_from_the_state_of_an_nnx_optimizer(kind: Any) -> None:
    model = Model()
    optimizer = kind(model, emo_optax.emo_pilot(), wrt=nnx.Param)
    params, alone = start(), emo_optax.emo_pilot()
    state = alone.init(params)
    for _ in range(20):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean(jnp.square(m.w[...] - TARGET)))(model)
        given = (model, grads) if kind is nnx.Optimizer else (grads,)
        optimizer.update(*given, value=loss)
        updates, state = alone.update({"w": grads["w"][...]}, state, params, value=loss)
        params = optax.apply_updates(params, updates)
    trained = nnx.state(model, nnx.Param)
    averaged = emo_optax.eval_params(optimizer.opt_state, trained)
    assert str(jax.tree.structure(averaged)) == str(jax.tree.structure(trained))
    wanted = emo_optax.eval_params(state, params)["w"]
    assert np.any(wanted != params["w"])
    np.testing.assert_array_equal(averaged["w"][...], wanted)
    for pilot in (
        emo_optax.get_pilot(optimizer.opt_state),
        nnx.jit(emo_optax.get_pilot)(optimizer.opt_state),
    ):
        assert_close(pilot, emo_optax.get_pilot(state))
    assert emo_optax.get_metrics(optimizer.opt_state) == pytest.approx(emo_optax.get_metrics(state))
    with pytest.raises(ValueError, match="the parameters that this state was made for"):
        emo_optax.eval_params(optimizer.opt_state, {"w": jnp.ones(3)})


def test_nnx_optimizers_pass_the_loss_on_by_themselves() -> None:
    expected = by_hand(tx())[0]["w"]

    def step(model: Any, optimizer: Any, grads_alone: bool) -> None:
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean(jnp.square(m.w[...] - TARGET)))(model)
        optimizer.update(*((grads,) if grads_alone else (model, grads)), value=loss)

    step = nnx.jit(step, static_argnums=2)
    for kind in (nnx.Optimizer, nnx.ModelAndOptimizer):
        model = Model()
        optimizer = kind(model, tx(), wrt=nnx.Param)
        for _ in range(LOSSES):
            step(model, optimizer, kind is nnx.ModelAndOptimizer)
        np.testing.assert_allclose(model.w[...], expected, rtol=1e-5)
        assert int(emo_optax.get_emotion(optimizer.opt_state).felt) == LOSSES
        with pytest.raises(emo_optax.LossMissingError):
            optimizer.update(*((model,) if kind is nnx.ModelAndOptimizer else (model, nnx.state(model))))


def test_dynamic_scale_gives_the_loss_unscaled() -> None:
    optimizer = tx()

    @jax.jit
    def step(scale: Any, params: Any, state: Any) -> Any:
        scale, _, loss, grads = scale.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return scale, optax.apply_updates(params, updates), state

    scale, params = DynamicScale(scale=1024.0), start()
    state = optimizer.init(params)
    for _ in range(LOSSES):
        scale, params, state = step(scale, params, state)
    assert_close((params, state), by_hand(tx()))
