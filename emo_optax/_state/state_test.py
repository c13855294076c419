"""Operations that keep an optimizer's state, and the contents of a state."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.reference_test import find_in_state


def _schedule(step: Any) -> Any:
    return 0.1 / (1.0 + jnp.asarray(step, jnp.float32))


OPTIMIZERS: dict[str, Any] = {
    "emo_sens": emo_optax.emo_sens(0.1),
    "emo_sens with everything": emo_optax.emo_sens(
        _schedule,
        weight_decay=_schedule,
        use_shadow=True,
        shadow_ratio="v1.0",
        mask={"w": True, "b": False},
    ),
    "emo_airy": emo_optax.emo_airy(_schedule, use_shadow=True, weight_decay_mode="l2"),
    "emo_cats": emo_optax.emo_cats(0.1, moment_dtype=jnp.bfloat16),
    "emo_cats divided": emo_optax.emo_cats(_schedule, decoupled_weight_decay=True, use_shadow=True),
    "emo_sens in Kahan's sums": emo_optax.emo_sens(0.1, rounding="kahan"),
    "emo_cats rounded at random": emo_optax.emo_cats(0.1, rounding="stochastic"),
    "emotional": emo_optax.emotional(optax.adamw(0.1), use_shadow=True, shadow_ratio=lambda s: s * s),
}
MEMBERS = [emo_optax.emo_sens, emo_optax.emo_airy, emo_optax.emo_cats]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def make_params(dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    return {"w": jnp.arange(1.0, 7.0).reshape(2, 3).astype(dtype), "b": jnp.ones(3, dtype)}


def kinds(tree: Any) -> Any:
    """Shape, dtype and weakness of every leaf, under its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): (leaf.shape, leaf.dtype, leaf.weak_type) for path, leaf in leaves}


def update(optimizer: Any, params: Any, state: Any, loss: Any = 1.0) -> Any:
    return optimizer.update(jax.tree.map(lambda p: 0.5 * p, params), state, params, value=loss)


jitted_update = jax.jit(update, static_argnums=0)


@every_optimizer
def test_every_leaf_of_a_state_is_an_array_in_a_buffer_of_its_own(optimizer: Any) -> None:
    params = make_params()
    for state in (optimizer.init(params), jax.jit(optimizer.init)(params)):
        leaves = [leaf for leaf in jax.tree.leaves((params, state)) if leaf.size]
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
        nodes = jax.tree.leaves(state, is_leaf=lambda node: not _is_plain(node))
        assert all(_is_plain(node) or isinstance(node, jax.Array) for node in nodes)


def _is_plain(node: Any) -> bool:
    return isinstance(node, tuple | dict | optax.MaskedNode)


@every_optimizer
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapes_and_dtypes_stay_under_jit_scan_and_cond(optimizer: Any, dtype: Any) -> None:
    params = make_params(dtype)
    state = optimizer.init(params)

    def step(carry: Any, loss: Any) -> Any:
        params, state = carry
        updates, state = update(optimizer, params, state, loss)
        return (optax.apply_updates(params, updates), state), None

    def perhaps(carry: Any, loss: Any) -> Any:
        return jax.lax.cond(loss > 0, lambda c: step(c, loss)[0], lambda c: c, carry)

    # Shapes alone are evaluated, under jax's own checks of what scan carries and cond returns.
    carry = (params, state)
    loss, losses = jax.eval_shape(lambda: (jnp.zeros([]), jnp.zeros(2)))
    for after in (
        jax.eval_shape(lambda c, ls: jax.lax.scan(step, c, ls)[0], carry, losses),
        jax.eval_shape(perhaps, carry, loss),
        jax.eval_shape(lambda c: step(c, 0.5)[0], carry),
    ):
        assert kinds(after) == kinds(carry)
    assert not any(weak for _, _, weak in kinds(state).values())
    assert kinds(jax.eval_shape(optimizer.init, params)) == kinds(state)


@every_optimizer
def test_init_knows_its_state_from_shapes_alone(optimizer: Any) -> None:
    params = make_params()
    shapes = jax.eval_shape(make_params)
    state = optimizer.init(params)
    assert kinds(jax.eval_shape(optimizer.init, shapes)) == kinds(state)
    assert kinds(optimizer.init(shapes)) == kinds(state)


@every_optimizer
def test_one_compilation_serves_every_loss_step_and_scheduled_value(optimizer: Any) -> None:
    traces = []

    @jax.jit
    def step(params: Any, state: Any, loss: Any) -> Any:
        traces.append(loss)
        updates, state = update(optimizer, params, state, loss)
        return optax.apply_updates(params, updates), state

    params = make_params()
    state = optimizer.init(params)
    for loss in (1.0, 1.5, np.nan, -3e38, 0.0, 1.5):
        params, state = step(params, state, jnp.asarray(loss, jnp.float32))
    assert len(traces) == 1
    assert (int(emo_optax.get_emotion(state).felt), int(emo_optax.get_emotion(state).held)) == (5, 1)


