"""Builds the compiled code: `python -m emo_torch.build`, in place; a wheel is built with it by itself.

One shared library holds the steps three times: for AVX-512, for AVX2 and for every processor. The library
chooses when it is loaded. This file needs nothing but Python, since it also runs where a wheel is built
(`hatch_build.py`) and PyTorch is not installed.

The environment's `CC` names the compiler; otherwise it is `cc`, `gcc` or `clang`. With
`EMO_TORCH_COMPILE=0` nothing is built; with `EMO_TORCH_ISA=plain` or `avx2` no level above that.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).parent / "_kernels"
"""Where the C stands."""
LIBRARY = "emo_kernels.bin"
"""The file name of the library, beside the C; not a name that Python would import."""
RECORD = "emo_kernels.json"
"""The name of the file with the library's size and SHA-256, and the digest of its sources."""

# No flag that lets a compiler reorder sums or forget NaN: the numbers are the same as without compiled
# code.
FLAGS = (
    "-O3",
    "-std=c11",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
)
LEVELS: dict[str, tuple[tuple[str, ...], ...]] = {
    "plain": ((),),
    "avx2": (("-mavx2",),),
    "avx512": (
        # Older compilers do not know the last flag.
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    ),
}
"""The levels of instructions that steps are compiled for, in the order of `dispatch.c`, each with its flags
in the order of trying."""

_OPENMP = ("-fopenmp",)
_STEPS = ("emo_step_float", "emo_step_double", "emo_any_below_float", "emo_any_below_double")
_X86 = ("x86_64", "amd64", "i386", "i686")


class BuildError(RuntimeError):
    """The compiled code could not be built; the text says why."""


class Built(NamedTuple):
    """A library and its record.

    Attributes:
        library: the path of the library.
        record: the path of its record.
        levels: the levels that it holds.
        openmp: whether it steps with several threads.
    """

    library: Path
    record: Path
    levels: tuple[str, ...]
    openmp: bool


def build(folder: Path) -> Built:
    """Builds the library into a folder, with its record.

    Args:
        folder: where both go; older ones are replaced when the new ones are complete.

    Raises:
        BuildError: where there is no compiler, or it fails, or EMO_TORCH_COMPILE=0 forbids it.
    """
    if os.environ.get("EMO_TORCH_COMPILE", "1") == "0":
        raise BuildError("EMO_TORCH_COMPILE=0")
    compiler = find_compiler()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            return _build(compiler, Path(temporary), folder)
    except OSError as error:
        raise BuildError(f"{' '.join(compiler)}: {error}") from error


