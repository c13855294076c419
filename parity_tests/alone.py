"""Hides frameworks from Python processes, as if they were not installed.

`hidden` returns an environment in which every new process, its children included, finds none of some
packages: `import` raises ModuleNotFoundError, and `importlib.util.find_spec` returns `None`. With it the
tests of one package run beside the other's framework and yet without it.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Python imports `sitecustomize` as it starts, before any other code.
SITECUSTOMIZE = '''"""Hides some packages from this process."""

import sys
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}


class Finder(PathFinder):
    """Finds everything on the path except the hidden packages."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in HIDDEN:
            return None
        return super().find_spec(fullname, path, target)


sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
'''


def hidden(packages: Sequence[str], folder: Path) -> dict[str, str]:
    """Returns the environment of processes that find none of some packages.

    Args:
        packages: names of packages as they are imported.
        folder: an empty folder, which must stand for as long as the processes run.
    """
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE.format(hidden=frozenset(packages)))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def check(
    packages: Sequence[str], environment: dict[str, str], python: str | Path = sys.executable
) -> None:
    """Makes sure that a process in an environment can import none of some packages.

    Raises:
        SystemExit: where one can be imported.
    """
    for package in packages:
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is not None)"
        found = subprocess.run([str(python), "-c", code], env=environment, check=False)
        if found.returncode != 0:
            raise SystemExit(f"{package} can be imported where it should be hidden or absent")
