"""Runs one side of many cases in a process of its own and leaves the arrays in files.

Run by `parity_tests.processes`, never by hand: two frameworks in one process fight for a GPU's memory.
"""

import json
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import torch

from parity_tests.drive import Arrays
from parity_tests.lockstep import Case, trajectory

WIDENED = "@bfloat16"
"""Marks arrays that NumPy's files have no dtype for, and that are kept in float32."""


def write(path: Path, arrays: Arrays) -> None:
    """Writes arrays into a file."""
    kept = {}
    for name, array in arrays.items():
        narrow = array.dtype == ml_dtypes.bfloat16
        kept[name + WIDENED if narrow else name] = array.astype(np.float32) if narrow else array
    np.savez(path, **kept)  # type: ignore[arg-type]


def read(path: Path) -> Arrays:
    """Reads arrays from a file."""
    with np.load(path) as kept:
        return {
            name.removesuffix(WIDENED): kept[name].astype(ml_dtypes.bfloat16)
            if name.endswith(WIDENED)
            else kept[name]
            for name in kept.files
        }


def main(side: str, device: str, job: Path) -> None:
    """Runs the cases of a job one after the other, and says on which device."""
    if side == "torch":
        name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    else:
        name = jax.devices()[0].device_kind
    print(f"device {name}", flush=True)
    cases = [Case(*case) for case in json.loads((job / "cases.json").read_text())]
    for index, case in enumerate(cases):
        write(job / f"{side}-{device}-{index}.npz", trajectory(side, case, device))
        print(f"case {index}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
