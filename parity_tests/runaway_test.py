"""Runaway detection: both packages, and a plain reading of the formula, on the same gradients."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import emo_optax
import emo_torch

BOUNDS = (None, (0.0, 2.0), (0.9, 1.1))
SIZES = (0.3, 1.0, 3.0, 1e-6, 0.0)


def gradients(size: float, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    leans = [generator.normal(0.3, 1.0, shape) for shape in ((3, 4), (5,), (), (0, 2))]
    return [np.asarray(size * np.asarray(leaf)) for leaf in leans]


def reference(leaves: list[np.ndarray], eps: float = 1e-8) -> tuple[list[float], float]:
    elements = [float(element) for leaf in leaves for element in leaf.ravel()]
    moments = [math.fsum(element**k for element in elements) / len(elements) for k in (1, 2, 3, 4)]
    return moments, moments[2] / (moments[1] + eps) * math.exp(-moments[3])


def optax_run(steps: list[list[np.ndarray]], rate: float, bounds: Any) -> list[np.ndarray]:
    optimizer = emo_optax.scale_by_runaway(optax.sgd(rate, momentum=0.9), bounds=bounds)
    params = [jnp.ones(leaf.shape) for leaf in steps[0]]
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    rows = []
    for grads in steps:
        updates, state = update([jnp.asarray(grad) for grad in grads], state, params)
        params = optax.apply_updates(params, updates)
        shown = emo_optax.get_runaway(state)
        rows.append(np.concatenate([np.ravel(leaf) for leaf in (*params, *shown)]))
    return rows


def torch_run(steps: list[list[np.ndarray]], rate: float, bounds: Any) -> list[np.ndarray]:
    params = [torch.nn.Parameter(torch.ones(leaf.shape, dtype=torch.float64)) for leaf in steps[0]]
    optimizer = torch.optim.SGD(params, lr=rate, momentum=0.9)
    monitor = emo_torch.scale_by_runaway(optimizer, bounds=bounds)
    rows = []
    for grads in steps:
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad)
        optimizer.step()
        shown = emo_torch.get_runaway(monitor)
        rows.append(np.concatenate([leaf.detach().numpy().ravel() for leaf in (*params, *shown)]))
    return rows


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_both_packages_step_alike(bounds: Any) -> None:
    steps = [gradients(size, seed) for seed, size in enumerate(SIZES * 4)]
    with jax.enable_x64(True):
        ours = np.stack(optax_run(steps, 0.1, bounds))
    theirs = np.stack(torch_run(steps, 0.1, bounds))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    scales = ours[:, -1]
    assert (scales.min() < 0.8) == (bounds != (0.9, 1.1))
    assert scales.max() <= (1.1 if bounds == (0.9, 1.1) else 2.0)


@pytest.mark.parametrize("size", SIZES)
def test_both_packages_have_the_number_of_the_formula(size: float) -> None:
    leaves = gradients(size, 7)
    expected, emotion = reference(leaves)
    with jax.enable_x64(True):
        ours = emo_optax.gradient_moments([jnp.asarray(leaf) for leaf in leaves])
        number = float(emo_optax.runaway_emotion(ours))
    theirs = emo_torch.gradient_moments([torch.tensor(leaf) for leaf in leaves])
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    np.testing.assert_allclose(theirs.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(number, emotion, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(float(emo_torch.runaway_emotion(theirs)), emotion, rtol=1e-12, atol=1e-300)


CASES = {
    "no tensors": [],
    "an empty one": [np.zeros((0, 3))],
    "zeros": [np.zeros(3), np.zeros((2, 2))],
    "a NaN": [np.asarray([1.0, np.nan])],
    "infinity": [np.asarray([1.0, np.inf])],
    "minus infinity": [np.asarray([-np.inf])],
    "a power that overflows": [np.asarray([1e11, 1.0])],
    "powers that overflow": [np.asarray([1e25, 1.0])],
    "powers that underflow": [np.asarray([1e-20, 1e-20])],
}


@pytest.mark.parametrize("leaves", CASES.values(), ids=CASES.keys())
def test_the_number_is_0_where_there_is_nothing_to_tell(leaves: list[np.ndarray]) -> None:
    narrow = [leaf.astype(np.float32) for leaf in leaves]
    ours = emo_optax.gradient_moments([jnp.asarray(leaf) for leaf in narrow])
    theirs = emo_torch.gradient_moments([torch.tensor(leaf) for leaf in narrow])
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs.numpy()))
    assert float(emo_optax.runaway_emotion(ours)) == float(emo_torch.runaway_emotion(theirs)) == 0.0


def test_few_large_elements_turn_a_step_round_unless_bounded() -> None:
    gradient = np.zeros(1_000_000, np.float32)
    gradient[0] = 20.0
    number = float(emo_optax.runaway_emotion(emo_optax.gradient_moments(jnp.asarray(gradient))))
    assert number == pytest.approx(20 * math.exp(-0.16), rel=1e-3)
    assert float(
        emo_torch.runaway_emotion(emo_torch.gradient_moments([torch.tensor(gradient)]))
    ) == pytest.approx(number, rel=1e-4)
