"""Memory and traces of a compiled step, and that donating its buffers changes nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

MEMBERS: dict[str, Callable[..., Any]] = {
    name: getattr(emo_optax, name) for name in emo_optax.list_optimizers()
}
SHADOW = {"use_shadow": True}
every_member = pytest.mark.parametrize("name", MEMBERS)
on_the_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA's own choice elsewhere")


def make_step(optimizer: Any) -> Callable[..., Any]:
    def step(params: Any, state: Any, grads: Any, loss: Any) -> Any:
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    return step


def temporaries(optimizer: Any, shapes: tuple[tuple[int, ...], ...]) -> float:
    """The memory of a donated step besides parameters, gradients and state, over the parameters' memory."""
    params, loss = jax.eval_shape(lambda: ([jnp.zeros(shape) for shape in shapes], jnp.zeros([])))
    state = jax.eval_shape(optimizer.init, params)
    step = jax.jit(make_step(optimizer), donate_argnums=(0, 1))
    memory: Any = step.lower(params, state, params, loss).compile().memory_analysis()
    return float(memory.temp_size_in_bytes / sum(4 * leaf.size for leaf in params))


@on_the_cpu
@every_member
def test_a_donated_step_needs_no_memory_of_its_own(name: str) -> None:
    # EmoPilot reads all gradients before it moves a weight, EmoPilotAiry all updates: a block at a time.
    most = {"emo_pilot": 0.51, "emo_pilot_airy": 0.51}.get(name, 0.02)
    assert temporaries(MEMBERS[name](), ((512, 512), (512, 512), (512,))) < most


@on_the_cpu
@pytest.mark.parametrize("make", [emo_optax.emo_pilot, lambda: emo_optax.autopilot(optax.sgd(0.1))])
def test_a_steered_program_grows_with_the_number_of_arrays_and_not_with_its_square(make: Any) -> None:
    def length(count: int) -> int:
        params, loss = jax.eval_shape(lambda: ([jnp.zeros((4, 8))] * count, jnp.zeros([])))
        optimizer = make()
        state = jax.eval_shape(optimizer.init, params)
        step = jax.jit(make_step(optimizer), donate_argnums=(0, 1))
        program: Any = step.lower(params, state, params, loss).compile()
        return len(program.as_text())

    of_one, of_some, of_more = length(1), length(12), length(24)
    assert (of_more - of_one) / (of_some - of_one) < 2.4


@on_the_cpu
@pytest.mark.parametrize("name", ["emo_sens", "emo_airy", "emo_cats"])
def test_nor_does_one_with_a_shadow(name: str) -> None:
    assert temporaries(MEMBERS[name](use_shadow=True), ((512, 512), (512, 512), (512,))) < 0.02


@on_the_cpu
def test_a_rate_that_is_not_known_yet_costs_a_copy_of_the_momentum() -> None:
    shapes = ((512, 512), (512, 512))
    for known, holds_a_copy in (((), True), (("b1", "b2"), False)):
        static = ("mask", "shadow_ratio", "moment_dtype", *known)
        optimizer = optax.inject_hyperparams(emo_optax.emo_cats, static_args=static)(1e-3)
        assert (temporaries(optimizer, shapes) > 0.02) == holds_a_copy


def _gradients(params: Any, step: int) -> Any:
    random = np.random.default_rng(step)
    return {key: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype) for key, leaf in params.items()}


def _params() -> dict[str, jax.Array]:
    random = np.random.default_rng(99)
    shapes = {"matrix": (24, 40), "vector": (40,), "cube": (3, 4, 5)}
    return {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in MEMBERS] + [(name, SHADOW) for name in ("emo_sens", "emo_airy", "emo_cats")],
)
def test_donation_changes_no_bit(name: str, options: dict[str, Any]) -> None:
    optimizer = MEMBERS[name](1e-2, **options)
    step = make_step(optimizer)
    results = []
    for compiled in (jax.jit(step), jax.jit(step, donate_argnums=(0, 1))):
        params = _params()
        state = optimizer.init(params)
        for index, loss in enumerate((2.0, 2.1, 5.0, 1.0, 1.4, 1.2)):
            params, state = compiled(params, state, _gradients(params, index), jnp.float32(loss))
        results.append(jax.tree.leaves((params, state)))
    for plain, donated in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, donated)


def _schedule(step: Any) -> Any:
    return 1e-2 / (1.0 + step)


def _injected(name: str) -> Any:
    names = ("mask", "shadow_ratio", "moment_dtype")
    return optax.inject_hyperparams(MEMBERS[name], static_args=names)(1e-2)


@pytest.mark.parametrize(
    "optimizer",
    [pytest.param(member(_schedule), id=name) for name, member in MEMBERS.items()]
    + [
        pytest.param(_injected(name), id=f"{name}, injected")
        for name in ("emo_sens", "emo_airy", "emo_cats")
    ],
)
def test_one_trace_serves_every_learning_rate_loss_and_step(optimizer: Any) -> None:
    traces = []

    @jax.jit
    def step(params: Any, state: Any, grads: Any, loss: Any) -> Any:
        traces.append(loss)
        return make_step(optimizer)(params, state, grads, loss)

    params = _params()
    state = optimizer.init(params)
    for index, loss in enumerate((2.0, 5.0, np.nan, 1.0, 1.1)):
        if hasattr(state, "hyperparams"):
            state.hyperparams["learning_rate"] = jnp.asarray(1e-2 / (1 + index), jnp.float32)
        params, state = step(params, state, _gradients(params, index), jnp.float32(loss))
    assert len(traces) == 1


@on_the_cpu
def test_moments_in_8_bits_are_decoded_one_leaf_after_the_other() -> None:
    shapes = ((64, 80),) * 8  # All leaves at once would need 4 times the parameters.
    assert temporaries(emo_optax.emo_sens(moment_dtype="8bit"), shapes) < 1.0
