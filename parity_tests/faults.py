"""Plants single faults in either package and looks whether the harness finds them.

Run with `python -m parity_tests.faults`. A harness that finds nothing wrong proves nothing unless it
would have. Each fault changes one place in a copy of a package; the faulty side is then driven beside
the healthy other one, and the first comparison that exceeds a bound has found the fault.
"""

import argparse
import os
from pathlib import Path

from examples.command import answer_early


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m parity_tests.faults", description=__doc__)
    parser.add_argument("--report", type=Path, help="write the list as a Markdown page")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: one for each core")
    return parser


if __name__ == "__main__":
    answer_early(options, "dev", ("jax", "optax", "torch", "flax", "matplotlib", "rich"))

import functools
import importlib
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from emo_torch._kernels import library
from emo_torch.build import LEVELS
from examples.progress import track
from parity_tests.drive import Arrays
from parity_tests.family import FAMILY, ROUNDED, Member
from parity_tests.fault import SHOWN_WITH, Fault
from parity_tests.faults_in_c import FAULTS_IN_C
from parity_tests.faults_in_codes import FAULTS_IN_AVX512, FAULTS_IN_CODES
from parity_tests.faults_in_python import FAULTS
from parity_tests.lockstep import Case, compare, trajectory

ROOT = Path(__file__).parent.parent

ALL = FAULTS + FAULTS_IN_C + FAULTS_IN_CODES + FAULTS_IN_AVX512
"""All faults, on every machine."""


def every_fault() -> tuple[Fault, ...]:
    """Returns all faults that can be planted here; faults in C need a compiler, which built the library."""
    found = library()
    if found is None:
        return FAULTS
    is_avx512 = list(LEVELS)[found.handle.emo_use_level(-1)] == "avx512"
    return tuple(fault for fault in ALL if is_avx512 or fault not in FAULTS_IN_AVX512)


def _cases() -> list[Case]:
    cases = []
    for name in FAMILY:
        cases += [
            Case(name, {"use_shadow": True}, steps=60),
            Case(name, FAMILY[name].known({"theta": 0.3}), steps=40),
            Case(name, {"use_shadow": True, "shadow_ratio": "v1.0"}, losses="rising", steps=40),
            Case(name, {"weight_decay_mode": "absolute", "weight_decay": 1e-3}, steps=20),
            Case(name, {"weight_decay_mode": "l2"}, steps=20),
            Case(name, {}, losses="not_finite_first", steps=40),
            Case(name, {}, losses="constant", steps=40),
            Case(name, {"use_shadow": True}, losses="fading", steps=160),
            Case(name, {}, losses="surging", steps=20),
            *(Case(name, options, steps=20) for options in FAMILY[name].more_options),
            *(Case(name, options, "bfloat16", steps=20) for options in ROUNDED.get(name, ())),
        ]
        if name in ("EmoSens", "EmoCats"):
            cases.append(Case(name, {"moment_dtype": "8bit"}, steps=8))
            # With these decay rates moments, and so codes, are equal to the bit. In float64 there are
            # no codes in compiled code. In float32 it steps EmoSens without tiles, in bfloat16 with tiles.
            dtype = "float32" if name == "EmoSens" else "bfloat16"
            cases.append(Case(name, {"moment_dtype": "8bit", "betas": (0.5, 0.5)}, dtype, steps=4))
    return [case._replace(few=not _has_own_shapes(case)) for case in cases]


def _has_own_shapes(case: Case) -> bool:
    """Returns whether shapes are the point: moments in 8 bits, and a ceiling of small parameters."""
    is_pilot = FAMILY[case.optimizer].memory == "pilot"
    return "moment_dtype" in case.options or (is_pilot and case.losses == "fading")


CASES = _cases()


