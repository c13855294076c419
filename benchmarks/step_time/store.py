"""The finished results in one JSON file, so that a run that was stopped resumes."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.step_time.plan import Cell

VERSION = 1
PACKAGES = ("torch", "jax", "jaxlib", "optax", "numpy")
ROOT = Path(__file__).parent.parent.parent

Found = dict[str, Any]
CODE = {"torch": "emo_torch", "jax": "emo_optax"}
"""The package that each framework steps; the environment has a digest of its code under this name."""


class OtherOriginError(Exception):
    """Results are there, of another machine, other versions or other code."""


class Store:
    """The result of each cell, and the machine of the measurement.

    Args:
        path: the file; read if it is there, else made with the first result. If only the code of one
            package has changed since, the results of the other package are kept.
        environment: machine and versions, as `environment()` tells them; `None` for those in the file.

    Raises:
        OtherOriginError: for results of another machine, or if the code of both packages has changed.
        ValueError: if the file holds something else.
    """

    def __init__(self, path: Path, environment: dict[str, str] | None) -> None:
        self._path = path
        self._cells: dict[str, Found] = {}
        self.environment = environment or {}
        if path.exists():
            kept, self._cells = _read(path)
            if environment is not None and kept != environment:
                changed = {name for name in kept | environment if kept.get(name) != environment.get(name)}
                if changed not in [{package} for package in CODE.values()]:
                    raise OtherOriginError(
                        f"The results in {path} are of another {', '.join(sorted(changed))}: measure again "
                        "with --fresh, or write the report of what is there with --report"
                    )
                # A key begins with the name of the framework: see `Cell.key`.
                unchanged = tuple(f"{name}, " for name, package in CODE.items() if package not in changed)
                self._cells = {key: cell for key, cell in self._cells.items() if key.startswith(unchanged)}
            self.environment = environment or kept
        elif environment is None:
            raise ValueError(f"There are no results in {path}")

    def __contains__(self, cell: Cell) -> bool:
        return cell.key in self._cells

    def get(self, cell: Cell) -> Found:
        """Returns the result of a cell; a `KeyError` if it is not finished."""
        return self._cells[cell.key]

    def put(self, cell: Cell, found: Found) -> None:
        """Stores the result of a cell, also in the file."""
        self._cells[cell.key] = found
        self._path.parent.mkdir(parents=True, exist_ok=True)
        cells = [
            f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'), allow_nan=False)}"
            for key, value in sorted(self._cells.items())
        ]
        head = f'"version": {VERSION}, "environment": {json.dumps(self.environment)}'
        beside = self._path.with_suffix(".partial")
        beside.write_text('{%s, "cells": {\n%s\n}}\n' % (head, ",\n".join(cells)), encoding="utf-8")  # noqa: UP031
        os.replace(beside, self._path)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Found]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] == VERSION:
            return dict(content["environment"]), dict(content["cells"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"{path} does not hold results of this benchmark: remove it, or pass --fresh")


def environment() -> dict[str, str]:
    """Returns machine and versions, without names of hosts or places, and digests of both packages."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": _compiler(),
        "Python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        **{package: _code(package) for package in CODE.values()},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    widest = next((name for flag, name in _VECTORS if flag in flags), "")
    return ", ".join(filter(None, [(models or [platform.processor() or "unknown"])[0], widest]))


_VECTORS = (("avx512f", "AVX-512"), ("avx2", "AVX2"))


def _compiler() -> str:
    found = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        return "none"
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    return told.split("\n", 1)[0].strip() or "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _code(package: str) -> str:
    """Returns a digest of the source files of a package."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / package).rglob("*")):
        if file.suffix in (".py", ".c", ".h") and not file.stem.endswith("_test"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
