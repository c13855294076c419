"""States after saving and loading, and the files that are refused."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import emo_optax

LOSSES = [1.0, 1.3, 0.8, 2.5, float("nan"), 0.7, 1.1, 9.0, 1.0, 1.2]
OPTIMIZERS: dict[str, Any] = {
    "emo_sens": emo_optax.emo_sens(optax.linear_schedule(0.1, 0.0, 20), use_shadow=True),
    "emo_airy": emo_optax.emo_airy(0.1, rounding="stochastic"),
    "emo_cats": emo_optax.emo_cats(0.1, decoupled_weight_decay=True, moment_dtype=jnp.bfloat16),
    "emo_navi": emo_optax.emo_navi(0.1),
    "emo_fact": emo_optax.emo_fact(0.1),
    "emo_lynx": emo_optax.emo_lynx(0.1),
    "emo_clan": emo_optax.emo_clan(0.1),
    "emo_neco": emo_optax.emo_neco(0.1, rounding="kahan"),
    "emo_zeal": emo_optax.emo_zeal(0.1),
    "ref": emo_optax.ref_adamw_mini_schedule_free(0.1, ref_max_steps=10),
    "emotional": emo_optax.emotional(optax.adamw(0.1), use_shadow=True),
    "injected": optax.inject_hyperparams(emo_optax.emo_sens)(optax.linear_schedule(0.1, 0.0, 20)),
    "accumulating": optax.MultiSteps(emo_optax.emo_sens(0.1), 2),
    "masked": optax.chain(
        optax.clip_by_global_norm(1.0), optax.masked(emo_optax.emo_cats(0.1), {"w": True, "b": False})
    ),
}


def make_params() -> Any:
    return {"w": jnp.arange(1.0, 7.0).reshape(2, 3).astype(jnp.bfloat16), "b": jnp.ones(3)}


@functools.partial(jax.jit, static_argnums=0)
def step(optimizer: Any, params: Any, state: Any, number: Any, loss: Any) -> Any:
    grads = jax.tree.map(lambda param: (param * jnp.cos(number + param)).astype(param.dtype), params)
    updates, state = optimizer.update(grads, state, params, value=loss)
    return optax.apply_updates(params, updates), state


def train(optimizer: Any, run: Any, first: int, last: int) -> Any:
    """Takes the steps from `first` to `last`, the same steps for every caller."""
    params, state = run["params"], run["state"]
    for number in range(first, last):
        params, state = step(optimizer, params, state, float(number), LOSSES[number])
    return {"params": params, "state": state, "step": last}


def begin(optimizer: Any) -> Any:
    params = make_params()
    return {"params": params, "state": optimizer.init(params), "step": 0}


def assert_same(ours: Any, theirs: Any) -> None:
    """Compares trees to the last bit, and in their dtypes."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (ours, theirs)]
    assert structures[0] == structures[1]
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert type(one) is type(other)
        if isinstance(one, jax.Array) and jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


# Runs.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_that_was_broken_off_goes_on_as_if_it_had_not(name: str, tmp_path: Path) -> None:
    optimizer, path = OPTIMIZERS[name], tmp_path / "run"
    run = train(optimizer, begin(optimizer), 0, 5)
    emo_optax.save_checkpoint(path, run)
    resumed = emo_optax.load_checkpoint(path, like=begin(optimizer))
    assert_same(resumed, run)
    assert resumed["step"] == 5
    assert_same(train(optimizer, resumed, 5, 8), train(optimizer, run, 5, 8))


def test_shapes_alone_are_enough_to_load_into(tmp_path: Path) -> None:
    optimizer, path = OPTIMIZERS["emo_sens"], tmp_path / "run"
    run = {**train(optimizer, begin(optimizer), 0, 3), "step": jnp.asarray(3), "key": jax.random.key(1)}
    emo_optax.save_checkpoint(path, run)
    shapes = jax.eval_shape(lambda: {**begin(optimizer), "step": jnp.asarray(0), "key": jax.random.key(0)})
    assert_same(emo_optax.load_checkpoint(path, shapes), run)


