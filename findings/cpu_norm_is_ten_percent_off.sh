#!/bin/sh
# torch 2.13.0: on the CPU, `torch.linalg.vector_norm` of 40 million float32 numbers is 10 % off, and `sum` is exact.
#
# `vector_norm` adds all elements in a few partial sums of float32, one for each place of a processor's vector. A large partial
# sum loses small addends. `sum` adds in blocks and keeps all digits. The L1 norm of 40 million normal numbers was 10 % too
# small on one thread, the L2 norm 0.3 %. An optimizer that reads the norm of a large layer reads another number with another
# number of threads.
# Guess: both norms are right to 1e-5, as `sum` is.
# Seen: "L1 norm is off by more than 1 %: True", "L2 norm is off by more than 0.1 %: True", "sum is off by more than
# 0.0001 %: False". The guess was wrong.
set -eu

PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"$PYTHON" -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > seen.py <<'CODE'
import torch

torch.set_num_threads(1)
values = torch.randn(40_000_000, generator=torch.Generator().manual_seed(0))
first, second = values.double().abs().sum().item(), values.double().square().sum().sqrt().item()


def is_off(found, exact, share):
    return abs(found.item() / exact - 1.0) > share


print("L1 norm is off by more than 1 %:", is_off(torch.linalg.vector_norm(values, 1.0), first, 1e-2))
print("L2 norm is off by more than 0.1 %:", is_off(torch.linalg.vector_norm(values), second, 1e-3))
print("sum is off by more than 0.0001 %:", is_off(values.abs().sum(), first, 1e-6))
CODE
env/bin/python seen.py > output.txt
cat output.txt
test "$(cat output.txt)" = "L1 norm is off by more than 1 %: True
L2 norm is off by more than 0.1 %: True
sum is off by more than 0.0001 %: False"
