#!/bin/sh
# optax 0.2.8: `inject_hyperparams` gives hyperparameters the dtype of the parameters.
#
# With bfloat16 parameters b2=0.999 becomes 1.0, the nearest bfloat16 number, so that the second moment of Adam
# never moves. Expected: float32, or the given number.
# Guess: `hyperparams["b2"]` is bfloat16 and equal to 1.0; with `hyperparam_dtype=jnp.float32` it is 0.999.
# Seen: "bfloat16 1.0000" and "float32 0.9990". The guess was right.
set -eu

PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"$PYTHON" -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check "jax==0.10.0" "jaxlib==0.10.0" "optax==0.2.8"
cat > seen.py <<'CODE'
import jax.numpy as jnp
import optax

params = jnp.ones(2, jnp.bfloat16)
for options in ({}, {"hyperparam_dtype": jnp.float32}):
    optimizer = optax.inject_hyperparams(optax.adam, **options)(learning_rate=1e-3, b2=0.999)
    b2 = optimizer.init(params).hyperparams["b2"]
    print(f"{b2.dtype} {float(b2):.4f}")
CODE
JAX_PLATFORMS=cpu env/bin/python seen.py > output.txt
cat output.txt
test "$(cat output.txt)" = "bfloat16 1.0000
float32 0.9990"