def test_every_kind_of_leaf_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    bits = np.arange(256, dtype=np.uint8)
    names = [
        "bool",
        "int8",
        "uint16",
        "int32",
        "float16",
        "float32",
        "float8_e4m3fn",
        "float8_e5m2",
        "int4",
    ]
    tree: dict[str, Any] = {name: jnp.asarray(bits % 2).astype(name) for name in names}
    tree["nan"] = jax.lax.bitcast_convert_type(jnp.asarray(0x7FC12345, jnp.uint32), jnp.float32)
    tree["all of bfloat16"] = jax.lax.bitcast_convert_type(
        jnp.arange(65536, dtype=jnp.uint16), jnp.bfloat16
    )
    tree["complex"] = jnp.asarray([1 + 2j])
    tree["keys"] = jax.random.split(jax.random.key(3), 2)
    tree["another key"] = jax.random.key(3, impl="rbg")
    tree["NumPy's"] = [np.asarray([1.0, -0.0]), np.float64(0.1), np.asarray(1 + 1j), bits.reshape(16, 16).T]
    tree["ml_dtypes"] = np.asarray([0.5, 2.0]).astype(ml_dtypes.float8_e4m3b11fnuz)
    tree["weak"] = [jnp.asarray(0.5), jnp.full((2, 3), 2), jnp.full((0,), 1j)]
    tree["Python's"] = (True, 2**53 + 1, 0.1, float("inf"))
    tree["empty"] = [jnp.zeros((0, 3)), jnp.zeros([]), (), None, {}]
    emo_optax.save_checkpoint(tmp_path / "run", tree)
    blank = jax.tree.map(lambda leaf: leaf, tree)
    loaded = emo_optax.load_checkpoint(tmp_path / "run", blank)
    assert_same(loaded, tree)
    assert loaded["Python's"] == tree["Python's"]
    assert [type(leaf) for leaf in loaded["Python's"]] == [bool, int, float, float]
    assert all(leaf.weak_type for leaf in loaded["weak"])
    assert not any(loaded[name].weak_type for name in names)
    assert jax.random.key_impl(loaded["another key"]) == jax.random.key_impl(tree["another key"])
    alone = jnp.ones(2)
    emo_optax.save_checkpoint(tmp_path / "run", alone)
    assert_same(emo_optax.load_checkpoint(tmp_path / "run", alone), alone)


def test_float64_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        tree = {"x": jnp.asarray([0.1, 1e-300]), "n": jnp.asarray(2**40), "c": jnp.asarray([1 + 1e-300j])}
        emo_optax.save_checkpoint(tmp_path / "run", tree)
        assert_same(emo_optax.load_checkpoint(tmp_path / "run", tree), tree)
    narrow = jax.tree.map(
        jnp.asarray, {"x": np.zeros(2, np.float32), "n": 0, "c": np.ones(1, np.complex64)}
    )
    with pytest.raises(
        emo_optax.CheckpointError, match=r"'c' is complex128 in .*, and complex64 in `like`"
    ):
        emo_optax.load_checkpoint(tmp_path / "run", narrow)


def test_what_was_loaded_may_be_donated_and_lies_where_it_lay(tmp_path: Path) -> None:
    optimizer, path = OPTIMIZERS["emo_sens"], tmp_path / "run"
    run = begin(optimizer)
    emo_optax.save_checkpoint(path, run)
    loaded = emo_optax.load_checkpoint(path, run)
    assert not any(leaf.committed for leaf in jax.tree.leaves((loaded["params"], loaded["state"])))

    donating = jax.jit(step, static_argnums=0, donate_argnums=(1, 2))
    before = loaded["params"]["w"]
    after = donating(optimizer, loaded["params"], loaded["state"], 0.0, 1.0)
    assert_same(after, step(optimizer, run["params"], run["state"], 0.0, 1.0))
    assert before.is_deleted()
    placed = jax.device_put(run["params"], jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    emo_optax.save_checkpoint(path, placed)
    again = emo_optax.load_checkpoint(path, placed)
    assert again["w"].committed
    assert again["w"].sharding == placed["w"].sharding


def test_a_model_of_flax_goes_through_a_file(tmp_path: Path) -> None:
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed: `pip install flax`")

    def make(seed: int) -> Any:
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(seed))
        return model, nnx.Optimizer(model, emo_optax.emo_sens(1e-2), wrt=nnx.Param)

    model, optimizer = make(0)
    optimizer.step[...] = 3
    emo_optax.save_checkpoint(tmp_path / "run", nnx.state((model, optimizer)))
    twin = make(1)
    nnx.update(twin, emo_optax.load_checkpoint(tmp_path / "run", like=nnx.state(twin)))
    assert_same(nnx.state(twin), nnx.state((model, optimizer)))
