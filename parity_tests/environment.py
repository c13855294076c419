"""Makes a virtual environment for the tests, and lists the downloads before it starts them.

Run by `make test-oldest`, `make test-newest` and `make test-trainers`, as
`python -m parity_tests.environment FOLDER [PINS] [--extras NAMES]`: the Python that runs it is the one of
the environment, and PINS is a file of constraints. It needs nothing but Python itself. Without PINS the
newest release of every dependency is installed.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CUDA = ("nvidia-", "cuda-", "triton")
"""How the names of packages begin that a build of PyTorch for CUDA needs."""


def plan(installs: Sequence[dict[str, Any]], kept: Sequence[str] = ()) -> str:
    """Returns a sentence about the packages that pip is going to install.

    Args:
        installs: the field `install` of pip's report.
        kept: lines to say before.
    """
    found = {one["metadata"]["name"].lower(): one["metadata"]["version"] for one in installs}
    lines = [*kept, f"{len(found)} packages are downloaded and installed:"]
    lines.append("  " + ", ".join(f"{name} {version}" for name, version in sorted(found.items())))
    cuda = [name for name in found if name.startswith(CUDA) and name != "triton"]
    if cuda:
        lines.append(
            f"PyTorch {found.get('torch', '')} comes as a build for CUDA, with {len(cuda)} packages of "
            "NVIDIA: together about 3 GB to download and 6 GB on disk. An index with builds for CPUs, "
            "named in PIP_EXTRA_INDEX_URL, makes it less."
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Makes the environment: resolves, lists the downloads, installs."""
    parser = argparse.ArgumentParser(prog="python -m parity_tests.environment", description=__doc__)
    parser.add_argument("folder", type=Path, help="the environment to make or to bring up to date")
    parser.add_argument("pins", type=Path, nargs="?", help="constraints; without, the newest releases")
    parser.add_argument("--extras", default="dev", help="of pyproject.toml; default: %(default)s")
    given = parser.parse_args(arguments)
    # As the command `python -m venv` does; a copy of Python over its own link fails.
    venv.create(given.folder, with_pip=True, symlinks=os.name != "nt")
    python = given.folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip>=24"], check=True)
    what = ["--upgrade", "-e", f"{ROOT}[{given.extras}]"]
    # In place of constraints that the machine may set for every installation. pip would skip an empty name.
    pins = os.devnull if given.pins is None else str(given.pins.resolve())
    variables = {**os.environ, "PIP_CONSTRAINT": pins}
    asked = [*pip, "install", "--quiet", "--dry-run", "--report", "-", *what]
    report = subprocess.run(asked, env=variables, check=True, stdout=subprocess.PIPE, text=True).stdout
    title = f"{given.folder}: Python {sys.version.split()[0]}, {given.pins or 'the newest releases'}"
    print(plan(json.loads(report)["install"], [title]), flush=True)
    subprocess.run([*pip, "install", "--quiet", *what], env=variables, check=True)


if __name__ == "__main__":
    main()
