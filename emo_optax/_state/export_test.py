"""A jitted step that is exported, written, read in another process or this one, and run."""

import collections
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax import _public
from emo_optax._state import export as _export

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}
NARROW = {"w": PARAMS["w"].astype(jnp.bfloat16), "b": PARAMS["b"]}
OPTIMIZERS: dict[str, Any] = {
    **{
        name: (lambda name=name: emo_optax.create_optimizer(name, 0.1))
        for name in emo_optax.list_optimizers()
    },
    "everything": lambda: emo_optax.emo_sens(
        optax.linear_schedule(0.1, 0.0, 9),
        weight_decay=optax.constant_schedule(0.1),
        mask=emo_optax.decay_mask,
        use_shadow=True,
        rounding="kahan",
    ),
    "stochastic": lambda: emo_optax.emo_zeal(0.1, use_shadow=True, rounding="stochastic"),
    "accumulate": lambda: emo_optax.accumulate(emo_optax.emo_airy(0.1), 2),
    "injected": lambda: optax.inject_hyperparams(emo_optax.emo_clan, hyperparam_dtype=jnp.float32)(
        optax.linear_schedule(0.1, 0.0, 9)
    ),
    "masked": lambda: optax.masked(emo_optax.emo_cats(0.1), {"w": True, "b": False}),
    "runaway": lambda: emo_optax.scale_by_runaway(emo_optax.emo_sens(0.1)),
    "emotional": lambda: emo_optax.emotional(optax.adamw(0.1), use_shadow=True),
}

RUN = ["everything", "stochastic", "accumulate", "emo_tion", "emo_lynx36", "emo_pilot"]
RUN += ["ref_adamw_mini_schedule_free"]
"""Cases that run what was read: rules and memories. In any case the program is read as it was written."""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_was_written_and_read_gives_the_same_results(name: str) -> None:
    pytest.importorskip("flatbuffers", reason="jax.export needs it to write a function")
    optimizer = OPTIMIZERS[name]()
    state = optimizer.init(NARROW)
    emo_optax.register_for_export(state)

    @jax.jit
    def step(params: Any, state: Any, loss: jax.Array) -> Any:
        grads = jax.tree.map(lambda leaf: 0.5 * leaf, params)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    exported = jax.export.export(step)(NARROW, state, jnp.asarray(1.0))
    back = jax.export.deserialize(exported.serialize())
    assert (back.in_tree, back.out_tree) == (exported.in_tree, exported.out_tree)
    for avals, wanted in ((back.in_avals, exported.in_avals), (back.out_avals, exported.out_avals)):
        assert [(aval.shape, aval.dtype) for aval in avals] == [(aval.shape, aval.dtype) for aval in wanted]
    assert back.mlir_module_serialized == exported.mlir_module_serialized
    if name not in RUN:
        return
    read = jax.jit(back.call)
    one = other = (NARROW, state)
    for loss in (1.0, 2.0, jnp.nan, 1.5):
        one, other = step(*one, jnp.asarray(loss)), read(*other, jnp.asarray(loss))
    jax.tree.map(lambda *_: None, one, other)  # An error for another tree.
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_every_named_tuple_of_the_package_that_may_be_in_a_state_is_registered() -> None:
    public = {
        value
        for name, value in vars(_public).items()
        if isinstance(value, type) and issubclass(value, tuple) and name != "EarlyStop"
    }
    assert public == set(_export._OURS)


def test_registering_again_or_beside_a_registration_of_the_user_does_nothing() -> None:
    code = """
import jax.export, jax.numpy as jnp, optax
from jax._src.export import _export
import emo_optax
assert not any("emo_optax" in name for name in _export.deserialization_registry)
jax.export.register_namedtuple_serialization(optax.EmptyState, serialized_name="mine")
emo_optax.register_for_export()
before = len(_export.deserialization_registry)
emo_optax.register_for_export()
ours = {"a": [emo_optax.emo_sens().init(jnp.ones(2))]}
emo_optax.register_for_export(optax.adam(0.1).init(jnp.ones(2)), ours)
assert len(_export.deserialization_registry) == before + 1  # optax.ScaleByAdamState
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_a_name_that_another_class_has_taken_is_an_error() -> None:
    first, second = (collections.namedtuple("Same", ["x"], module="somewhere") for _ in range(2))
    emo_optax.register_for_export(first(jnp.ones(1)))
    with pytest.raises(ValueError, match="serialized_name"):
        emo_optax.register_for_export(second(jnp.ones(1)))