@contextmanager
def planted(fault: Fault) -> Iterator[dict[str, Member]]:
    """Gives the family with one side's package replaced by a faulty copy of it."""
    package = fault.package
    healthy = {name: module for name, module in sys.modules.items() if name.split(".")[0] == package}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / package
        # With Python's compiled files, which are valid for all files but the faulty one.
        shutil.copytree(ROOT / package, copy, ignore=shutil.ignore_patterns("*_test.*"))
        path = copy / fault.file if "/" in fault.file else next(copy.rglob(f"{fault.file}.py"))
        text = path.read_text()
        if text.count(fault.old) != 1:
            raise AssertionError(
                f"{fault.what}: {fault.old!r} stands {text.count(fault.old)} times in {path.name}"
            )
        path.write_text(text.replace(fault.old, fault.new))
        if fault.file.endswith((".c", ".h")):
            # Not for its speed: with -Og it compiles most quickly, more so than with -O0 or -O1.
            build = copy / "build.py"
            text = build.read_text().replace('"-O3"', '"-Og"').replace('    "avx2": (("-mavx2",),),\n', "")
            build.write_text(text)
            environment = {**os.environ, "EMO_TORCH_ISA": "avx512" if "avx512" in fault.file else "plain"}
            subprocess.run([sys.executable, str(build)], check=True, env=environment, capture_output=True)
        for name in healthy:
            del sys.modules[name]
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            faulty = importlib.import_module(package)
            yield {name: _with(member, faulty) for name, member in FAMILY.items()}
        finally:
            sys.path.remove(folder)
            for name in [name for name in sys.modules if name.split(".")[0] == package]:
                del sys.modules[name]
            sys.modules.update(healthy)


def _with(member: Member, faulty: Any) -> Member:
    if faulty.__name__ == "emo_optax":
        return member._replace(optax=getattr(faulty, member.optax.__name__))
    return member._replace(torch=getattr(faulty, member.name))


@functools.cache
def _reference(side: str, index: int) -> Arrays:
    return trajectory(side, CASES[index])


def _description(case: Case) -> str:
    options = ", ".join(f"{name}={value}" for name, value in case.options.items()) or "defaults"
    return f"{case.optimizer}, {options}, {case.losses}"


def _has_codes(fault: Fault, case: Case) -> bool:
    """Returns whether a fault in codes can show in a case: compiled code has codes in float32 and below."""
    is_compiled = fault.file.endswith((".c", ".h"))
    return "moment_dtype" in case.options and not (is_compiled and case.dtype == "float64")


def find(fault: Fault) -> str | None:
    """Returns the first comparison that finds a fault, or `None`."""
    side, other = ("optax", "torch") if fault.package == "emo_optax" else ("torch", "optax")
    with planted(fault) as family:
        for index, case in enumerate(CASES):
            if fault.by not in ("", case.optimizer):
                continue
            if fault.is_coded and not _has_codes(fault, case):
                continue
            where = _description(case)
            if SHOWN_WITH.get(fault.what, "") not in where:
                continue
            if fault.file.endswith((".c", ".h")):
                case = case._replace(options={**case.options, "fused": True})
            try:
                faulty = trajectory(side, case, member=family[case.optimizer])
                found = compare(faulty, _reference(other, index), case).first_excess
            except (AssertionError, RuntimeError, ValueError) as error:
                return f"{where}: {str(error).splitlines()[0]}"
            if found is not None:
                return f"{where}: {found[1]}, step {found[0]}"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Plants every fault, prints the comparison that found it, and returns 1 if one was not found."""
    parser = options()
    given = parser.parse_args(arguments)
    console = Console()
    table = Table(title="Planted faults, and the comparisons that find them", box=box.SIMPLE)
    lines = ["# Planted faults, and the comparisons that find them", ""]
    lines += ["Written by `python -m parity_tests.faults --report`. Each fault changes one place in a copy"]
    lines += ["of a package. The last column names the first comparison with the healthy twin that fails."]
    lines += [""]
    lines += ["| package | fault | found by |", "|---|---|---|"]
    for column in ("package", "fault", "found by"):
        table.add_column(column)
    missed = 0
    spawn = multiprocessing.get_context("spawn")  # A fork of JAX's threads could hang.
    with ProcessPoolExecutor(given.workers, mp_context=spawn) as pool:
        faults = every_fault()
        results = pool.map(find, faults)
        for fault, found in track(
            zip(faults, results, strict=True),
            description="faults",
            total=len(faults),
            console=console,
            transient=True,
        ):
            missed += found is None
            table.add_row(fault.package, fault.what, found or "[red]nothing[/red]")
            lines.append(f"| {fault.package} | {fault.what} | {found or '**nothing**'} |")
    console.print(table)
    count = f"{len(faults)} faults, {len(faults) - missed} found"
    if len(faults) < len(ALL):
        count += f"; {len(ALL) - len(faults)} more cannot be planted on this machine"
    console.print(count)
    if given.report is not None:
        given.report.parent.mkdir(parents=True, exist_ok=True)
        given.report.write_text("\n".join([*lines, "", f"{count}.", ""]))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
