#!/bin/sh
# jax 0.10.2: with a largest size, the compilation cache opens a file of every kept program, each time it keeps another one.
#
# The time of the last use of each program is in a file of its own, and all of these files are read, under a lock, to learn
# whether the folder is too large, however small it is. To keep n programs takes n^2 reads: with 2800 programs each further
# one took 0.37 CPU seconds here, more than its compilation. Without a largest size (the default) nothing is read.
# Guess: the cache knows its own size, and opens as many files for the 41st program as for the 11th.
# Seen: "largest size 8000000000, files read for the programs 11 and 41: 10 40", "largest size -1, files read for the programs
# 11 and 41: 0 0". The guess was wrong.
set -eu

PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"$PYTHON" -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check "jax==0.10.2" "jaxlib==0.10.2" "numpy==2.4.6" "filelock==4.3.1"
cat > seen.py <<'CODE'
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

folder, size = tempfile.mkdtemp(), int(sys.argv[1])
jax.config.update("jax_compilation_cache_dir", folder)
jax.config.update("jax_compilation_cache_max_size", size)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
opened = []


def hook(event, given):
    if event == "open" and str(given[0]).startswith(folder) and str(given[0]).endswith("-atime") and given[1] == "r":
        opened.append(given[0])


sys.addaudithook(hook)
program = jax.jit(jnp.sin)
counts = []
for number in range(1, 42):
    before = len(opened)
    program(np.zeros(number, np.float32)).block_until_ready()
    counts.append(len(opened) - before)
print(f"largest size {size}, files read for the programs 11 and 41:", counts[10], counts[40])
CODE
for size in 8000000000 -1; do
    JAX_PLATFORMS=cpu env/bin/python seen.py $size
done > output.txt
cat output.txt
test "$(cat output.txt)" = "largest size 8000000000, files read for the programs 11 and 41: 10 40
largest size -1, files read for the programs 11 and 41: 0 0"
