"""Which losses cannot be carried by a gradient, and the errors that say so."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import emo_optax
from emo_optax._wrappers.loss_from_gradient_test import carried, loss_of, start

REFUSED: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("no carrier", lambda: emo_optax.carry_loss(jnp.ones(()), None), TypeError, r"Add a leaf `jnp.zeros"),  # type: ignore[arg-type]
    ("half", lambda: emo_optax.carry_loss(jnp.ones(()), jnp.zeros((), jnp.bfloat16)), TypeError, "float32"),
    (
        "shape",
        lambda: emo_optax.carry_loss(jnp.ones(()), jnp.zeros(1)),
        ValueError,
        r"Use `jnp.zeros\(\(\)\)`",
    ),
    ("losses", lambda: emo_optax.carry_loss(jnp.ones(3), jnp.zeros(())), ValueError, "Reduce it first"),
    ("whole", lambda: emo_optax.carry_loss(jnp.asarray(1), jnp.zeros(())), TypeError, "floating-point"),
    ("where", lambda: emo_optax.loss_from_gradient(optax.sgd(1.0), 1.5), TypeError, "Invalid where"),  # type: ignore[arg-type]
    ("inner", lambda: emo_optax.loss_from_gradient(None), TypeError, "transformation of Optax"),
    ("loss_of", lambda: emo_optax.loss_from_function(optax.sgd(1.0), 1.0), TypeError, "Invalid loss_of"),  # type: ignore[arg-type]
    (
        "key",
        lambda: emo_optax.loss_from_gradient(optax.sgd(1.0)).init(start()),
        ValueError,
        "There is no carrier",
    ),
    (
        "function",
        lambda: emo_optax.loss_from_gradient(optax.sgd(1.0), lambda tree: tree.carrier).init(start()),
        ValueError,
        "There is no carrier",
    ),
    (
        "two",
        lambda: emo_optax.loss_from_gradient(optax.sgd(1.0)).init(
            [{"carrier": jnp.zeros(())}, {"carrier": jnp.zeros(())}]
        ),
        ValueError,
        "selects 2 leaves",
    ),
    (
        "dtype",
        lambda: emo_optax.loss_from_gradient(optax.sgd(1.0)).init({"carrier": jnp.zeros((), jnp.float16)}),
        TypeError,
        "must be float32 or float64",
    ),
    (
        "twice",
        lambda: jax.grad(lambda c: emo_optax.carry_loss(emo_optax.carry_loss(1.0 + c, c), c))(
            jnp.zeros(())
        ),
        ValueError,
        "would double the loss",
    ),
    (
        "forward",
        lambda: jax.jvp(lambda c: emo_optax.carry_loss(1.0 + c, c), (jnp.zeros(()),), (jnp.ones(()),)),
        TypeError,
        "works in reverse mode",
    ),
    (
        "jacfwd",
        lambda: jax.jacfwd(lambda c: emo_optax.carry_loss(1.0 + c, c))(jnp.zeros(())),
        TypeError,
        "reverse",
    ),
]


@pytest.mark.parametrize(
    ("make", "kind", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_cannot_carry_is_refused(make: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        make()


def test_a_carrier_that_moved_is_refused_or_held_under_jit() -> None:
    optimizer = emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2))
    params = {**start(), "carrier": jnp.zeros(())}
    state, grads = optimizer.init(params), jax.grad(carried)(params)
    moved = {**params, "carrier": jnp.asarray(0.1)}
    with pytest.raises(ValueError, match="must be 0 at all times"):
        optimizer.update(grads, state, moved)
    _, after = jax.jit(optimizer.update)(grads, state, moved)
    emotion = emo_optax.get_emotion(after)
    assert [int(emotion.felt), int(emotion.held)] == [0, 1]


def test_a_loss_that_nobody_carried_is_refused_or_held_under_jit() -> None:
    optimizer = emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2))
    params = {**start(), "carrier": jnp.zeros(())}
    state, grads = optimizer.init(params), jax.grad(loss_of)(params)
    with pytest.raises(emo_optax.LossMissingError, match="so no loss was carried"):
        optimizer.update(grads, state, params)
    _, after = jax.jit(optimizer.update)(grads, state, params)
    emotion = emo_optax.get_emotion(after)
    assert [int(emotion.felt), int(emotion.held)] == [0, 1]
    still = jax.tree.map(jnp.zeros_like, grads)
    for update in (optimizer.update, jax.jit(optimizer.update)):  # A loss of 0 at a minimum.
        assert emo_optax.get_emotion(update(still, state, params)[1]).felt == 1


def test_gradients_without_the_carrier_are_refused() -> None:
    optimizer = emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2))
    params = {**start(), "carrier": jnp.zeros(())}
    with pytest.raises(ValueError, match="in the gradients"):
        optimizer.update({**start(), "carrier": None}, optimizer.init(params), params)
