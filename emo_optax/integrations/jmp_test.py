"""jmp's loss scaling: the loss that is passed on is the one before it is scaled."""

import jax
import jax.numpy as jnp
import optax
import pytest

import emo_optax

jmp = pytest.importorskip("jmp", reason="JMP IS NOT INSTALLED")


@pytest.mark.parametrize("is_unscaled", [True, False])
def test_a_scaled_loss_has_to_be_unscaled_before_it_is_passed_on(is_unscaled: bool) -> None:
    optimizer = emo_optax.emo_sens(1e-2)
    params = jnp.asarray([1.0, -2.0, 3.0])
    state, scale = optimizer.init(params), jmp.DynamicLossScale(jnp.asarray(2.0**10))

    @jax.jit
    def step(params, state, scale):  # type: ignore[no-untyped-def]
        def scaled(params):  # type: ignore[no-untyped-def]
            return scale.scale(jnp.sum(params**2))

        loss, grads = jax.value_and_grad(scaled)(params)
        grads = scale.unscale(grads)
        value = scale.unscale(loss) if is_unscaled else loss
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state, scale.adjust(jmp.all_finite(grads))

    for _ in range(3):
        params, state, scale = step(params, state, scale)
    felt = float(emo_optax.get_emotion(state).long)
    assert felt == pytest.approx(14.0 if is_unscaled else 14.0 * 2**10, rel=0.01)
