"""The loss arrives as a gradient, or is computed again."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

X = jnp.linspace(-1.0, 1.0, 24).reshape(8, 3)
Y = X @ jnp.asarray([1.0, -2.0, 0.5]) + 0.3
Tree = dict[str, Any]


def start() -> Tree:
    return {"w": jnp.asarray([0.1, 0.2, 0.3]), "b": jnp.zeros(())}


def loss_of(params: Tree, x: jax.Array = X, y: jax.Array = Y) -> jax.Array:
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def carried(params: Tree, x: jax.Array = X, y: jax.Array = Y) -> jax.Array:
    return emo_optax.carry_loss(loss_of(params, x, y), params["carrier"])


def plain_run(optimizer: Any, steps: int = 4) -> tuple[Tree, emo_optax.Emotion]:
    params = start()
    state = optimizer.init(params)

    @jax.jit
    def step(params: Tree, state: Any) -> tuple[Tree, Any]:
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, emo_optax.get_emotion(state)


def carried_run(
    optimizer: Any, grad_of: Callable[[Tree], Tree], steps: int = 4, with_jit: bool = True
) -> tuple[Tree, emo_optax.Emotion]:
    params = {**start(), "carrier": jnp.zeros(())}
    state = optimizer.init(params)

    def step(params: Tree, state: Any) -> tuple[Tree, Any]:
        updates, state = optimizer.update(grad_of(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = (jax.jit(step) if with_jit else step)(params, state)
    assert params.pop("carrier") == 0.0
    return params, emo_optax.get_emotion(state)


def assert_same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def in_chunks(params: Tree) -> jax.Array:
    def body(total: jax.Array, chunk: Any) -> tuple[jax.Array, None]:
        return total + carried(params, *chunk), None

    total, _ = jax.lax.scan(body, jnp.zeros(()), (X.reshape(2, 4, 3), Y.reshape(2, 4)))
    return total / 2


def by_example(params: Tree) -> jax.Array:
    losses: jax.Array = jax.vmap(lambda x, y: carried(params, x[None], y[None]))(X, Y)
    return losses.mean()


def unscaled(params: Tree) -> Tree:
    grads = jax.grad(lambda params: 1024.0 * carried(params))(params)
    return jax.tree.map(lambda grad: grad / 1024.0, grads)  # type: ignore[no-any-return]


def member() -> Any:
    return optax.chain(optax.clip_by_global_norm(0.5), emo_optax.emo_sens(1e-2, use_shadow=True))


BIT_EQUAL: dict[str, Callable[[Tree], Tree]] = {
    "plain": jax.grad(carried),
    "jit": jax.grad(jax.jit(carried)),
    "remat": jax.grad(jax.checkpoint(carried)),
}
CLOSE: dict[str, Callable[[Tree], Tree]] = {
    "scan": jax.grad(in_chunks),
    "vmap": jax.grad(by_example),
    "scaled": unscaled,
}


@pytest.mark.parametrize("name", BIT_EQUAL)
def test_a_carried_loss_is_felt_as_one_that_is_passed(name: str) -> None:
    optimizer = emo_optax.loss_from_gradient(member())
    assert_same(carried_run(optimizer, BIT_EQUAL[name]), plain_run(member()))


@pytest.mark.parametrize("name", CLOSE)
def test_parts_of_a_mean_add_up(name: str) -> None:
    found = carried_run(emo_optax.loss_from_gradient(member()), CLOSE[name])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), found, plain_run(member())
    )


def test_multi_steps_hands_on_the_mean() -> None:
    optimizer = optax.MultiSteps(emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2)), 2)
    params = {**start(), "carrier": jnp.zeros(())}
    state = optimizer.init(params)
    for part in (slice(0, 2), slice(2, 8)):
        _, state = optimizer.update(jax.grad(carried)(params, X[part], Y[part]), state, params)
    mean = (loss_of(params, X[:2], Y[:2]) + loss_of(params, X[2:], Y[2:])) / 2
    assert emo_optax.get_emotion(state).felt == 1
    np.testing.assert_allclose(emo_optax.get_emotion(state).long, mean, rtol=1e-6)


def check_replicas(check_vma: bool) -> None:
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=auto)
    part, whole = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()

    def grad_of(params: Tree, x: jax.Array, y: jax.Array) -> Tree:
        if check_vma:  # JAX adds up the gradients of the replicas itself.
            whole_loss = jax.grad(lambda params: jax.lax.pmean(carried(params, x, y), "batch"))
            return whole_loss(params)  # type: ignore[no-any-return]
        return jax.lax.pmean(jax.grad(carried)(params, x, y), "batch")  # type: ignore[no-any-return]

    sharded = jax.shard_map(
        grad_of, mesh=mesh, in_specs=(whole, part, part), out_specs=whole, check_vma=check_vma
    )
    grads = jax.jit(sharded)({**start(), "carrier": jnp.zeros(())}, X, Y)
    np.testing.assert_allclose(grads["carrier"], loss_of(start()), rtol=1e-6)
    np.testing.assert_allclose(grads["w"], jax.grad(loss_of)(start())["w"], rtol=1e-5)


@pytest.mark.parametrize("check_vma", [False, True])
def test_replicas_under_shard_map_feel_the_mean_of_their_losses(check_vma: bool) -> None:
    code = f"from emo_optax._wrappers import loss_from_gradient_test as t; t.check_replicas({check_vma})"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("with_jit", [False, True])
def test_a_step_that_is_not_finite_is_skipped_with_its_loss(with_jit: bool) -> None:
    optimizer = optax.apply_if_finite(emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2)), 3)
    params = {**start(), "carrier": jnp.zeros(())}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update) if with_jit else optimizer.update
    for factor in (1.0, jnp.nan):
        grads = jax.tree.map(lambda grad, factor=factor: grad * factor, jax.grad(carried)(params))
        _, state = update(grads, state, params)
    emotion = emo_optax.get_emotion(state)
    assert [int(emotion.felt), int(emotion.held)] == [1, 0]
    assert emotion.long == loss_of(start())


def test_replicas_under_vmap_with_a_name() -> None:
    params = {**start(), "carrier": jnp.zeros(())}

    def grad_of(x: jax.Array, y: jax.Array) -> Tree:
        return jax.lax.pmean(jax.grad(carried)(params, x, y), "batch")  # type: ignore[no-any-return]

    grads = jax.vmap(grad_of, axis_name="batch")(X.reshape(2, 4, 3), Y.reshape(2, 4))
    np.testing.assert_allclose(grads["carrier"], [loss_of(start())] * 2, rtol=1e-6)


def test_a_function_finds_the_leaf_of_an_equinox_module() -> None:
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")

    class Model(eqx.Module):  # type: ignore[misc, name-defined]
        layer: Any
        carrier: jax.Array

    @eqx.filter_value_and_grad  # type: ignore[untyped-decorator]
    def value_and_grad(model: Any) -> jax.Array:
        loss = jnp.mean((jax.vmap(model.layer)(X)[:, 0] - Y) ** 2)
        return emo_optax.carry_loss(loss, model.carrier)

    model: Any = Model(eqx.nn.Linear(3, 1, key=jax.random.key(0)), jnp.zeros(()))
    optimizer = emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2), where=lambda model: model.carrier)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    loss, grads = value_and_grad(model)
    updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    moved = eqx.apply_updates(model, updates)
    assert emo_optax.get_emotion(state).long == loss
    assert moved.carrier == 0.0
    assert not np.array_equal(moved.layer.weight, model.layer.weight)


@pytest.mark.parametrize("where", [lambda state: state["carrier"], "carrier"], ids=["function", "key"])
def test_an_nnx_optimizer_hands_it_on(where: Any) -> None:
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")

    class Model(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.layer = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
            self.carrier = nnx.Param(jnp.zeros(()))

    def loss_of(model: Any) -> jax.Array:
        return emo_optax.carry_loss(jnp.mean((model.layer(X)[:, 0] - Y) ** 2), model.carrier[...])

    model = Model()
    optimizer = nnx.Optimizer(
        model, emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2), where), wrt=nnx.Param
    )
    kernel = np.asarray(model.layer.kernel[...])
    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    assert emo_optax.get_emotion(optimizer.opt_state).long == loss
    assert model.carrier[...] == 0.0
    assert not np.array_equal(model.layer.kernel[...], kernel)


def test_a_key_finds_the_leaf_in_nested_dicts_and_a_number_in_tuples() -> None:
    haiku = {"linear": {"w": jnp.ones(2)}, "~": {"carrier": jnp.zeros(())}}
    grads = {"linear": {"w": jnp.ones(2)}, "~": {"carrier": jnp.asarray(3.0)}}
    optimizer = emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2), "carrier")
    updates, state = optimizer.update(grads, optimizer.init(haiku), haiku)
    assert emo_optax.get_emotion(state).long == 3.0
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, haiku)
    optimizer = emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2), 1)
    pair = (jnp.ones(2), jnp.zeros(()))
    _, state = optimizer.update((jnp.ones(2), jnp.asarray(4.0)), optimizer.init(pair), pair)
    assert emo_optax.get_emotion(state).long == 4.0


def test_the_carrier_takes_no_part_in_the_state_and_the_norms() -> None:
    params = {"w": jnp.ones(2), "carrier": jnp.zeros(())}
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.with_extra_args_support(optax.sgd(1.0)))
    optimizer = emo_optax.loss_from_gradient(inner)
    grads = {"w": jnp.asarray([0.6, 0.8]), "carrier": jnp.asarray(1e6)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.6, -0.8], rtol=1e-6)
    moments = emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2, use_shadow=True)).init(params)
    without = emo_optax.emo_sens(1e-2, use_shadow=True).init({"w": jnp.ones(2)})
    assert len(jax.tree.leaves(moments)) == len(jax.tree.leaves(without))


def test_a_loss_that_is_passed_as_well_goes_first_and_counts_once() -> None:
    optimizer = emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2))
    params = {**start(), "carrier": jnp.zeros(())}
    _, state = optimizer.update(jax.grad(carried)(params), optimizer.init(params), params, value=7.0)
    assert emo_optax.get_emotion(state).long == 7.0
    assert emo_optax.get_emotion(state).felt == 1


def test_float16_losses_are_carried_in_float32() -> None:
    def scaled(carrier: jax.Array) -> jax.Array:
        return emo_optax.carry_loss(jnp.asarray(3000.0, jnp.float16), carrier) * 1024.0

    assert jax.grad(lambda carrier: scaled(carrier).astype(jnp.float32))(jnp.zeros(())) == 3000.0 * 1024.0


def test_the_loss_computed_again_is_free_under_jit() -> None:
    optimizer = emo_optax.loss_from_function(member(), loss_of)

    def step(params: Tree, state: Any, with_value: bool) -> tuple[Tree, Any]:
        loss, grads = jax.value_and_grad(loss_of)(params)
        extra = {"value": loss} if with_value else {}
        updates, state = optimizer.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params = start()
    state = optimizer.init(params)
    jitted = jax.jit(step, static_argnums=2)
    costs: Any = [jitted.lower(params, state, given).compile().cost_analysis() for given in (True, False)]
    flops = [cost["flops"] for cost in costs]
    assert flops[0] == flops[1] > 0
    for _ in range(4):
        params, state = jax.jit(step, static_argnums=2)(params, state, False)
    assert_same((params, emo_optax.get_emotion(state)), plain_run(member()))


def test_the_loss_cannot_be_computed_without_parameters() -> None:
    optimizer = emo_optax.loss_from_function(emo_optax.emo_sens(1e-2, weight_decay=0.0), loss_of)
    state = optimizer.init(start())
    with pytest.raises(ValueError, match="`params` was not given"):
        optimizer.update(start(), state)
    assert emo_optax.get_emotion(optimizer.update(start(), state, value=2.0)[1]).long == 2.0


WITHOUT_PARAMS = [
    name
    for name in emo_optax.list_optimizers()
    if name.startswith("emo_") and name not in ("emo_pilot", "emo_pilot_airy", "emo_tion", "emo_void")
]


WITHOUT_SHADOW = {name: {"use_shadow": False} for name in ("emo_fact", "emo_lynx", "emo_navi")}


@pytest.mark.parametrize("name", WITHOUT_PARAMS)
def test_a_member_steps_without_parameters_where_nothing_needs_them(name: str) -> None:
    optimizer = emo_optax.create_optimizer(name, 1e-3, weight_decay=0.0, **WITHOUT_SHADOW.get(name, {}))
    params = start()
    state = optimizer.init(params)
    loss, grads = jax.value_and_grad(loss_of)(params)
    assert_same(
        optimizer.update(grads, state, value=loss), optimizer.update(grads, state, params, value=loss)
    )


@pytest.mark.parametrize(
    "options", [{"weight_decay": 0.01}, {"weight_decay": 0.0, "use_shadow": True}], ids=["decay", "shadow"]
)
def test_what_needs_the_parameters_says_so(options: dict[str, Any]) -> None:
    optimizer = emo_optax.emo_sens(1e-3, **options)
    with pytest.raises(ValueError, match="`params` was not given"):
        optimizer.update(start(), optimizer.init(start()), value=1.0)
