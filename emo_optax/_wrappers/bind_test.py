"""Wrappers of Optax that drop the loss, under `bind_extra_args`: each against a plain loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

TARGET = {"w": jnp.asarray([[0.3, -0.1], [0.0, 2.0]]), "b": jnp.asarray([0.1, 1.0])}
STEPS = 5


def start() -> dict[str, jax.Array]:
    return {"w": jnp.asarray([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.asarray([0.5, -1.0])}


def loss_of(params: Any) -> jax.Array:
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(TARGET), strict=True)
    return jnp.asarray(sum(jnp.mean(jnp.square(p - t)) for p, t in pairs))


def member() -> Any:
    return emo_optax.emo_sens(0.1, use_shadow=True)


def close(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)


def add(params: Any, updates: Any) -> Any:
    return jax.tree.map(jnp.add, params, updates)


def lookahead(inner: Any) -> Any:
    return optax.lookahead(inner, 2, 0.5)


def test_lookahead_passes_the_loss_on_when_it_is_bound() -> None:
    optimizer = emo_optax.bind_extra_args(lookahead, member())

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params.fast)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    params = optax.LookaheadParams.init_synced(start())
    state = optimizer.init(params)
    alone = member()
    fast, slow = start(), start()
    alone_state = alone.init(fast)
    for index in range(STEPS):
        params, state = step(params, state)
        loss, grads = jax.value_and_grad(loss_of)(fast)
        updates, alone_state = alone.update(grads, alone_state, fast, value=loss)
        fast = add(fast, updates)
        if index % 2:
            slow = fast = jax.tree.map(lambda f, s: s + 0.5 * (f - s), fast, slow)
        close((params.fast, params.slow), (fast, slow))
    close(emo_optax.get_emotion(state), emo_optax.get_emotion(alone_state))
    assert int(emo_optax.get_emotion(state).felt) == STEPS


ADVERSARY = optax.sgd(0.05)


def test_sam_feels_the_loss_at_the_perturbed_parameters() -> None:
    optimizer = emo_optax.bind_extra_args(lambda inner: optax.contrib.sam(inner, ADVERSARY), member())

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    params, expected = start(), start()
    state = optimizer.init(params)
    alone = member()
    alone_state = alone.init(expected)
    for _ in range(STEPS):
        for _ in range(2):
            params, state = step(params, state)
        perturbed = jax.tree.map(lambda p, g: p + 0.05 * g, expected, jax.grad(loss_of)(expected))
        loss, grads = jax.value_and_grad(loss_of)(perturbed)
        updates, alone_state = alone.update(grads, alone_state, expected, value=loss)
        expected = add(expected, updates)
        close(params, expected)
    close(emo_optax.get_emotion(state), emo_optax.get_emotion(alone_state))
    assert state.opt_state.emotion.counts.dtype == jnp.int32


def test_sam_in_opaque_mode_gets_its_gradient_function_and_the_optimizer_the_loss() -> None:
    optimizer = emo_optax.bind_extra_args(
        lambda inner: optax.contrib.sam(inner, ADVERSARY, opaque_mode=True), member()
    )

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(
            grads, state, params, value=loss, grad_fn=lambda p, _: jax.grad(loss_of)(p)
        )
        return optax.apply_updates(params, updates), state

    params, expected = start(), start()
    state = optimizer.init(params)
    alone = member()
    alone_state = alone.init(expected)
    for _ in range(STEPS):
        params, state = step(params, state)
        loss, grads = jax.value_and_grad(loss_of)(expected)
        grads = jax.grad(loss_of)(jax.tree.map(lambda p, g: p + 0.05 * g, expected, grads))
        updates, alone_state = alone.update(grads, alone_state, expected, value=loss)
        expected = add(expected, updates)
        close(params, expected)
    close(emo_optax.get_emotion(state), emo_optax.get_emotion(alone_state))


def test_complex_parameters_are_split_in_two_and_the_loss_arrives() -> None:
    optimizer = emo_optax.bind_extra_args(optax.contrib.split_real_and_imaginary, member())
    params = {"z": jnp.asarray([1.0 + 2.0j, -0.5j]), "r": jnp.asarray([1.0, 2.0])}
    pairs = {"re": params["z"].real, "im": params["z"].imag, "r": params["r"]}
    alone = member()
    state, alone_state = optimizer.init(params), alone.init(pairs)
    step = jax.jit(optimizer.update)
    for loss in (1.0, 1.5, 1.2):
        updates, state = step(params, state, params, value=loss)
        params = optax.apply_updates(params, updates)
        moved, alone_state = alone.update(pairs, alone_state, pairs, value=loss)
        pairs = add(pairs, moved)
    close(params, {"r": pairs["r"], "z": pairs["re"] + 1j * pairs["im"]})


def test_galore_steps_as_far_as_the_emotion_allows() -> None:
    # GaLore hands no parameters in, so that its optimizer is one that needs none.
    base = emo_optax.share_emotion(optax.chain(optax.scale_by_adam(), emo_optax.scale_by_emotion()))
    optimizer = emo_optax.bind_extra_args(
        lambda inner: optax.contrib.galore(0.1, rank=1, base_optimizer=inner), base
    )
    plain = optax.contrib.galore(0.1, rank=1)
    params = start()
    state, plain_state = optimizer.init(params), plain.init(params)
    scales = []
    for loss in (1.0, 1.1, 1.0):
        updates, state = jax.jit(optimizer.update)(TARGET, state, params, value=loss)
        expected, plain_state = jax.jit(plain.update)(TARGET, plain_state, params)
        scale = emo_optax.get_emotion(state).step_scale
        close(updates, jax.tree.map(lambda u, s=scale: u * s, expected))
        scales.append(float(scale))
    assert scales[0] == 1.0 > scales[1]


def nested(inner: Any) -> Any:
    return optax.chain(optax.clip(1e9), optax.MultiSteps(inner, 2).gradient_transformation())


def test_multi_steps_nested_in_a_chain_equals_multi_steps_alone() -> None:
    optimizer, alone = emo_optax.bind_extra_args(nested, member()), optax.MultiSteps(member(), 2)
    params, expected = start(), start()
    state, alone_state = optimizer.init(params), alone.init(expected)
    for loss in (9.0, 1.0, 7.0, 1.5):
        updates, state = jax.jit(optimizer.update)(TARGET, state, params, value=loss)
        params = add(params, updates)
        updates, alone_state = jax.jit(alone.update)(TARGET, alone_state, expected, value=loss)
        expected = add(expected, updates)
        close(params, expected)
    assert int(emo_optax.get_emotion(state).felt) == 2
    assert float(emo_optax.get_emotion(state).short) == pytest.approx(1.15)


def plain(inner: Any) -> Any:
    return optax.chain(optax.GradientTransformation(inner.init, inner.update), optax.identity())


def test_a_plain_transformation_around_changes_nothing() -> None:
    optimizer, alone = emo_optax.bind_extra_args(plain, member()), member()
    params, expected = start(), start()
    state, alone_state = optimizer.init(params), alone.init(expected)
    for loss in (1.0, 1.5, 1.2):
        updates, state = jax.jit(optimizer.update)(TARGET, state, params, value=loss)
        params = add(params, updates)
        updates, alone_state = jax.jit(alone.update)(TARGET, alone_state, expected, value=loss)
        expected = add(expected, updates)
    close((params, emo_optax.get_emotion(state)), (expected, emo_optax.get_emotion(alone_state)))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "lookahead": lookahead,
    "lookahead that resets": lambda inner: optax.lookahead(inner, 2, 0.5, reset_state=True),
    "sam": lambda inner: optax.contrib.sam(inner, ADVERSARY),
    "split_real_and_imaginary": optax.contrib.split_real_and_imaginary,
    "MultiSteps in a chain": nested,
    "MultiSteps": lambda inner: optax.MultiSteps(inner, 2),
    "plain": plain,
}


def start_for(wrapper: Any) -> Any:
    synced = optax.LookaheadParams.init_synced
    return synced(start()) if wrapper in tuple(WRAPPERS.values())[:2] else start()


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("name", emo_optax.list_optimizers())
def test_the_state_keeps_its_dtypes_and_the_optimizer_may_stand_in_a_chain(wrapper: Any, name: str) -> None:
    optimizer = optax.chain(
        emo_optax.bind_extra_args(wrapper, emo_optax.create_optimizer(name, 0.1)), optax.identity()
    )
    params = start_for(wrapper)

    def twice(params: Any, state: Any) -> Any:
        def step(carry: Any, loss: Any) -> Any:
            params, state = carry
            updates, state = optimizer.update(TARGET, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jnp.ones(2))[0]

    state = optimizer.init(params)
    # scan refuses a carry whose dtypes change.
    after: Any = jax.eval_shape(twice, params, state)
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [
        leaf.dtype for leaf in jax.tree.leaves((params, state))
    ]


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_without_a_loss_the_error_names_the_adapter(wrapper: Any) -> None:
    optimizer = emo_optax.bind_extra_args(wrapper, member())
    params = start_for(wrapper)
    with pytest.raises(emo_optax.LossMissingError, match=r"emo_optax\.bind_extra_args\(lambda inner:"):
        optimizer.update(TARGET, optimizer.init(params), params)


def test_what_is_no_wrapper_is_refused() -> None:
    with pytest.raises(TypeError, match=r"needs a function that wraps"):
        emo_optax.bind_extra_args(optax.sgd(0.1), member())
    with pytest.raises(TypeError, match=r"must return a transformation of Optax, and returned None"):
        emo_optax.bind_extra_args(lambda _: None, member())
    with pytest.raises(TypeError, match=r"A transformation of Optax is needed"):
        emo_optax.bind_extra_args(lookahead, None)


def test_what_the_wrapper_knows_is_handed_to_it_and_the_rest_is_not() -> None:
    seen = {}

    def wrapper(inner: Any) -> Any:
        def update(updates: Any, state: Any, params: Any = None, *, temperature: Any = None) -> Any:
            seen["temperature"] = temperature
            return inner.update(updates, state, params)

        return optax.GradientTransformation(inner.init, update)

    optimizer = emo_optax.bind_extra_args(wrapper, member())
    params = start()
    optimizer.update(TARGET, optimizer.init(params), params, value=1.0, temperature=3.0)
    assert seen == {"temperature": 3.0}


def test_one_compilation_serves_every_loss() -> None:
    optimizer = emo_optax.bind_extra_args(lookahead, member())
    traces = []

    @jax.jit
    def step(params: Any, state: Any, loss: Any) -> Any:
        traces.append(loss)
        return optimizer.update(TARGET, state, params, value=loss)[1]

    params = optax.LookaheadParams.init_synced(start())
    state = optimizer.init(params)
    for loss in (1.0, 2.0, 0.5):
        state = step(params, state, loss)
    assert len(traces) == 1
