#!/bin/sh
# torch 2.13.0: `torch.load(weights_only=True)` fills no deque, even where `collections.deque` is allowed.
#
# `torch.serialization.safe_globals([collections.deque])` allows the class. The reader then makes the deque, and refuses to
# fill it: it appends to lists only. A replacement that returns a list works.
# Guess: with the allowance the deque is read.
# Seen: "deque: UnpicklingError" for a deque with entries, "empty: deque", "replaced: [1.0, 2.0]". The guess was wrong.
set -eu

PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"$PYTHON" -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > seen.py <<'CODE'
import collections
import io

import torch


def as_list(items=(), maxlen=None):
    return list(items)


def read(value, allowed):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    with torch.serialization.safe_globals(allowed):
        return torch.load(file, weights_only=True)


full, empty = collections.deque([1.0, 2.0], maxlen=32), collections.deque(maxlen=32)
try:
    print("deque:", read(full, [collections.deque]))
except Exception as error:
    print("deque:", type(error).__name__)
print("empty:", type(read(empty, [collections.deque])).__name__)
print("replaced:", read(full, [(as_list, "collections.deque")]))
CODE
env/bin/python seen.py > output.txt
cat output.txt
test "$(cat output.txt)" = "deque: UnpicklingError
empty: deque
replaced: [1.0, 2.0]"