def is_built(folder: Path) -> bool:
    """Returns whether a folder has the library of the current sources, for all levels of this machine.

    Args:
        folder: where `build` put the library and its record.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        digest = hashlib.sha256((folder / LIBRARY).read_bytes()).hexdigest()
        fits = (record["sha256"], record["sources"]) == (digest, source_digest())
        return fits and record["levels"] == _wanted_levels()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def find_compiler() -> list[str]:
    """Returns the command of the C compiler; raises a `BuildError` where there is none.

    The variable CC names the compiler. If CC cannot be run, the usual names are tried.
    """
    for name in (os.environ.get("CC", "cc"), "cc", "gcc", "clang"):
        try:
            command = shlex.split(name)
        except ValueError:  # A quote is not closed.
            continue
        if command and shutil.which(command[0]) is not None:
            return command
    raise BuildError("no C compiler was found")


def compile_shared(source: Path, target: Path, flags: Sequence[str] = ()) -> None:
    """Compiles one file of C to a shared library, with OpenMP where the compiler has it.

    Args:
        source: the file.
        target: where the library goes.
        flags: further flags of the compiler besides `FLAGS`; left out if the compiler does not know them.

    Raises:
        BuildError: where there is no compiler, or it fails.
    """
    compiler, message = find_compiler(), ""
    for extras in ((*flags, *_OPENMP), _OPENMP, tuple(flags), ()):
        message = _run([*compiler, *FLAGS, "-shared", *extras, str(source), "-o", str(target), "-lm"])
        if not message:
            return
    raise BuildError(f"{' '.join(compiler)} failed: {message}")


def source_digest(folder: Path = SOURCES) -> str:
    """Returns the SHA-256 of all that the library is made from, or "" where the C was taken away."""
    files = sorted([*folder.glob("*.c"), *folder.glob("*.h")])
    digest = hashlib.sha256(repr((FLAGS, LEVELS)).encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest() if files else ""


def _build(compiler: list[str], temporary: Path, folder: Path) -> Built:
    openmp = _has_openmp(compiler, temporary)
    flags = (*FLAGS, *(_OPENMP if openmp else ()))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {
            name: pool.submit(_compile, compiler, flags, name, temporary) for name in _wanted_levels()
        }
    failed = {name: future.result() for name, future in running.items()}
    if failed["plain"]:
        raise BuildError(f"{' '.join(compiler)} failed: {failed['plain']}")
    # An older compiler may know fewer instructions.
    levels = tuple(name for name, message in failed.items() if not message)
    library = temporary / LIBRARY
    defined = [f"-DHAS_{name.upper()}" for name in levels]
    objects = [str(temporary / f"{name}.o") for name in levels]
    others = [str(SOURCES / name) for name in ("dispatch.c", "norms.c")]
    message = _run([*compiler, *flags, *defined, "-shared", *others, *objects, "-o", str(library), "-lm"])
    if message:
        raise BuildError(f"{' '.join(compiler)} failed: {message}")
    data = library.read_bytes()
    record = {
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "sources": source_digest(),
        "levels": levels,
        "openmp": openmp,
    }
    (temporary / RECORD).write_text(json.dumps(record) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (LIBRARY, RECORD):  # At once whole: another process may load it.
        beside = folder / f".{name}.{os.getpid()}.tmp"
        shutil.copyfile(temporary / name, beside)
        os.replace(beside, folder / name)
    return Built(folder / LIBRARY, folder / RECORD, levels, openmp)


def _wanted_levels() -> list[str]:
    """Returns the levels that this machine's processors may have."""
    names = list(LEVELS) if platform.machine().lower() in _X86 else ["plain"]
    most = os.environ.get("EMO_TORCH_ISA")
    return names[: names.index(most) + 1] if most in names else names


def _has_openmp(compiler: list[str], temporary: Path) -> bool:
    """Returns whether a program with OpenMP can be linked."""
    source = temporary / "openmp.c"
    source.write_text("#include <omp.h>\nint threads(void) { return omp_get_max_threads(); }\n")
    target = str(temporary / "openmp.so")
    return not _run([*compiler, "-fPIC", "-shared", *_OPENMP, str(source), "-o", target])


def _compile(compiler: list[str], flags: Sequence[str], level: str, temporary: Path) -> str:
    """Compiles the steps for one level; returns "" or why that failed."""
    names = [f"-D{name}={name}_{level}" for name in _STEPS]
    if level != "plain":
        # Functions that do not depend on the level are taken from the plain level.
        exported = re.findall(r"^[a-z]\w*[ *]+(emo_\w+)\(", (SOURCES / "cpu.c").read_text(), re.MULTILINE)
        names += [f"-D{name}={name}_{level}" for name in exported]
    message = ""
    for own in LEVELS[level]:
        target = str(temporary / f"{level}.o")
        message = _run([*compiler, *flags, *own, *names, "-c", str(SOURCES / "cpu.c"), "-o", target])
        if not message:
            break
    return message


def _run(command: list[str]) -> str:
    """Runs a compiler; returns "" or why it failed."""
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error) or type(error).__name__
    message = done.stderr.decode(errors="replace").strip()  # Not every compiler writes UTF-8.
    return "" if done.returncode == 0 else message or f"exit status {done.returncode}"


def main(arguments: Sequence[str] = ()) -> int:
    """Builds in place; returns 1 and says why where that is not possible.

    Args:
        arguments: the arguments of the command line; there are no options but `--help`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m emo_torch.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    try:
        built = build(SOURCES)
    except BuildError as error:
        print(f"emo_torch steps without compiled code: {error}", file=sys.stderr)
        return 1
    threads = "several threads" if built.openmp else "one thread, since the compiler has no OpenMP"
    compiler = shlex.join(find_compiler())
    print(f"built {built.library} by {compiler} for {', '.join(built.levels)}, with {threads}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