@pytest.mark.parametrize("name", ["emo_sens with everything", "emo_cats divided"])
def test_parameters_and_state_may_be_donated(name: str) -> None:
    optimizer = OPTIMIZERS[name]

    def step(params: Any, state: Any, loss: Any) -> Any:
        updates, state = update(optimizer, params, state, loss)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    for init in (optimizer.init, jax.jit(optimizer.init)):
        params = make_params()
        state = init(params)
        for loss in (1.0, 1.5, 1.4):
            before = state
            params, state = donating(params, state, jnp.asarray(loss))
            assert find_in_state(before, emo_optax.EmotionState).numbers.is_deleted()
        assert all(np.all(np.isfinite(np.asarray(leaf))) for leaf in jax.tree.leaves((params, state)))
        assert int(emo_optax.get_emotion(state).felt) == 3


@every_optimizer
def test_jitted_and_unjitted_steps_agree(optimizer: Any) -> None:
    results = []
    for step in (update, jitted_update):
        params = make_params()
        state = optimizer.init(params)
        before = kinds(state)
        for loss in (1.0, 1.5, np.nan, 0.7):
            updates, state = step(optimizer, params, state, jnp.asarray(loss, jnp.float32))
            params = optax.apply_updates(params, updates)
            assert kinds(state) == before
        results.append((params, state))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(
            np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=2e-6, atol=1e-6
        )


@every_optimizer
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_promotion_of_dtypes_is_explicit(optimizer: Any, dtype: Any) -> None:
    if optimizer is OPTIMIZERS["emotional"]:
        optimizer = emo_optax.emotional(optax.sgd(0.1, momentum=0.9))  # optax.adamw promotes by itself
    params = make_params(dtype)
    with jax.numpy_dtype_promotion("strict"):
        state = jax.eval_shape(optimizer.init, params)
        updates, _ = jax.eval_shape(lambda p, s, v: update(optimizer, p, s, v), params, state, 1.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("member", MEMBERS)
def test_no_step_makes_a_nan_on_the_way(member: Any) -> None:
    optimizer = member(0.1, use_shadow=True)
    params = {"w": jnp.ones((2, 2)), "v": jnp.zeros(2), "e": jnp.zeros((0, 2))}

    @jax.jit
    def step(params: Any, state: Any, loss: Any) -> Any:
        updates, state = update(optimizer, params, state, jnp.where(loss < 0, jnp.nan, loss))
        return optax.apply_updates(params, updates), state

    with jax.debug_nans(True):
        state = optimizer.init(params)
        for loss in (-1.0, 1.0, 3e38, -1.0, 1.0):  # below 0 stands for a loss of NaN
            params, state = step(params, state, jnp.asarray(loss))
        update(optimizer, params, state, jnp.asarray(1.0))
    assert (int(emo_optax.get_emotion(state).felt), int(emo_optax.get_emotion(state).held)) == (3, 2)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_mixed_tree_keeps_its_dtypes(member: Any) -> None:
    with jax.enable_x64(True):
        dtypes = {"h": jnp.bfloat16, "f": jnp.float16, "s": jnp.float32, "d": jnp.float64}
        params = {name: jnp.ones((2, 2), dtype) for name, dtype in dtypes.items()}
        optimizer = member(0.1, use_shadow=True)
        state = optimizer.init(params)
        for loss in (1.0, 1.5, 1.5):
            updates, state = jitted_update(optimizer, params, state, loss)
        assert {name: leaf.dtype for name, leaf in updates.items()} == {
            name: jnp.dtype(dtype) for name, dtype in dtypes.items()
        }
        shadow = find_in_state(state, emo_optax.BlendWithShadowState)
        wide = {"h": np.float32, "f": np.float32, "s": np.float32, "d": np.float64}
        assert {name: leaf.dtype for name, leaf in shadow.shadow.items()} == wide
        emotion = find_in_state(state, emo_optax.EmotionState)
        assert {emotion.short.dtype, emotion.history.dtype, shadow.ratio.dtype} == {np.dtype(np.float64)}
        for name in "hfs":
            np.testing.assert_allclose(
                updates[name].astype(jnp.float64), updates["d"], rtol=5e-3, err_msg=name
            )


@pytest.mark.parametrize("member", MEMBERS)
def test_half_precision_gradients_of_float32_parameters_are_taken(member: Any) -> None:
    params = make_params()
    optimizer = member(0.1, use_shadow=True)
    state = optimizer.init(params)
    grads = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    updates, after = optimizer.update(grads, state, params, value=1.0)
    expected, _ = optimizer.update(params, state, params, value=1.0)
    assert kinds(after) == kinds(state)
    for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-6)


