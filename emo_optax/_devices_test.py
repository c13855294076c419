"""Many devices: tests marked `on_eight_devices` run in a separate process, in which the CPU is 8 devices.

XLA needs this setting before JAX starts. Each test here reads its result from the process.
"""

import functools
import inspect
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import emo_optax

FLAG = "--xla_force_host_platform_device_count=8"
IS_THERE = FLAG in os.environ.get("XLA_FLAGS", "")
# Partitioning is tested here, and not fusions: the older emitters, and LLVM's lowest level, compile faster.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
QUICK += " --xla_backend_optimization_level=0"
QUICK = QUICK if jax.__version_info__[:2] == (0, 10) else ""  # An unknown flag is fatal.
FLAGS = f"{FLAG} {QUICK}"
pytestmark = pytest.mark.xdist_group("eight devices")


@functools.cache
def outcomes() -> dict[str, str]:
    """Returns the error of each test of this file on eight devices, "" for none."""
    paths = [str(Path(emo_optax.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    with tempfile.TemporaryDirectory() as folder:
        settings, report = Path(folder) / "pytest.ini", Path(folder) / "report.xml"
        settings.write_text("[pytest]\nmarkers = xdist_group\n")
        warnings = ("-W", "error", "-W", "ignore:A learning rate of", "-W", "ignore:Error reading")
        files = (f"--confcutdir={Path(__file__).parent}", f"--junitxml={report}")
        options = ("-c", settings, *files, *warnings, "--import-mode=importlib")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *options, __file__],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        cases = xml.etree.ElementTree.parse(report).iter("testcase")
        return {case.get("name", ""): "".join(part.text or "" for part in case) for case in cases}


def on_eight_devices(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that needs eight devices."""
    if IS_THERE:
        return test

    @functools.wraps(test)
    def look_up(*_: Any, **__: Any) -> None:
        name = os.environ["PYTEST_CURRENT_TEST"].split("::", 1)[1].removesuffix(" (call)")
        name = name.removesuffix("@eight devices")  # As pytest-xdist names the tests of a group.
        outcome = outcomes()[name]
        if outcome:
            pytest.fail(outcome, pytrace=False)

    return look_up


MEMBERS = emo_optax.list_optimizers()
FEATURES = np.random.RandomState(0).normal(size=(4, 16, 8)).astype(np.float32)
TARGETS = np.random.RandomState(1).normal(size=(4, 16, 8)).astype(np.float32)


def make(name: str, **options: Any) -> Any:
    if name == "adamw":
        return optax.with_extra_args_support(optax.adamw(0.05))
    known = inspect.signature(getattr(emo_optax, name)).parameters
    wanted = {"use_shadow": True, "gain": 0.3}
    options = {**{option: value for option, value in wanted.items() if option in known}, **options}
    return emo_optax.create_optimizer(name, 0.05, **options)


def start() -> Any:
    random = np.random.RandomState(2)
    return {
        "w": jnp.asarray(random.normal(size=(8, 8)), jnp.float32),
        "b": jnp.asarray(random.normal(size=8), jnp.float32),
    }


def loss_of(params: Any, features: Any, targets: Any) -> Any:
    # The features differ in size from one replica to the next, and so the losses.
    return jnp.mean(jnp.square(features @ params["w"] + params["b"] - targets))


def assert_close(one: Any, other: Any, rtol: float = 2e-4, atol: float = 2e-5) -> None:
    pairs = zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True)
    for (path, a), b in pairs:
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


# ---- One program for all devices: jax.jit with sharded arrays


def step_of(optimizer: Any) -> Any:
    @jax.jit
    def step(params: Any, state: Any, features: Any, targets: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, features, targets)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    return step


def train(optimizer: Any, step: Any, params: Any, features: Any, targets: Any) -> tuple[Any, Any]:
    state = optimizer.init(params)
    for batch in zip(features, targets, strict=True):
        params, state = step(params, state, *batch)
    return params, state


@functools.cache
def on_one_device(name: str) -> Any:
    optimizer = make(name)
    return train(optimizer, step_of(optimizer), start(), FEATURES, TARGETS)


# Of each mesh: its shape, and how the batch, the matrix and the vector lie in it.
LAYOUTS: dict[str, tuple[tuple[int, ...], Any, Any, Any]] = {
    "8, replicated parameters": ((8,), P("x"), P(), P()),
    "8, sharded parameters": ((8,), P("x"), P("x"), P()),
    "4x2, sharded parameters": ((4, 2), P("x"), P("x", "y"), P("y")),
}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


@functools.cache
def train_sharded(name: str, kind: str, layout: str) -> tuple[Any, Any, Any]:
    shape, of_batch, of_matrix, of_vector = LAYOUTS[layout]
    axes = ("x", "y")[: len(shape)]
    mesh = jax.make_mesh(shape, axes, axis_types=(KINDS[kind],) * len(shape))
    with jax.set_mesh(mesh):
        optimizer = make(name)
        step = step_of(optimizer)
        params = jax.device_put(start(), {"w": of_matrix, "b": of_vector})
        batches = ([jax.device_put(batch, of_batch) for batch in part] for part in (FEATURES, TARGETS))
        return *train(optimizer, step, params, *batches), step


# One member of each rule, and each way to feel the loss; the other members are made of the same pieces.
OF_EACH_RULE = ["emo_airy", "emo_cats", "emo_neco", "emo_zeal", "emo_lynx36", "emo_airy3", "emo_pilot"]
OF_EACH_RULE += ["emo_pilot_airy", "ref_adamw_mini_schedule_free"]
CASES = [
    *((name, "auto", "4x2, sharded parameters") for name in MEMBERS),
    *((name, "auto", "8, replicated parameters") for name in OF_EACH_RULE),
    *((name, "explicit", "4x2, sharded parameters") for name in OF_EACH_RULE),
    ("emo_sens", "explicit", "8, replicated parameters"),
    ("emo_airy", "explicit", "8, sharded parameters"),
    ("emo_airy", "auto", "8, sharded parameters"),
]


@on_eight_devices
@pytest.mark.parametrize(("name", "kind", "layout"), CASES)
def test_sharded_arrays_under_jit_give_what_one_device_gives(name: str, kind: str, layout: str) -> None:
    params, state, step = train_sharded(name, kind, layout)
    assert_close((params, state), on_one_device(name))
    # What is shaped like a parameter lies like it, and nothing is compiled that adamw's step is not.
    for path, leaf in jax.tree_util.tree_leaves_with_path((params, state)):
        for param in jax.tree.leaves(params):
            if leaf.shape == param.shape:
                where = jax.tree_util.keystr(path)
                assert leaf.sharding.is_equivalent_to(param.sharding, leaf.ndim), where
    assert not params["w"].sharding.is_fully_replicated or "sharded" not in layout
    assert step._cache_size() <= train_sharded("adamw", kind, layout)[2]._cache_size()


@on_eight_devices
@pytest.mark.parametrize("name", MEMBERS)
def test_types_say_where_a_step_leaves_its_arrays(name: str) -> None:
    # Where axes are explicit, a trace knows where each array lies.
    with jax.set_mesh(jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))):
        params = jax.device_put(start(), {"w": P("x"), "b": P()})
        batch = jax.device_put((FEATURES[0], TARGETS[0]), P("x"))
        state = jax.eval_shape(make(name).init, params)
        results = jax.eval_shape(step_of(make(name)), params, state, *batch)
    both = jax.tree.leaves((state, results))
    found = [leaf.sharding.spec for leaf in both if leaf.shape == (8, 8)]
    assert found == [P("x", None)] * len(found) != []


@on_eight_devices
def test_factors_have_the_sharding_of_their_rows_and_columns() -> None:
    for kind in KINDS:
        _, state, _ = train_sharded("emo_airy", kind, "4x2, sharded parameters")
        factors = [leaf.sharding.spec for leaf in jax.tree.leaves(state) if leaf.shape in ((8, 1), (1, 8))]
        assert [tuple(spec) + (None,) * (2 - len(spec)) for spec in factors] == [("x", None), (None, "y")]


# ---- A program for each device: jax.shard_map and jax.pmap, where `axis_name` averages the loss

# Gradients are averaged, but each replica gives the loss of its own part of the batch.
PARTS = np.asarray([0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0], np.float32)[:, None, None]
REPLICAS = (FEATURES[:, None] * PARTS, TARGETS[:, None] * PARTS)
"""Inputs and targets of each step and replica, `[4, 8, 16, 8]`."""


def replica_step(optimizer: Any, axis: Any, *, check_vma: bool = False) -> Any:
    def step(params: Any, state: Any, features: Any, targets: Any) -> Any:
        # Without it shard_map would sum the gradients of parameters that do not vary.
        own = jax.lax.pcast(params, axis, to="varying") if check_vma else params
        loss, grads = jax.value_and_grad(loss_of)(own, features, targets)
        updates, state = optimizer.update(jax.lax.pmean(grads, axis), state, params, value=loss)
        return optax.apply_updates(params, updates), state

    return step


def in_shard_map(optimizer: Any, axis: Any = "x", *, check_vma: bool) -> Any:
    """Returns a function to the parameters and the state of each replica, or of all, where it checks."""
    shape, names = ((8,), ("x",)) if axis == "x" else ((4, 2), ("x", "y"))
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))
    step = replica_step(optimizer, axis, check_vma=check_vma)

    def part(params: Any, state: Any, features: Any, targets: Any) -> Any:
        batches = (features[:, 0], targets[:, 0])
        carry = jax.lax.scan(lambda carry, batch: (step(*carry, *batch), None), (params, state), batches)[0]
        return jax.tree.map(lambda leaf: leaf[None], carry)

    specs = (P(), P(), P(None, names), P(None, names))
    outside = P() if check_vma else P(names)
    return jax.jit(jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=outside, check_vma=check_vma))


def train_in_shard_map(optimizer: Any, axis: Any = "x", *, check_vma: bool = False) -> Any:
    params = start()
    return in_shard_map(optimizer, axis, check_vma=check_vma)(params, optimizer.init(params), *REPLICAS)


def first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def train_in_pmap(optimizer: Any) -> Any:
    step = jax.pmap(replica_step(optimizer, "x"), axis_name="x")
    params = start()
    params, state = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (8, *leaf.shape)), (params, optimizer.init(params))
    )
    for features, targets in zip(*REPLICAS, strict=True):
        params, state = step(params, state, features, targets)
    return params, state


@functools.cache
def train_on_means(name: str) -> Any:
    """Trains one model on the mean of all replicas' losses and gradients."""
    optimizer = make(name)

    @jax.jit
    def step(params: Any, state: Any, features: Any, targets: Any) -> Any:
        both = jax.vmap(jax.value_and_grad(loss_of), (None, 0, 0))(params, features, targets)
        loss, grads = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), both)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    return train(optimizer, step, start(), *REPLICAS)


def are_bit_equal(tree: Any) -> bool:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    assert all(len(leaf) == 8 for leaf in leaves)
    return all(np.array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape)) for leaf in leaves)


