"""Compiles the packages' own C once a machine, and does without where there is no compiler."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger("emo_torch")

# No flag that lets a compiler reorder sums or forget NaN: the numbers are those of the other paths.
FLAGS = (
    "-O3",
    "-std=c11",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
)
# Tried in this order; not every compiler has OpenMP, or knows the machine that it runs on.
EXTRAS = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-fopenmp",),
    ("-march=native",),
    (),
)


@functools.cache
def compile_library(source: Path) -> ctypes.CDLL | None:
    """Compiles a file of C to a library and loads it; from the cache where that was done before.

    The cache is a folder of the user alone, `emo_torch` in `$XDG_CACHE_HOME` or `~/.cache`; the
    environment's `EMO_TORCH_CACHE` names another, and `CC` the compiler. `EMO_TORCH_COMPILE=0` does
    without.

    Args:
        source: the file; it may include files beside it whose names begin with its own.

    Returns:
        The library, or `None` where there is no compiler, or none that works; a line at debug level
        says why.
    """
    if os.environ.get("EMO_TORCH_COMPILE", "1") == "0":
        logger.debug("EMO_TORCH_COMPILE=0: stepping without compiled code")
        return None
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        logger.debug("no C compiler was found: stepping without compiled code")
        return None
    try:
        return _compile(source, compiler)
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("%s could not compile %s: stepping without compiled code: %s", compiler, source, error)
        return None


def _compile(source: Path, compiler: str) -> ctypes.CDLL:
    library = _cache() / f"{source.stem}-{_key(source, compiler)}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            for extras in EXTRAS:
                command = [compiler, *FLAGS, *extras, str(source), "-o", str(made), "-lm"]
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
                if done.returncode == 0:
                    break
            else:
                raise OSError(done.stderr.strip())
            # At once whole: another process may be looking.
            os.replace(made, library)
    return ctypes.CDLL(str(library))


def _cache() -> Path:
    """Returns the folder of what was compiled, which nobody else may write to."""
    named = os.environ.get("EMO_TORCH_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named) if named else home / "emo_torch"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    others = stat.S_IWGRP | stat.S_IWOTH
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & others):
        raise OSError(f"{folder} is not this user's alone, so that nothing is loaded from it")
    return folder


def _key(source: Path, compiler: str) -> str:
    """Returns what tells apart libraries that must not be mistaken for each other."""
    digest = hashlib.sha256()
    for file in sorted(source.parent.glob(f"{source.stem}*.[ch]")):
        digest.update(file.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else []
    features = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    for part in (version, platform.platform(), platform.machine(), FLAGS, EXTRAS, features):
        digest.update(repr(part).encode())
    return digest.hexdigest()[:16]