@every_optimizer
def test_a_state_survives_pickling(optimizer: Any) -> None:
    params = make_params()
    _, state = update(optimizer, params, optimizer.init(params))
    back = pickle.loads(pickle.dumps(state))
    assert kinds(back) == kinds(state)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    after, expected = update(optimizer, params, back, 1.5), update(optimizer, params, state, 1.5)
    jax.tree.map(np.testing.assert_array_equal, after, expected)


@pytest.mark.parametrize("member", MEMBERS)
def test_models_side_by_side_under_vmap_equal_those_alone(member: Any) -> None:
    optimizer = member(0.1, use_shadow=True)
    params = {"w": jnp.arange(12.0).reshape(3, 2, 2), "b": jnp.ones((3, 2))}
    losses = jnp.asarray([[1.0, 1.1, 1.0], [1.0, jnp.nan, 3.0], [2.0, 1.0, 0.0]])

    def step(carry: Any, loss: Any) -> Any:
        updates, state = update(optimizer, carry[0], carry[1], loss)
        return (optax.apply_updates(carry[0], updates), state), None

    def train(params: Any, losses: Any) -> Any:
        return jax.lax.scan(step, (params, optimizer.init(params)), losses)[0]

    together = jax.jit(jax.vmap(train))(params, losses)
    train = jax.jit(train)
    for index in range(3):
        alone = train(jax.tree.map(lambda leaf, i=index: leaf[i], params), losses[index])
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(one, other[index], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("member", MEMBERS)
def test_any_tree_of_parameters_will_do(member: Any) -> None:
    vector, matrix = jnp.asarray([1.0, -2.0]), jnp.asarray([[3.0, 0.5]])
    optimizer = member(0.1, use_shadow=True)

    def last(params: Any) -> Any:
        state = optimizer.init(params)
        for loss in (1.0, 1.5, 1.2):
            updates, state = update(optimizer, params, state, loss)
        jax.tree.map(jnp.add, updates, params)  # the same structure, or an error
        return updates

    v, m = last(vector), last(matrix)
    trees = [
        (vector, {"a": [matrix, {}]}),
        {"x": None, "y": {"z": (vector, matrix)}},
        [vector, None, matrix],
    ]
    for tree in trees:
        leaves = jax.tree.leaves(last(tree))
        for leaf in leaves:
            np.testing.assert_allclose(leaf, v if leaf.ndim == 1 else m, rtol=1e-6)
        assert len(leaves) == 2
    assert last({}) == {}
    as_numpy = last({"v": np.asarray(vector), "m": np.asarray(matrix)})
    np.testing.assert_allclose(as_numpy["m"], m, rtol=1e-6)


SPECS = {"w": "spec of w", "b": "spec of b"}
WRAPPED: dict[str, Any] = {
    "alone": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "accumulate": lambda tx: emo_optax.accumulate(tx, 2),
    "runaway": lambda tx: emo_optax.scale_by_runaway(tx),
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": True}),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("rounding", ["nearest", "kahan", "stochastic"])
@pytest.mark.parametrize("name", [*emo_optax.list_optimizers(), "emotional"])
def test_specs_of_parameters_map_onto_every_state(name: str, rounding: str, wrapper: str) -> None:
    without_shadow = ("emo_pilot", "emo_pilot_airy", "ref_adamw_mini_schedule_free")
    options: dict[str, Any] = {} if name in without_shadow else {"use_shadow": True}
    if name == "emotional":
        tx = emo_optax.emotional(optax.sgd(0.1, momentum=0.9), rounding=rounding, **options)  # type: ignore[arg-type]
    else:
        tx = emo_optax.create_optimizer(
            name, 0.1, rounding=rounding, mask=lambda _: tree_of(True), **options
        )
    optimizer = WRAPPED[wrapper](tx)
    if wrapper == "runaway" and name in ("emo_pilot", "emo_pilot_airy"):  # Not to be scaled, only measured.
        optimizer = optax.chain(emo_optax.track_runaway(), tx)
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(3)}
    state = optimizer.init(params)

    def tag(leaf: Any, spec: str) -> Any:
        assert hasattr(leaf, "shape")
        return spec

    mapped = optax.tree.map_params(optimizer, tag, state, SPECS, transform_non_params=lambda _: "none")
    specs = jax.tree.leaves(mapped)
    assert specs.count("spec of w") == specs.count("spec of b") > 0
    # All that grows with the parameters was mapped as such.
    plain = [
        jnp.shape(leaf) for leaf, spec in zip(jax.tree.leaves(state), specs, strict=True) if spec == "none"
    ]
    assert set(plain) <= {(), (3,), (4,), (10,), (35,), (36,), (37,)}


def tree_of(value: bool) -> dict[str, bool]:
    return {"w": value, "b": value}
