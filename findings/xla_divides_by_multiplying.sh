#!/bin/sh
# jax 0.10.2: on the CPU, a division by a broadcast number becomes a product with its reciprocal, with jit and without.
#
# The quotient of two float32 numbers is then not the rounded one, as in NumPy. Where the reciprocal is below the smallest
# normal number, it counts as 0: the largest number divided by itself is 0. A division by an array of the same shape is exact.
# Guess: quotients are those of NumPy, to the last bit.
# Seen: "by an array, equal to NumPy: True", "by a broadcast row, equal to NumPy: False", "the same with jit: False",
# "3e38 / 3e38: 0.0". The guess was wrong.
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
import numpy as np


def quotients(values, scales):
    return values / scales[:, None]


values = np.random.RandomState(0).normal(size=(64, 256)).astype(np.float32)
scales = np.abs(values).max(1)
exact = values / scales[:, None]
whole = np.broadcast_to(scales[:, None], values.shape).copy()
print("by an array, equal to NumPy:", np.array_equal(jnp.asarray(values) / jnp.asarray(whole), exact))
print("by a broadcast row, equal to NumPy:", np.array_equal(quotients(jnp.asarray(values), jnp.asarray(scales)), exact))
print("the same with jit:", np.array_equal(jax.jit(quotients)(values, scales), exact))
large = np.full([64, 256], 3e38, np.float32)
print("3e38 / 3e38:", float(jax.jit(quotients)(large, large[:, 0])[0, 0]))
CODE
JAX_PLATFORMS=cpu env/bin/python seen.py > output.txt
cat output.txt
test "$(cat output.txt)" = "by an array, equal to NumPy: True
by a broadcast row, equal to NumPy: False
the same with jit: False
3e38 / 3e38: 0.0"
