#!/bin/sh
# jax 0.10.2, optax 0.2.8: donated arrays are paired with results by shape, in the order of the arguments.
#
# A step that takes (state, params) and returns (params, state) is given all of its memory by donation. But the first array of
# the parameters is paired with the first result of its shape among the moments, and so on, so that the program copies arrays
# before it can overwrite them. JAX gives no warning, because every donated array is used.
# Guess: the order of arguments and results changes nothing; the program copies no matrix in either order.
# Seen: "(params, state) to (params, state): 0 copies", "(state, params) to (params, state): 16 copies". The guess was wrong.
# The remedy: results in the order of the donated arguments.
set -eu

PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"$PYTHON" -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check "jax==0.10.2" "jaxlib==0.10.2" "optax==0.2.8" "numpy==2.4.6"
cat > seen.py <<'CODE'
import warnings

import jax
import jax.numpy as jnp
import optax

optimizer = optax.adamw(1e-3)
params = [jnp.ones((64, 32))] * 4
state = optimizer.init(params)


def params_first(params, state, grads):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def state_first(state, params, grads):
    return params_first(params, state, grads)


warnings.simplefilter("error")
for name, step, donated in (
    ("(params, state) to (params, state)", params_first, (params, state)),
    ("(state, params) to (params, state)", state_first, (state, params)),
):
    program = jax.jit(step, donate_argnums=(0, 1)).lower(*donated, params).compile()
    copies = program.as_text().count("= f32[64,32]{1,0} copy(")
    print(f"{name}: {copies} copies of a matrix, of 12 that are donated")
CODE
JAX_PLATFORMS=cpu env/bin/python seen.py > output.txt
cat output.txt
test "$(cat output.txt)" = "(params, state) to (params, state): 0 copies of a matrix, of 12 that are donated
(state, params) to (params, state): 16 copies of a matrix, of 12 that are donated"
