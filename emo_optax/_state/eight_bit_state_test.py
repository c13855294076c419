"""Moments in 8 bits: what a step keeps, checkpoints, and what is refused."""

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._checks.states import are_alike, nodes_of
from emo_optax._rules.eight_bit import decode, encode
from emo_optax._rules.moments import decoded
from emo_shared.eight_bit import SIGNED, UNSIGNED

SHAPES = {"large": (70, 61), "flat": (4097,), "small": (63, 65)}
TAKES = [
    name
    for name in emo_optax.list_optimizers()
    if "moment_dtype" in inspect.signature(getattr(emo_optax, name)).parameters
]
REFUSED = {
    *("emo_airy", "emo_fact", "emo_clan", "emo_zeal"),
    *("emo_pilot", "emo_pilot_airy", "ref_adamw_mini_schedule_free"),
}
CODED = [name for name in TAKES if name not in REFUSED]


def _params(dtype: Any = jnp.float32) -> Any:
    random = np.random.RandomState(0)
    return {name: jnp.asarray(random.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def _grads(params: Any, number: int) -> Any:
    random = np.random.RandomState(100 + number)

    def draw(leaf: Any) -> Any:
        return random.normal(size=leaf.shape) * 10.0 ** random.normal(size=leaf.shape)

    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf), leaf.dtype), params)


def _make(name: str, **options: Any) -> Any:
    return emo_optax.create_optimizer(name, 0.01, moment_dtype="8bit", **options)


def _step_of(optimizer: Any) -> Any:
    @jax.jit
    def step(params: Any, state: Any, grads: Any, loss: Any) -> Any:
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    return step


def _run(step: Any, params: Any, state: Any, numbers: range) -> tuple[Any, Any]:
    for number in numbers:
        params, state = step(params, state, _grads(params, number), jnp.asarray(1.0 / (1 + number)))
    return params, state


def _assert_same(one: Any, other: Any) -> None:
    assert are_alike(one, other)
    pairs = zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True)
    for (path, a), b in pairs:
        assert a.dtype == b.dtype, path
        assert np.array_equal(a, b), path


@pytest.mark.parametrize("name", CODED)
def test_large_moments_are_codes_and_small_moments_stay_float32(name: str) -> None:
    params = _params()
    state = jax.eval_shape(_make(name).init, params)
    coded = nodes_of(state, emo_optax.CodedMoment)
    assert {moment.codes.dtype for moment in coded} == {jnp.dtype(jnp.uint8)}
    each = len(coded) // 2  # Two of the three parameters are large.
    assert each in (1, 2)
    for wanted in (SHAPES["large"], SHAPES["flat"]):
        own = [moment for moment in coded if moment.codes.shape == wanted]
        size = sum(part.size * part.dtype.itemsize for moment in own for part in moment)
        assert len(own) == each
        assert size / np.prod(wanted) <= 1.05 * each
    assert any(
        leaf.shape == SHAPES["small"] and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state)
    )


@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [
        ("emo_sens", jnp.float32, {}),
        ("emo_cats", jnp.float32, {}),
        ("emo_neco", jnp.float32, {}),
        ("emo_tion", jnp.float32, {}),
        ("emo_sens", jnp.bfloat16, {"rounding": "kahan"}),
        ("emo_cats", jnp.bfloat16, {"rounding": "stochastic"}),
    ],
)
def test_a_step_is_that_of_decoded_float32_moments(name: str, dtype: Any, options: dict[str, Any]) -> None:
    coded = emo_optax.CodedMoment
    ours, theirs = _make(name, **options), emo_optax.create_optimizer(name, 0.01, **options)
    params = twins = _params(dtype)
    state, wide = ours.init(params), theirs.init(params)
    step, twin_step = _step_of(ours), _step_of(theirs)
    for number in range(3):
        params, state = _run(step, params, state, range(number, number + 1))
        twins, wide = _run(twin_step, twins, wide, range(number, number + 1))
        for key, param in params.items():
            close = {"rtol": 0, "atol": 0} if dtype == jnp.bfloat16 else {"rtol": 1e-6, "atol": 1e-7}
            np.testing.assert_allclose(param.astype(jnp.float32), twins[key].astype(jnp.float32), **close)

        def values(path: Any, leaf: Any, other: Any) -> Any:
            if not isinstance(leaf, coded):
                return leaf
            table = UNSIGNED if any(getattr(key, "name", "") == "nu" for key in path) else SIGNED
            expected = jax.jit(encode, static_argnums=1)(other, table)
            # XLA fuses multiplications and additions in its own way: a code may be the neighbour's.
            far = np.abs(np.asarray(leaf.codes, np.int32) - np.asarray(expected.codes, np.int32))
            assert far.max() <= 1
            assert np.mean(far > 0) < 1e-3
            np.testing.assert_allclose(leaf.scales, expected.scales, rtol=1e-6)
            return jax.jit(decode, static_argnums=1)(leaf, table)

        # The next step begins at equal values.
        wide = jax.tree_util.tree_map_with_path(
            values, state, wide, is_leaf=lambda node: isinstance(node, coded)
        )
        twins = params


