"""The metrics of the twins: the same numbers, although the Optax side gets no options of the optimizer."""

import functools
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
from parity_tests.family import FAMILY

NAMES = [name for name, member in FAMILY.items() if member.memory == "emotion"]
GRADS = {
    "b": np.asarray([0.0, 0.4, 0.0, -2.0, 1e-3, 0.0], np.float32),
    "w": np.asarray([[0.0, 0.2, 0.0, 0.6], [0.0, -0.9, 0.0, 1e-6]], np.float32),
}
PARAMS = {name: np.ones_like(leaf) for name, leaf in GRADS.items()}
LOSSES = (2.0, 1.0, 1.4)
LABELS = {"b": "a", "w": "a"}


def of_torch(optimizer_of: Callable[[Any], Any]) -> dict[str, float]:
    params = [torch.nn.Parameter(torch.tensor(PARAMS[name])) for name in PARAMS]
    optimizer = optimizer_of(params)
    for loss in LOSSES:
        for param, name in zip(params, PARAMS, strict=True):
            param.grad = torch.tensor(GRADS[name])
        optimizer.step(loss=torch.tensor(loss))
    return emo_torch.get_metrics(optimizer)


def of_optax(optimizer: Any, **options: Any) -> dict[str, float]:
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for loss in LOSSES:
        updates, state = update(GRADS, state, params, value=loss)
        params = optax.apply_updates(params, updates)
    return emo_optax.get_metrics(state, grads=GRADS, **options)


WRAPPERS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "alone": lambda make, options: make(0.1, **options),
    "chain": lambda make, options: optax.chain(optax.clip_by_global_norm(1e9), make(0.1, **options)),
    "injected": lambda make, options: optax.inject_hyperparams(make)(0.1, **options),
    "MultiSteps": lambda make, options: optax.MultiSteps(make(0.1, **options), 1),
    "accumulate": lambda make, options: emo_optax.accumulate(make(0.1, **options), 1),
    "masked": lambda make, options: optax.masked(make(0.1, **options), {"b": True, "w": True}),
    "partition": lambda make, options: optax.partition({"a": make(0.1, **options)}, LABELS),
}


# Wrappers do not know the rule: one member of each rule is enough for them.
CASES = [
    (name, wrapper)
    for name in NAMES
    for wrapper in (("alone", "injected") if FAMILY[name].cousin else WRAPPERS)
]


@pytest.mark.parametrize(("name", "wrapper"), CASES)
def test_every_member_tells_what_its_twin_tells(name: str, wrapper: str) -> None:
    member = FAMILY[name]
    for options in ({"use_shadow": True}, {"theta": 0.3, "eps": 1e-2})[wrapper != "alone" :]:
        known = member.known(options)
        expected = of_torch(functools.partial(member.torch, lr=0.1, **known))
        optimizer = WRAPPERS[wrapper](member.optax, known)
        told = {} if wrapper == "injected" else {"learning_rate": 0.1}
        metrics = of_optax(optimizer, **told)
        assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("shadow_effect", [True, False])
def test_an_optimizer_made_emotional_tells_what_its_twin_tells(shadow_effect: bool) -> None:
    expected = of_torch(
        lambda params: emo_torch.Emotional(
            torch.optim.SGD(params, lr=0.1), theta=0.4, shadow_effect=shadow_effect
        )
    )
    optimizer = emo_optax.emotional(optax.sgd(0.1), theta=0.4, shadow_effect=shadow_effect)
    assert of_optax(optimizer, learning_rate=0.1) == pytest.approx(expected, rel=1e-5, abs=1e-7)
