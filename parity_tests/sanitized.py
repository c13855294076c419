"""Runs the tests of emo_torch's compiled code under AddressSanitizer and UndefinedBehaviorSanitizer.

Run with `python -m parity_tests.sanitized`. GCC builds the C of a copy of the package with checks of every
access to memory and of every operation without a defined result. The tests then run in this copy. The first
access outside of an array ends them with a report. Other arguments go to pytest, such as a file of tests.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emo_torch.build import LIBRARY, RECORD, BuildError, find_compiler

ROOT = Path(__file__).parent.parent
COPIED = ("emo_torch", "emo_shared", "conftest.py", "pyproject.toml")
CHECKS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g",
)
RUNTIMES = ("libasan.so", "libubsan.so")

TESTS = (
    "emo_torch/_kernels",
    "emo_torch/_pieces",
    "emo_torch/_step/ways_test.py",
    "emo_torch/_step/ways_layouts_test.py",
    "emo_torch/_fault_campaign_test.py",
    "emo_torch/_members/emo_pilot_test.py",
    "emo_torch/_members/emo_pilot_airy_test.py",
)
"""The tests that step in compiled code with all dtypes, shapes, layouts and members."""
ON_A_GPU = ("emo_torch/_kernels/triton_test.py", "emo_torch/_kernels/cuda_codes_test.py")
"""Tests of the kernels for a GPU, which are no C."""


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    return argparse.ArgumentParser(
        prog="python -m parity_tests.sanitized",
        usage="%(prog)s [-h] [arguments of pytest]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def runtimes() -> list[str]:
    """Returns the paths of the libraries that the checks need.

    Raises:
        BuildError: where there is no C compiler, or the compiler has no such libraries.
    """
    compiler, found = find_compiler(), []
    for name in RUNTIMES:
        command = [*compiler, f"-print-file-name={name}"]
        path = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
        if not path.is_absolute() or not path.exists():
            raise BuildError(
                f"{compiler[0]} has no {name}. Install GCC with its sanitizers, and set CC to it: CC=gcc"
            )
        found.append(str(path))
    return found


def copy(folder: Path) -> None:
    """Copies the package into a folder, with its tests and without compiled code."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            left_out = shutil.ignore_patterns("__pycache__", LIBRARY, RECORD)
            shutil.copytree(ROOT / name, folder / name, ignore=left_out)
        else:
            shutil.copyfile(ROOT / name, folder / name)


def with_checks() -> dict[str, str]:
    """Returns the environment in which `emo_torch/build.py` compiles with checks."""
    return {**os.environ, "CC": " ".join([*find_compiler(), *CHECKS])}


def check(folder: Path, arguments: Sequence[str]) -> int:
    """Runs pytest in a folder, and prints what the checks report.

    Args:
        folder: a folder that `copy` has filled.
        arguments: what goes to pytest.

    Returns:
        The exit status of pytest; another one than 0 where a check or a test failed.
    """
    # pytest keeps the messages of a process, and loses them where a check ends the process.
    reports = folder / "reports"
    reports.mkdir()
    # The interpreter is not built with the checks, so their libraries come before all others. Python and
    # PyTorch keep memory to the end of the process, which is no fault of the compiled code.
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "LD_PRELOAD": ":".join(runtimes()),
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={reports}/address",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={reports}/undefined",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
    for report in sorted(reports.iterdir()):
        print(report.read_text(), file=sys.stderr)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tests, with the given command-line arguments or the arguments of the process."""
    _, given = options().parse_known_args(arguments)
    runtimes()
    ignored = [argument for name in ON_A_GPU for argument in ("--ignore", name)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        subprocess.run(
            [sys.executable, str(folder / "emo_torch" / "build.py")], env=with_checks(), check=True
        )
        return check(folder, given or [*TESTS, *ignored])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BuildError as error:
        sys.exit(str(error))
