"""Runs each framework in a process of its own, on CPU or on a GPU, and brings the arrays together."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from parity_tests.drive import Arrays
from parity_tests.lockstep import Case
from parity_tests.worker import read

_FIND = {
    "torch": "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')",
    "optax": "import jax; print(jax.devices()[0].device_kind if jax.default_backend() == 'gpu' else '')",
}


@functools.cache
def find_gpu() -> str | None:
    """Returns the name of the GPU that both frameworks can use, or `None`."""
    names = []
    for code in _FIND.values():
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if found.returncode != 0 or not found.stdout.strip():
            return None
        names.append(found.stdout.strip().splitlines()[-1])
    return names[0]


def trajectories(
    side: str,
    cases: list[Case],
    device: str,
    job: Path,
    advance: Callable[[], None] = lambda: None,
    variables: Mapping[str, str] | None = None,
) -> tuple[str, list[Arrays]]:
    """Runs one side of all cases in a new process.

    Args:
        side: "optax" or "torch".
        cases: the cases to run.
        device: "cpu" or "cuda".
        job: a folder for the files.
        advance: called after every case.
        variables: the environment of the process, if it is not that of this one.

    Returns:
        The name of the device, and the arrays of every case.
    """
    (job / "cases.json").write_text(json.dumps(cases))
    environment = {
        **(os.environ if variables is None else variables),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    environment["JAX_PLATFORMS"] = "cuda" if side == "optax" and device == "cuda" else "cpu"
    # Exact float32 products, not TensorFloat-32: nothing here multiplies matrices, but users may add it.
    environment["NVIDIA_TF32_OVERRIDE"] = "0"
    command = [sys.executable, "-m", "parity_tests.worker", side, device, str(job)]
    root = Path(__file__).parent.parent
    name = device
    # Errors go into a file: a pipe that nobody reads until the end would block when it is full.
    with (
        (job / "errors").open("w+") as log,
        subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("device "):
                name = line.removeprefix("device ").strip()
            elif line.startswith("case "):
                advance()
        process.wait()
        log.seek(0)
        errors = log.read()
    if process.returncode != 0:
        raise RuntimeError(f"{side} on {device} ended with status {process.returncode}:\n{errors}")
    return name, [read(job / f"{side}-{device}-{index}.npz") for index in range(len(cases))]
