"""Checkpoints by the libraries of JAX: a run that is saved and loaded goes on bit for bit."""

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

serialization = pytest.importorskip("flax.serialization", reason="Flax is not installed")
ocp = pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
safetensors = pytest.importorskip("safetensors.flax", reason="safetensors is not installed")

MEMBERS: dict[str, dict[str, Any]] = {
    **{name: {} for name in emo_optax.list_optimizers()},
    "emo_sens with the shadow, in Kahan's sums": {"use_shadow": True, "rounding": "kahan"},
    "emo_cats rounded at random": {"rounding": "stochastic"},
}


def start() -> Any:
    return {
        "w": jnp.asarray([[1.0, -2.0], [3.0, 0.5]]),
        "b": jnp.asarray([0.5, -1.0], jnp.bfloat16),
    }


@functools.cache
def make(name: str) -> tuple[Any, Any]:
    """Returns a member and a jitted step of it, which its tests have in common."""
    optimizer = emo_optax.create_optimizer(name.split()[0], 0.05, **MEMBERS[name])

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        def loss_of(params: Any) -> Any:
            return jnp.mean(jnp.square(params["w"] @ params["b"].astype(jnp.float32) - 1.0))

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    return optimizer, step


def train(name: str, run: Any, steps: int) -> Any:
    for _ in range(steps):
        run = make(name)[1](*run)
    return run


def named(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def by_pickle(folder: Path, run: Any, target: Any) -> Any:
    del target
    (folder / "run").write_bytes(pickle.dumps(run))
    return pickle.loads((folder / "run").read_bytes())


def by_bytes(folder: Path, run: Any, target: Any) -> Any:
    (folder / "run").write_bytes(serialization.to_bytes(run))
    return serialization.from_bytes(target, (folder / "run").read_bytes())


def by_state_dict(folder: Path, run: Any, target: Any) -> Any:
    del folder
    return serialization.from_state_dict(target, serialization.to_state_dict(run))


def by_safetensors(folder: Path, run: Any, target: Any) -> Any:
    safetensors.save_file(named(run), folder / "run.safetensors")
    loaded = safetensors.load_file(folder / "run.safetensors")
    return jax.tree_util.tree_map_with_path(lambda path, _: loaded[jax.tree_util.keystr(path)], target)


def by_standard_checkpointer(folder: Path, run: Any, target: Any) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "run", run)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "run", target)


def by_checkpoint_manager(folder: Path, run: Any, target: Any) -> Any:
    with ocp.CheckpointManager(folder) as manager:
        manager.save(3, args=ocp.args.StandardSave(run))
        manager.wait_until_finished()
    with ocp.CheckpointManager(folder) as manager:
        assert manager.latest_step() == 3
        return manager.restore(3, args=ocp.args.StandardRestore(target))


WAYS: dict[str, Callable[[Path, Any, Any], Any]] = {
    "pickle": by_pickle,
    "flax.serialization, bytes": by_bytes,
    "flax.serialization, state_dict": by_state_dict,
    "safetensors": by_safetensors,
    "StandardCheckpointer": by_standard_checkpointer,
    "CheckpointManager": by_checkpoint_manager,
}


# The tests of a member run in one process, which compiles its step once.
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(f"resume-{name}")) for name in MEMBERS]
)
def test_a_run_resumes_bit_for_bit(name: str, way: Any, tmp_path: Path) -> None:
    params = start()
    halfway = train(name, (params, make(name)[0].init(params)), 3)
    expected = train(name, halfway, 3)
    loaded = way(tmp_path, halfway, (params, make(name)[0].init(params)))
    assert str(jax.tree.structure(loaded)) == str(jax.tree.structure(halfway))  # no dicts for NamedTuples
    resumed = train(name, loaded, 3)
    for one, other in zip(jax.tree.leaves(resumed), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


# ---- A state of another layout: of an older version, or of another optimizer


class OldEmotionState(NamedTuple):
    """The values of `EmotionState`, each in its own array, without the last value."""

    felt: Any
    held: Any
    short: Any
    long: Any
    scalar: Any
    history: Any


def of_older_layout(state: Any) -> Any:
    def older(node: Any) -> Any:
        if not isinstance(node, emo_optax.EmotionState):
            return node
        return OldEmotionState(*(getattr(node, name) for name in OldEmotionState._fields))

    return jax.tree.map(older, state, is_leaf=lambda node: isinstance(node, emo_optax.EmotionState))


def test_flax_names_what_an_older_layout_lacks() -> None:
    _, state = train("emo_sens", (start(), make("emo_sens")[0].init(start())), 3)
    old = serialization.to_state_dict(of_older_layout(state))
    with pytest.raises(ValueError, match=r"(?s)field names.*counts"):
        serialization.from_state_dict(state, old)


def test_orbax_names_what_an_older_layout_lacks(tmp_path: Path) -> None:
    _, state = train("emo_sens", (start(), make("emo_sens")[0].init(start())), 3)
    with pytest.raises(ValueError, match=r"(?s)counts"):
        by_standard_checkpointer(tmp_path, of_older_layout(state), state)


def test_what_an_older_layout_lacks_may_be_taken_from_a_fresh_state() -> None:
    optimizer = make("emo_sens")[0]
    _, state = train("emo_sens", (start(), optimizer.init(start())), 3)
    old = serialization.to_state_dict(of_older_layout(state))
    fresh: Any = optimizer.init(start())
    emotion = fresh.emotion.replace(**old["emotion"])
    loaded = serialization.from_state_dict(fresh, {**old, "emotion": serialization.to_state_dict(emotion)})
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)  # The signal was not set in either.


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    state, other = (make(name)[0].init(start()) for name in ("emo_sens", "emo_airy"))
    with pytest.raises(ValueError):  # noqa: PT011, each in its own words
        by_standard_checkpointer(tmp_path, state, other)
    with pytest.raises((ValueError, KeyError)):
        by_state_dict(tmp_path, state, other)
