"""numpyro: its SVI hands its loss to optimizers of Optax by itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emo_optax

numpyro = pytest.importorskip("numpyro", reason="numpyro is not installed")
dist = pytest.importorskip("numpyro.distributions")
infer = pytest.importorskip("numpyro.infer")
autoguide = pytest.importorskip("numpyro.infer.autoguide")

OBSERVED = jnp.asarray([2.0, 3.0, 4.0])


def model(observed: Any) -> None:
    mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    numpyro.sample("observed", dist.Normal(mean, 1.0), obs=observed)


def make(optimizer: Any) -> Any:
    wrapped = numpyro.optim.optax_to_numpyro(optimizer)
    return infer.SVI(model, autoguide.AutoNormal(model), wrapped, infer.Trace_ELBO())


@pytest.mark.parametrize("stable", [False, True])
def test_svi_feels_each_of_its_losses(stable: bool) -> None:
    svi = make(emo_optax.emo_sens(0.05, short_factor=1.0))
    result = svi.run(jax.random.key(0), 5, OBSERVED, progress_bar=False, stable_update=stable)
    emotion = emo_optax.get_emotion(result.state.optim_state)
    assert int(emotion.felt) == 5
    assert float(emotion.short) == pytest.approx(float(result.losses[-1]), rel=1e-6)


def test_averages_are_constrained_as_the_parameters_are() -> None:
    svi = make(emo_optax.emo_pilot())
    result = svi.run(jax.random.key(0), 50, OBSERVED, progress_bar=False)
    unconstrained = svi.optim.get_params(result.state.optim_state)
    averaged = svi.constrain_fn(emo_optax.eval_params(result.state, unconstrained))
    assert averaged.keys() == result.params.keys()
    for name, trained in result.params.items():
        assert averaged[name] != trained
        np.testing.assert_allclose(averaged[name], trained, atol=0.3)
    assert averaged["mean_auto_scale"] > 0.0


def test_a_loss_that_is_not_finite_leaves_a_stable_update_where_it_was() -> None:
    optimizer = numpyro.optim.optax_to_numpyro(emo_optax.emo_sens(0.05))
    state = optimizer.init({"w": jnp.ones(2)})
    for bad in (False, True):
        before = state
        (loss, _), state = optimizer.eval_and_stable_update(
            lambda p, bad=bad: (jnp.sum(p["w"] ** 2) * (jnp.nan if bad else 1.0), None), state
        )
        assert bool(jnp.isnan(loss)) == bad
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(emo_optax.get_emotion(state).felt) == 1


def test_an_update_without_a_loss_is_no_step() -> None:
    optimizer = numpyro.optim.optax_to_numpyro(emo_optax.emo_sens(0.05))
    state = optimizer.init({"w": jnp.ones(2)})
    with pytest.raises((AssertionError, emo_optax.LossMissingError)):  # The first is numpyro's own.
        optimizer.update({"w": jnp.ones(2)}, state)