@on_eight_devices
@pytest.mark.parametrize("name", OF_EACH_RULE)
def test_replicas_with_different_losses_stay_bit_equal_under_shard_map(name: str) -> None:
    result = train_in_shard_map(make(name, axis_name="x"), check_vma=False)
    assert are_bit_equal(result)
    assert_close(first(result), train_on_means(name))


@on_eight_devices
@pytest.mark.parametrize("name", MEMBERS)
def test_what_shard_map_checks_it_finds_replicated(name: str) -> None:
    # It refuses to return arrays that it cannot prove equal on all devices.
    optimizer = make(name, axis_name="x")
    params = start()
    in_shard_map(optimizer, check_vma=True).trace(params, optimizer.init(params), *REPLICAS)
    if name == "emo_sens":
        assert_close(first(train_in_shard_map(optimizer, check_vma=True)), train_on_means(name))


REPRESENTATIVES = ["emo_sens", "ref_adamw_mini_schedule_free"]


@on_eight_devices
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_replicas_stay_bit_equal_under_pmap(name: str) -> None:
    result = train_in_pmap(make(name, axis_name="x"))
    assert are_bit_equal(result)
    assert_close(first(result), train_on_means(name))


@on_eight_devices
def test_the_loss_may_be_averaged_over_two_axes() -> None:
    result = train_in_shard_map(make("emo_sens", axis_name=("x", "y")), ("x", "y"), check_vma=False)
    assert are_bit_equal(result)
    assert_close(first(result), train_on_means("emo_sens"))