@pytest.mark.parametrize("is_wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CODED)
def test_a_step_promotes_no_dtype_without_a_word(name: str, is_wide: bool) -> None:
    with jax.enable_x64(is_wide), jax.numpy_dtype_promotion("strict"):
        optimizer = _make(name)
        params = _params(jnp.float64 if is_wide else jnp.bfloat16)
        state = jax.eval_shape(optimizer.init, params)
        _, after = jax.eval_shape(lambda p, s: optimizer.update(p, s, p, value=1.0), params, state)
        jax.tree.map(lambda old, new: np.testing.assert_equal(new.dtype, old.dtype), state, after)


@pytest.mark.parametrize("name", CODED)
def test_specs_of_parameters_map_onto_moments_as_leaves(name: str) -> None:
    optimizer, params = _make(name, use_shadow=False), _params()
    state = optimizer.init(params)

    def spec_of(moment: Any, spec: str) -> Any:
        specs: Any = (spec, "spec of scales")
        return emo_optax.CodedMoment(*specs) if isinstance(moment, emo_optax.CodedMoment) else spec

    specs = optax.tree.map_params(
        optimizer,
        spec_of,
        state,
        {leaf: f"spec of {leaf}" for leaf in params},
        transform_non_params=lambda _: "none",
        is_leaf=lambda node: isinstance(node, emo_optax.CodedMoment),
    )
    assert are_alike(state, specs)
    leaves = jax.tree.leaves(specs)
    assert leaves.count("spec of large") == leaves.count("spec of small") > 0
    assert leaves.count("spec of scales") == 2 * leaves.count("spec of large")


def test_a_step_is_traced_once() -> None:
    optimizer, count = _make("emo_sens"), 0

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        nonlocal count
        count += 1
        updates, state = optimizer.update(grads, state, params, value=jnp.asarray(1.0))
        return optax.apply_updates(params, updates), state

    params = _params()
    state = optimizer.init(params)
    for number in range(3):
        params, state = step(params, state, _grads(params, number))
    assert count == 1


@pytest.mark.parametrize("name", ["emo_sens", "emo_tion"])
@pytest.mark.parametrize("is_wide", [False, True])
def test_a_step_keeps_the_kinds_of_the_state(name: str, is_wide: bool) -> None:
    with jax.enable_x64(is_wide):
        optimizer, params = _make(name), _params(jnp.float64 if is_wide else jnp.float32)
        state = jax.eval_shape(optimizer.init, params)
        _, moved = jax.eval_shape(_step_of(optimizer), params, state, params, jnp.asarray(1.0))
        assert moved == state


def _by_pickle(state: Any, optimizer: Any, path: Path) -> Any:
    del optimizer, path
    return pickle.loads(pickle.dumps(jax.device_get(state)))


def _by_checkpoint(state: Any, optimizer: Any, path: Path) -> Any:
    emo_optax.save_checkpoint(path / "run", state)
    return emo_optax.load_checkpoint(path / "run", optimizer.init(_params()))


def _by_arrays(state: Any, optimizer: Any, path: Path) -> Any:
    emo_optax.save_arrays(path / "run", emo_optax.to_arrays(state))
    return emo_optax.from_arrays(emo_optax.load_arrays(path / "run"), optimizer.init(_params()))


def _by_flax(state: Any, optimizer: Any, path: Path) -> Any:
    del path
    serialization = pytest.importorskip("flax.serialization")
    data = serialization.to_bytes(state)
    return serialization.from_bytes(optimizer.init(_params()), data)


def _by_orbax(state: Any, optimizer: Any, path: Path) -> Any:
    checkpoint = pytest.importorskip("orbax.checkpoint")
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save((path / "run").absolute(), state)
        checkpointer.wait_until_finished()
        return checkpointer.restore((path / "run").absolute(), optimizer.init(_params()))


@pytest.mark.parametrize("way", [_by_pickle, _by_checkpoint, _by_arrays, _by_flax, _by_orbax])
def test_a_run_goes_on_to_the_bit(way: Callable[[Any, Any, Path], Any], tmp_path: Path) -> None:
    optimizer = _make("emo_sens", use_shadow=True)
    step = _step_of(optimizer)
    params = _params()
    params, state = _run(step, params, optimizer.init(params), range(2))
    again = way(state, optimizer, tmp_path)
    _assert_same(state, jax.tree.map(jnp.asarray, again))
    _assert_same(_run(step, params, state, range(2, 4)), _run(step, params, again, range(2, 4)))


def test_an_exported_step_reads_and_gives_codes() -> None:
    pytest.importorskip("flatbuffers", reason="jax.export needs it to write a function")
    optimizer = _make("emo_cats")
    params = {"large": _params()["large"]}
    state = optimizer.init(params)
    emo_optax.register_for_export(state)
    step = jax.jit(lambda grads, state: optimizer.update(grads, state, params, value=jnp.asarray(1.0)))
    written = jax.export.export(step)(params, state).serialize()
    _assert_same(jax.export.deserialize(written).call(params, state), step(params, state))


def test_moments_that_a_mask_keeps_back_have_no_codes() -> None:
    optimizer = optax.masked(_make("emo_cats"), {"large": True, "flat": False, "small": False})
    state = optimizer.init(_params())
    assert [moment.codes.shape for moment in nodes_of(state, emo_optax.CodedMoment)] == [SHAPES["large"]]


def test_decoded_moments_are_encoded_to_the_same_codes() -> None:
    params = _params()
    _, state = _run(_step_of(_make("emo_sens")), params, _make("emo_sens").init(params), range(2))
    (rule,) = nodes_of(state, emo_optax.ScaleByUncorrectedAdamState)
    again = (
        encode(decoded(rule.mu)["large"], SIGNED),
        encode(decoded(rule.nu, is_square=True)["flat"], UNSIGNED),
    )
    _assert_same(again, (rule.mu["large"], rule.nu["flat"]))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_rule_with_other_moments_refuses_8_bits(name: str) -> None:
    with pytest.raises(ValueError, match=r"'8bit' is not for .*bfloat16"):
        _make(name)


def test_a_state_of_other_parameters_is_refused() -> None:
    optimizer, params = _make("emo_cats"), _params()
    state = optimizer.init({**params, "flat": jnp.ones(4096)})
    with pytest.raises(ValueError, match="does not fit this optimizer and these parameters"):
        optimizer.update(params, state, params, value=1.0)
