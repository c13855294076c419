"""`emo_optax.autopilot` and `emo_torch.Autopilot` around the same optimizer take the same steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import emo_optax
import emo_torch
from parity_tests import sequences

SHAPES = {name: sequences.SHAPES[name] for name in ("matrix", "vector", "scalar", "empty")}
PAIRS: dict[str, tuple[optax.GradientTransformation, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (
        optax.sgd(1e-2, momentum=0.9),
        lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    ),
    "adam": (optax.adam(1e-2), lambda params: torch.optim.Adam(params, lr=1e-2)),
    "emo_sens": (emo_optax.emo_sens(1e-2), lambda params: emo_torch.EmoSens(params, lr=1e-2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_twins_take_the_same_steps(name: str) -> None:
    theirs, ours = PAIRS[name]
    with jax.enable_x64(True):
        start = sequences.params("float64", shapes=SHAPES)
        optimizer = emo_optax.autopilot(theirs)
        params: Any = {key: jnp.asarray(value) for key, value in start.items()}
        state = optimizer.init(params)
        step = jax.jit(
            lambda grads, state, params, loss: optimizer.update(grads, state, params, value=loss)
        )
        weights = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in start.items()}
        twin = emo_torch.Autopilot(ours(list(weights.values())))
        for index, loss in enumerate(sequences.losses("not_finite", 100)):
            grads = sequences.gradients(start, index)
            updates, state = step(grads, state, params, loss)
            params = optax.apply_updates(params, updates)
            for key, weight in weights.items():
                weight.grad = torch.tensor(grads[key])
            twin.step(loss=torch.tensor(loss))
        average = emo_optax.eval_params(state, params)
        for key, weight in weights.items():
            np.testing.assert_allclose(weight.detach(), params[key], rtol=1e-10, atol=1e-10)
        twin.eval()
        for key, weight in weights.items():
            np.testing.assert_allclose(weight.detach(), average[key], rtol=1e-10, atol=1e-10)
        assert emo_torch.get_metrics(twin) == pytest.approx(emo_optax.get_metrics(state), rel=1e-8)
