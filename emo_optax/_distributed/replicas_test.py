"""Two processes joined by `jax.distributed`: each has half of the batch, both end with the same bits."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import emo_optax
from emo_optax._devices_test import QUICK

FOLDER = Path(emo_optax.__file__).parent.parent


def work(address: str, index: int) -> None:
    """Trains as one of two processes and prints what came out of it, for `Popen`."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.experimental import multihost_utils
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=index)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    features = np.random.RandomState(index).normal(size=(4, 3)).astype(np.float32) * (1 + 3 * index)

    def loss_of(params: Any, features: Any) -> Any:
        return jnp.mean(jnp.square(features @ params - 1.0))

    def whole_batch(optimizer: Any, params: Any, state: Any, features: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, features)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    def own_part(optimizer: Any, params: Any, state: Any, features: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, features)
        updates, state = optimizer.update(jax.lax.pmean(grads, "x"), state, params, value=loss)
        return optax.apply_updates(params, updates), state

    def mapped(optimizer: Any) -> Any:
        return jax.shard_map(
            lambda *each: own_part(optimizer, *each),
            mesh=mesh,
            in_specs=(P(), P(), P("x")),
            out_specs=P(),
            check_vma=False,
        )

    batch = jax.make_array_from_process_local_data(NamedSharding(mesh, P("x")), features)
    results = {}
    runs: dict[str, tuple[dict[str, Any], Any]] = {
        "jit": ({}, lambda optimizer: lambda *each: whole_batch(optimizer, *each)),
        "shard_map with axis_name": ({"axis_name": "x"}, mapped),
        "shard_map without": ({}, mapped),
    }
    for name, (options, program) in runs.items():
        optimizer = emo_optax.emo_sens(0.1, use_shadow=True, **options)
        step = jax.jit(program(optimizer))
        params = multihost_utils.host_local_array_to_global_array(jnp.ones(3), mesh, P())
        state = multihost_utils.host_local_array_to_global_array(optimizer.init(jnp.ones(3)), mesh, P())
        for _ in range(5):
            params, state = step(params, state, batch)
        local = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), (params, state))
        leaves = jax.tree.leaves(local)
        results[name] = {
            "bits": [leaf.tobytes().hex() for leaf in leaves],
            "params": leaves[0].tolist(),
            "felt": int(emo_optax.get_emotion(local[1]).felt),
        }
    print(json.dumps(results))
    jax.distributed.shutdown()


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    paths = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, address, str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


pytestmark = pytest.mark.xdist_group("two processes")


@pytest.mark.parametrize("name", ["jit", "shard_map with axis_name"])
def test_two_processes_end_with_the_same_bits(results: list[dict[str, Any]], name: str) -> None:
    one, other = (result[name] for result in results)
    assert one["bits"] == other["bits"]
    assert one["felt"] == 5


def test_both_ways_to_share_the_batch_train_alike(results: list[dict[str, Any]]) -> None:
    ways = (results[0][name]["params"] for name in ("jit", "shard_map with axis_name"))
    assert next(ways) == pytest.approx(next(ways), rel=1e-5)


def test_without_axis_name_two_processes_drift_apart(results: list[dict[str, Any]]) -> None:
    one, other = (result["shard_map without"] for result in results)
    assert one["params"] != other["params"]


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
