"""The members under the wrappers of Optax and in the transformations of JAX, from the registry.

`wrappers_test.py` has EmoSens, EmoAiry and EmoCats, whose emotion the other members of v2.0 have.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.by_name import MEMBERS
from emo_optax._members.first_generation_test import MEMBERS as OF_V2
from emo_optax._wrappers.wrappers_test import GRADS, PARAMS, TRANSPARENT, assert_same
from emo_optax._wrappers.wrappers_test import MEMBERS as SECOND

NAMES = [name for name in MEMBERS if name not in (*SECOND, *OF_V2, "ref_adamw_mini_schedule_free")]
LOSSES = (1.0, 1.5)
COMPILED = (
    *("MultiSteps", "MultiSteps in a chain", "MultiSteps(skip_not_finite)"),
    *("accumulate", "conditionally_mask", "chain", "partition"),
)
"""Wrappers that need a compilation for each member; the last test has another form of each."""
CONDITIONAL = ("apply_if_finite", "conditionally_transform", "reduce_on_plateau")
OF_EACH_MEMORY = ("emo_sens3", "emo_navi36", "emo_pilot")
"""Members that the conditional wrappers are tried at: XLA compiles their branches for each member."""
every_member = pytest.mark.parametrize("name", NAMES)


def make(name: str) -> Any:
    """Returns a member whose steps are about 1e-3 long."""
    return MEMBERS[name].make(rate_of(name))


def rate_of(name: str) -> float:
    return 20.0 if MEMBERS[name].generation == 3 else 2e-3


def train(optimizer: Any, losses: Any = LOSSES) -> tuple[Any, Any]:
    params, state = PARAMS, optimizer.init(PARAMS)
    for loss in losses:
        updates, state = optimizer.update(GRADS, state, params, value=loss)
        params = optax.apply_updates(params, updates)
    return params, state


@functools.cache
def alone_of(name: str) -> tuple[Any, Any]:
    """Returns parameters and state of a member that was trained without a wrapper."""
    return train(make(name))


def memory_of(state: Any) -> dict[str, Any]:
    """Returns the numbers of a member's memory, found in the state at any depth."""
    found = {}
    for look in (emo_optax.get_emotion, emo_optax.get_pulse, emo_optax.get_drive, emo_optax.get_pilot):
        try:
            found[look.__name__] = look(state)
        except ValueError:  # Another kind of memory.
            continue
    return found


def test_the_later_generations_and_emo_pilot_are_here() -> None:
    assert len(NAMES) >= 9
    assert {"emo_tion", "emo_lynx36", "emo_pilot"} < set(NAMES)


@every_member
def test_a_wrapper_that_passes_the_loss_on_changes_nothing(name: str) -> None:
    expected, alone = alone_of(name)
    assert memory_of(alone)
    for title, wrap in TRANSPARENT.items():
        if title in COMPILED or (title in CONDITIONAL and name not in OF_EACH_MEMORY):
            continue
        optimizer = wrap(make(name))
        params, state = train(optimizer)
        assert_same(params, expected)
        assert memory_of(state).keys() == memory_of(alone).keys(), title
        assert_same(memory_of(state), memory_of(alone))
        if title == "apply_if_finite":
            bad = jax.tree.map(lambda grad: grad * jnp.nan, GRADS)
            updates, after = optimizer.update(bad, state, params, value=1.0)
            assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(updates))
            assert_same(after.inner_state, state.inner_state, 0.0)


@every_member
def test_hyperparameters_in_the_state_and_a_flat_tree(name: str) -> None:
    expected, alone = alone_of(name)
    params, state = train(optax.inject_hyperparams(MEMBERS[name].make)(learning_rate=rate_of(name)))
    assert_same(params, expected, 1e-4)
    assert_same(memory_of(state), memory_of(alone), 1e-4)
    if name == "emo_pilot_airy":  # A flat tree is one vector, which has no rows and columns.
        return
    params, state = train(optax.flatten(make(name)))
    assert params.keys() == expected.keys()
    assert_same(memory_of(state), memory_of(alone), 1e-3)


@every_member
def test_jit_with_donation_scan_and_vmap_around_accumulated_micro_batches(name: str) -> None:
    # MultiSteps passes the loss of the last micro-batch on.
    optimizer = optax.MultiSteps(optax.partition({"on": make(name)}, {"w": "on", "b": "on"}), 2)

    def step(carry: Any, loss: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(GRADS, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    def whole(params: Any, state: Any, losses: Any) -> Any:
        return jax.lax.scan(step, (params, state), losses)[0]

    params = jax.tree.map(lambda leaf: jnp.stack([leaf, 2.0 * leaf]), PARAMS)
    state = jax.vmap(optimizer.init)(params)
    losses = jnp.asarray([[9.0, LOSSES[0], 7.0, LOSSES[1]], [1.0, 2.0, 3.0, 4.0]])
    ended, state = jax.jit(jax.vmap(whole), donate_argnums=(0, 1))(params, state, losses)
    expected, alone = alone_of(name)
    assert_same(jax.tree.map(lambda leaf: leaf[0], ended), expected, 1e-5)
    assert_same(memory_of(jax.tree.map(lambda leaf: leaf[0], state)), memory_of(alone), 1e-5)
