#!/bin/sh
# jax 0.10.2, jaxlib 0.10.2: under jax.shard_map one optimization barrier around several arrays makes all of them device-varying.
#
# `jax.lax.optimization_barrier` returns its arrays as they are; programs use the barrier to keep XLA from computing a value twice.
# `jax.shard_map` checks by default that an output with the spec P() is equal on all devices. A mean over the mapped axis is known to
# be equal. After a barrier together with an array that differs between the devices it is not known any longer, and the program is
# refused. In an optimizer this meets averages over the columns of split matrices, beside their split momentum.
# Guess before the first run: each output varies as its own input does, so both programs are accepted.
# Seen: "one barrier for both arrays: refused, out_specs which require replication", "a barrier for each array: accepted".
# The remedy: jax.tree.map(jax.lax.optimization_barrier, tree).
set -eu

PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"$PYTHON" -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check "jax==0.10.2" "jaxlib==0.10.2" "numpy==2.4.6"
cat > seen.py <<'CODE'
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

mesh = jax.make_mesh((2,), ("parts",), axis_types=(AxisType.Auto,))


def told(barrier):
    def mean_and_own(own):
        pair = {"own": own, "mean": jax.lax.pmean(own.sum(), "parts")}
        return barrier(pair)

    specs = {"own": P("parts"), "mean": P()}
    mapped = jax.jit(jax.shard_map(mean_and_own, mesh=mesh, in_specs=P("parts"), out_specs=specs))
    try:
        mapped(jnp.arange(4.0))
    except ValueError as error:
        return "refused, out_specs which require replication" if "require replication" in str(error) else str(error)
    return "accepted"


barrier = jax.lax.optimization_barrier
print("no barrier:", told(lambda pair: pair))
print("one barrier for both arrays:", told(barrier))
print("a barrier for each array:", told(lambda pair: jax.tree.map(barrier, pair)))
CODE
XLA_FLAGS=--xla_force_host_platform_device_count=2 JAX_PLATFORMS=cpu env/bin/python seen.py > seen.txt
cat seen.txt
cat > wanted.txt <<'TEXT'
no barrier: accepted
one barrier for both arrays: refused, out_specs which require replication
a barrier for each array: accepted
TEXT
diff wanted.txt seen.txt
