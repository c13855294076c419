"""EmoPilot and EmoPilotAiry on parameters that are split over eight devices: steps as of whole ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import emo_optax
from emo_optax._devices_test import FLAGS

# The reductions in a step; EmoPilotAiry also has means over columns, and the sizes of its updates.
REDUCTIONS = {"emo_pilot": 1, "emo_pilot_airy": 3}
FOLDER = Path(emo_optax.__file__).parent.parent
LOSSES = (3.0, 2.5, 2.6, 2.2, 9.0, 2.0, 1.9, float("nan"), 1.7, 1.6)


def work() -> None:
    """Trains in three ways, and prints the largest differences and the numbers of reductions."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    random = np.random.RandomState(0)

    def tree(size: float) -> Any:
        shapes = {"matrix": (16, 6), "vector": (8,)}
        return {name: np.float32(size * random.normal(size=shape)) for name, shape in shapes.items()}

    start, grads = tree(0.05), [tree(20.0 if step == 5 else 1.0) for step in range(len(LOSSES))]

    def step_of(optimizer: Any) -> Any:
        def step(params: Any, state: Any, grads: Any, loss: Any) -> Any:
            updates, state = optimizer.update(grads, state, params, value=loss)
            return optax.apply_updates(params, updates), state

        return step

    def train(optimizer: Any, step: Any, place: Any = None) -> Any:
        # A plain array on one device, without `place`.
        put = (lambda each: each) if place is None else (lambda each: jax.device_put(each, place))
        params = jax.tree.map(put, jax.tree.map(jnp.asarray, start))
        state = optimizer.init(params)
        text = step.lower(params, state, jax.tree.map(put, grads[0]), jnp.float32(1.0)).compile().as_text()
        for each, loss in zip(grads, LOSSES, strict=True):
            params, state = step(params, state, jax.tree.map(put, each), jnp.float32(loss))
        return (params, state), len(re.findall(r" all-reduce(?:-start)?\(", text))

    def mapped(optimizer: Any) -> Any:
        state = jax.eval_shape(optimizer.init, start)
        # The averages of EmoPilotAiry over columns are whole, and so is its single 0 of a vector.
        specs = jax.tree.map(
            lambda leaf: P("x") if leaf.ndim and leaf.shape[0] > 1 else P(), (start, state)
        )
        return jax.shard_map(
            step_of(optimizer),
            mesh=mesh,
            in_specs=(*specs, specs[0], P()),
            out_specs=specs,
        )

    apart, found = NamedSharding(mesh, P("x")), {}
    for member in REDUCTIONS:
        make: Any = getattr(emo_optax, member)
        plain, inside = make(), make(shard_axis_name="x")
        alone, _ = train(plain, jax.jit(step_of(plain)))
        for way, result in {
            "shard_map": train(inside, jax.jit(mapped(inside)), apart),
            "NamedSharding": train(plain, jax.jit(step_of(plain)), apart),
        }.items():
            pairs = zip(jax.tree.leaves(result[0]), jax.tree.leaves(alone), strict=True)
            gaps = [np.max(np.abs(np.asarray(a) - np.asarray(b)) / (1e-2 + np.abs(b))) for a, b in pairs]
            leaves = jax.tree.leaves(result[0][0])
            found[f"{member}, {way}"] = {
                "gap": float(max(gaps)),
                "reductions": result[1],
                "split": [leaf.sharding.is_equivalent_to(apart, leaf.ndim) for leaf in leaves],
                "skipped": int(emo_optax.get_pilot(result[0][1]).skipped),
            }

    def with_bias(tree: Any) -> Any:
        return {**tree, "bias": np.full(3, 0.5, np.float32), "scale": np.float32(1.0)}

    def place(leaf: Any) -> Any:
        return P("x") if leaf.ndim and leaf.shape[0] % 8 == 0 else P()

    members = {
        "emo_pilot": emo_optax.emo_pilot,
        "emo_pilot_airy": emo_optax.emo_pilot_airy,
        "autopilot": lambda **options: emo_optax.autopilot(optax.adam(1e-2), **options),
    }
    square = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    cases = [
        (member, make, *axes)
        for member, make in members.items()
        for axes in (("x", mesh), (("x", "y"), square))
    ]
    for member, make, names, own_mesh in cases:
        plain, inside = make(), make(shard_axis_name=names)
        params = with_bias(start)
        ways = [jax.jit(step_of(plain))]
        specs = jax.tree.map(place, (params, jax.eval_shape(inside.init, params)))
        in_specs = (*specs, specs[0], P())
        step = jax.shard_map(step_of(inside), mesh=own_mesh, in_specs=in_specs, out_specs=specs)
        ways.append(jax.jit(step))
        ends = []
        for optimizer, run in zip((plain, inside), ways, strict=True):
            ended, state = params, optimizer.init(params)
            for each, loss in zip(grads, LOSSES, strict=True):
                ended, state = run(ended, state, with_bias(each), jnp.float32(loss))
            ends.append((ended, emo_optax.eval_params(state, ended), emo_optax.get_pilot(state).courage))
        pairs = zip(*map(jax.tree.leaves, ends), strict=True)
        found[f"{member}, replicated, {len(names)}"] = {
            "gap": float(max(np.max(np.abs(a - b)) for a, b in pairs))
        }
    for member, make in members.items():
        plain, inside = make(), make(shard_axis_name="x")
        given = (start, plain.init(start), grads[0], jnp.float32(1.0))
        step = jax.shard_map(step_of(inside), mesh=mesh, in_specs=(P(), P(), P(), P()), out_specs=P())
        norms = [each(*given)[1].pilot.norm for each in (jax.jit(step), jax.jit(step_of(plain)))]
        found[f"{member}, all replicated"] = {"norms": [float(norm) for norm in norms]}
    print(json.dumps(found))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    paths = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
    done = subprocess.run(
        [sys.executable, __file__],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("way", ["shard_map", "NamedSharding"])
@pytest.mark.parametrize("member", REDUCTIONS)
def test_split_parameters_step_as_whole_ones(found: dict[str, Any], member: str, way: str) -> None:
    result = found[f"{member}, {way}"]
    assert result["skipped"] == 1
    assert result["gap"] < 1e-5
    assert result["split"] == [True, True]


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("member", [*REDUCTIONS, "autopilot"])
def test_a_replicated_parameter_counts_once(found: dict[str, Any], member: str, axes: int) -> None:
    # With two axes every parameter is replicated over one of them.
    assert found[f"{member}, replicated, {axes}"]["gap"] < 1e-5


@pytest.mark.parametrize("member", [*REDUCTIONS, "autopilot"])
def test_the_norm_counts_parameters_once_if_all_are_replicated(found: dict[str, Any], member: str) -> None:
    inside, plain = found[f"{member}, all replicated"]["norms"]
    assert inside == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("way", ["shard_map", "NamedSharding"])
@pytest.mark.parametrize("member", REDUCTIONS)
def test_a_step_takes_few_reductions(found: dict[str, Any], member: str, way: str) -> None:
    assert found[f"{member}, {way}"]["reductions"] == REDUCTIONS[member]


if __name__ == "__main__":
    work()