@on_eight_devices
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_without_axis_name_replicas_drift_apart_or_are_refused(name: str) -> None:
    # RefAdamWMiniScheduleFree must see a loss rise on some replicas only: there it injects more.
    assert not are_bit_equal(train_in_shard_map(make(name), check_vma=False)[1])
    assert not are_bit_equal(train_in_pmap(make(name))[1])
    with pytest.raises(TypeError, match=r"V:x"):  # as a carry of scan; returned, a ValueError
        train_in_shard_map(make(name), check_vma=True)
    if name == "emo_sens":
        assert not are_bit_equal(train_in_pmap(make(name))[0])


@on_eight_devices
@pytest.mark.parametrize("skip", [None, optax.skip_not_finite])
def test_micro_batches_of_replicas_are_felt_by_the_mean_of_all(skip: Any) -> None:
    optimizer = emo_optax.accumulate(make("emo_sens"), 2, skip, axis_name="x")
    result = train_in_shard_map(optimizer)
    assert are_bit_equal(result)
    assert int(emo_optax.get_emotion(first(result[1])).felt) == 2
    params = start()
    in_shard_map(optimizer, check_vma=True).trace(params, optimizer.init(params), *REPLICAS)


@on_eight_devices
def test_a_loss_averaged_before_may_be_averaged_again() -> None:
    optimizer = emo_optax.track_emotion(axis_name="x")
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    params = jnp.ones(2)
    state = optimizer.init(params)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("x")), out_specs=P())
    def step(state: Any, losses: Any) -> Any:
        value = jax.lax.pmean(losses[0], "x")
        return optimizer.update(params, state, params, value=value)[1]

    state = step(state, jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 12.0]))
    assert float(emo_optax.get_emotion(state).long) == 5.0
    state = step(state, jnp.asarray([1.0] * 7 + [jnp.nan]))
    emotion = emo_optax.get_emotion(state)
    assert (int(emotion.felt), int(emotion.held)) == (1, 1)


