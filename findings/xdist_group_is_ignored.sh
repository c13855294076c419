#!/bin/sh
# pytest 9.2.0 with pytest-xdist 3.8.0: `--dist loadgroup` ignores the mark `xdist_group`.
#
# Documented: all tests of one group run in the same worker.
# Guess: with pytest 9.1.1 each group has one worker; with pytest 9.2.0 a group is spread over both workers.
# Seen: "pytest 9.1.1: 1 worker(s) for the group; pytest 9.2.0: 2 worker(s)". The guess was right.
set -eu

PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > group_test.py <<'TEST'
import os
import pathlib
import time

import pytest


@pytest.mark.parametrize("case", range(20))
@pytest.mark.xdist_group("only")
def test_of_one_group(case):
    time.sleep(0.05)
    with pathlib.Path("workers.txt").open("a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
TEST

workers() {
    "$PYTHON" -m venv "env-$1"
    "env-$1/bin/python" -m pip install --quiet --disable-pip-version-check "pytest==$1" "pytest-xdist==3.8.0"
    rm -f workers.txt
    "env-$1/bin/python" -m pytest -q -n 2 --dist loadgroup group_test.py > log.txt 2>&1 || { cat log.txt; exit 1; }
    sort workers.txt | uniq | wc -l | tr -d ' '
}

before=$(workers 9.1.1)
after=$(workers 9.2.0)
echo "pytest 9.1.1: $before worker(s) for the group; pytest 9.2.0: $after worker(s)"
test "$before" = 1 && test "$after" = 2
