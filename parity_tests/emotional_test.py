"""Optimizers of Optax and PyTorch that have the same numbers have them when made emotional, too."""

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

PAIRS: dict[str, tuple[Any, Any]] = {
    "sgd": (optax.sgd(0.1), lambda params: torch.optim.SGD(params, lr=0.1)),
    "momentum": (
        optax.sgd(0.1, momentum=0.9),
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    ),
    "nesterov": (
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "adam": (optax.adam(0.01), lambda params: torch.optim.Adam(params, lr=0.01)),
    "adamw": (
        optax.adamw(0.01, weight_decay=0.1),
        lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
    ),
    "adamax": (
        optax.adamax(0.01, eps=0.0),
        lambda params: torch.optim.Adamax(params, lr=0.01, eps=0.0),
    ),
    "rmsprop": (
        optax.rmsprop(0.01, decay=0.99, eps=1e-8, eps_in_sqrt=False),
        lambda params: torch.optim.RMSprop(params, lr=0.01, alpha=0.99, eps=1e-8),
    ),
    "adadelta": (
        optax.adadelta(1.0, rho=0.9, eps=1e-6),
        lambda params: torch.optim.Adadelta(params, lr=1.0, rho=0.9, eps=1e-6),
    ),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "usual": {},
    "shadow": {"use_shadow": True},
    "all": {
        "use_shadow": True,
        "shadow_ratio": "v1.0",
        "shadow_rate": 0.2,
        "theta": 0.5,
        "gain": 1.0,
        "short_factor": 0.5,
        "long_factor": 0.05,
    },
    "shadow alone": {"use_shadow": True, "shadow_effect": False},
}
STEPS = 40


def given(step: int) -> dict[str, np.ndarray]:
    grads = sequences.gradients(sequences.params("float64"), step)
    # Adamax without eps knows no first gradient of 0: 0/0 in one, 0 in the other.
    return {name: np.where(grad == 0.0, 1e-3, grad) for name, grad in grads.items()}


# The options act outside of the inner optimizer: "all" has all options, and the others vary two optimizers.
CASES = [
    (pair, options)
    for pair in PAIRS
    for options in OPTIONS
    if options in ("usual", "all") or pair in ("momentum", "adamw")
]


@pytest.mark.parametrize(("pair", "chosen"), CASES)
def test_both_packages_step_alike(pair: str, chosen: str) -> None:
    (ours, make), options = PAIRS[pair], OPTIONS[chosen]
    start = sequences.params("float64")
    losses = sequences.losses("spiky", STEPS)
    sides = []
    for foreach in (False, True):
        tensors = {name: torch.nn.Parameter(torch.tensor(leaf)) for name, leaf in start.items()}
        inner = make(list(tensors.values()))
        inner.param_groups[0]["foreach"] = foreach
        sides.append((tensors, emo_torch.Emotional(inner, **options)))
    with jax.enable_x64(True):
        optimizer = emo_optax.emotional(ours, **options)

        @jax.jit
        def step(params: Any, state: Any, grads: Any, loss: Any) -> Any:
            updates, state = optimizer.update(grads, state, params, value=loss)
            return optax.apply_updates(params, updates), state

        params = {name: jnp.asarray(leaf) for name, leaf in start.items()}
        state = optimizer.init(params)
        for index, loss in enumerate(losses):
            grads = given(index)
            params, state = step(params, state, {name: jnp.asarray(g) for name, g in grads.items()}, loss)
            for tensors, theirs in sides:
                for name, tensor in tensors.items():
                    tensor.grad = torch.tensor(grads[name])
                theirs.step(loss=float(loss))
                for name, tensor in tensors.items():
                    np.testing.assert_allclose(
                        params[name], tensor.detach().numpy(), rtol=1e-12, atol=1e-12, err_msg=name
                    )
        for _, theirs in sides:
            for field, other in zip(emo_optax.get_emotion(state), theirs.emotion, strict=True):
                np.testing.assert_allclose(field, other.numpy(), rtol=1e-12, atol=1e-12)


def test_schedule_free_around_emotional_is_emotional_around_schedule_free_in_pytorch() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    start = sequences.params("float64")
    tensors = {name: torch.nn.Parameter(torch.tensor(leaf)) for name, leaf in start.items()}
    inner = schedulefree.SGDScheduleFree(list(tensors.values()), lr=0.1, weight_lr_power=2.0)
    inner.train()
    theirs = emo_torch.Emotional(inner, theta=0.0, gain=1.0)
    with jax.enable_x64(True):
        base = emo_optax.emotional(optax.sgd(0.1), theta=0.0, gain=1.0)
        ours = optax.contrib.schedule_free(base, 0.1, b1=0.9, weight_lr_power=2.0)
        params: Any = {name: jnp.asarray(leaf) for name, leaf in start.items()}
        state, update = ours.init(params), jax.jit(ours.update)
        for step, loss in enumerate(sequences.losses("spiky", STEPS)):
            grads = given(step)
            updates, state = update(grads, state, params, value=float(loss))
            params = optax.apply_updates(params, updates)
            for name, tensor in tensors.items():
                tensor.grad = torch.tensor(grads[name])
            theirs.step(loss=float(loss))
        for name, tensor in tensors.items():
            np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=1e-12, atol=1e-12)
            z = inner.state[tensor]["z"].numpy()
            np.testing.assert_allclose(state.z[name], z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["emo_sens", "emo_cats"])
def test_a_mask_is_a_split_into_groups(name: str) -> None:
    start = sequences.params("float64")
    tensors = {key: torch.nn.Parameter(torch.tensor(leaf)) for key, leaf in start.items()}
    theirs = emo_torch.create_optimizer(
        name, emo_torch.decay_groups(tensors.items()), lr=0.01, weight_decay=0.5
    )
    mask = emo_optax.decay_mask(start)
    assert mask == emo_torch.decay_mask(tensors)
    assert set(mask.values()) == {True, False}
    with jax.enable_x64(True):
        ours = emo_optax.create_optimizer(name, 0.01, weight_decay=0.5, mask=emo_optax.decay_mask)
        params = {key: jnp.asarray(leaf) for key, leaf in start.items()}
        state = ours.init(params)
        update = jax.jit(ours.update)
        for index, loss in enumerate(sequences.losses("spiky", 20)):
            grads = sequences.gradients(start, index)
            updates, state = update(
                {key: jnp.asarray(grad) for key, grad in grads.items()}, state, params, value=loss
            )
            params = optax.apply_updates(params, updates)
            for key, tensor in tensors.items():
                tensor.grad = torch.tensor(grads[key])
            theirs.step(loss=float(loss))
    for key, tensor in tensors.items():
        np.testing.assert_allclose(params[key], tensor.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", sorted(sequences.LOSSES))
def test_both_monitors_say_the_same(kind: str) -> None:
    options: dict[str, Any] = {"gain": 0.5, "mean_below": 0.2, "variance_below": 0.1}
    theirs = emo_torch.EarlyStop(**options)
    with jax.enable_x64(True):
        theirs.emotion = emo_torch.init_emotion(torch.float64)
        ours = emo_optax.early_stop(**options)
        state, update = ours.init(), jax.jit(ours.update)
        for loss in sequences.losses(kind, 200):
            state = update(state, loss)
            theirs.update(float(loss))
            assert bool(state.should_stop) == theirs.should_stop
            assert bool(state.is_quiet) == theirs.is_quiet
            np.testing.assert_allclose(state.emotion.scalar, theirs.emotion.scalar, rtol=1e-12, atol=1e-12)