@on_eight_devices
def test_a_monitor_stops_all_replicas_at_once() -> None:
    monitor = emo_optax.early_stop(axis_name="x")
    # Constant on average; each for itself goes up and down.
    losses = [1.0 + 0.5 * (-1.0) ** index * jnp.asarray([1.0, -1.0] * 4) for index in range(40)]

    def watch(monitor: Any) -> Any:
        update = jax.pmap(monitor.update, axis_name="x")
        state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (8, *leaf.shape)), monitor.init())
        for each in losses:
            state = update(state, each)
        return state

    state = watch(monitor)
    assert are_bit_equal(state)
    assert bool(state.should_stop.all())
    assert not watch(emo_optax.early_stop()).should_stop.any()


@on_eight_devices
def test_blocks_of_moments_in_8_bits_stay_on_their_device() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    optimizer = emo_optax.emo_sens(moment_dtype="8bit")
    update = jax.jit(lambda grads, state: optimizer.update(grads, state, grads, value=1.0))
    grads = jnp.asarray(np.random.RandomState(0).normal(size=(64, 512)), jnp.float32)
    for spec in (P(None, "x"), P("x")):  # Columns cut blocks, so that devices exchange elements.
        split = jax.device_put(grads, NamedSharding(mesh, spec))
        assert_close(update(grads, optimizer.init(grads)), update(split, optimizer.init(split)), 0.0, 1e-7)
    assert "all-gather" not in str(update.lower(split, optimizer.init(split)).compile().as_text())
    explicit = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"Explicit.*\(64, 512\) has the sharding"):
        optimizer.init(jax.device_put(grads, NamedSharding(explicit, P("x"))))
