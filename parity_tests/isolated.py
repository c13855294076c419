"""Builds the distribution and uses each package without the other's framework.

Run with `python -m parity_tests.isolated`. It has two parts, and `--only` chooses one:

- `smoke` builds a source distribution and, from it, a wheel; installs the wheel in a new environment with
  the extra `jax`, and in another one with the extra `torch`; makes sure that the other framework is absent;
  imports every module and steps with every optimizer.
- `suites` runs all tests of each package in this environment, where the other's framework is hidden from
  the tests and from every process that they start.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from parity_tests.alone import check, hidden

ROOT = Path(__file__).parent.parent
CONSTRAINTS = ROOT / "constraints.txt"


class Package(NamedTuple):
    """How a package is used alone.

    Attributes:
        extra: the extra with which it is installed.
        absent: the packages that must not be needed.
        step: code that steps once with the optimizer `name`.
    """

    extra: str
    absent: tuple[str, ...]
    step: str


PACKAGES = {
    "emo_optax": Package(
        "jax",
        ("torch", "flax", "emo_torch"),
        """
    params = {"w": jax.numpy.ones((2, 3))}
    optimizer = package.create_optimizer(name, 0.05)
    updates, state = optimizer.update(params, optimizer.init(params), params, value=1.0)
    assert float(jax.numpy.abs(updates["w"]).sum()) > 0.0, name
""",
    ),
    "emo_torch": Package(
        "torch",
        ("jax", "jaxlib", "optax", "flax", "emo_optax"),
        """
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = package.create_optimizer(name, [weight], lr=0.05)
    weight.grad = torch.ones(2, 3)
    optimizer.step(loss=1.0)
    assert not torch.equal(weight.detach(), torch.ones(2, 3)), name
""",
    ),
}

# An installed package holds both; importing the other one needs its framework.
SMOKE = """
import importlib, pathlib, pkgutil, sys
import {framework}, {package} as package

assert pathlib.Path(package.__file__).is_relative_to(sys.prefix), package.__file__
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith(("_test", "__main__")) and ".integrations" not in module.name:
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name == "triton", error  # Not everywhere is there a GPU to compile kernels for.
for name in package.list_optimizers():{step}
print({package!r}, "works:", ", ".join(package.list_optimizers()))
"""


def _run(*command: str | Path, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, env=environment, check=True)


def build(folder: Path) -> Path:
    """Builds both distributions and returns the wheel."""
    # One level of instructions: the editable install builds all, with the same code.
    one_level = {**os.environ, "EMO_TORCH_ISA": "plain"}
    _run(sys.executable, "-m", "build", "--outdir", folder, ROOT, environment=one_level)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    print(f"built {sdist.name} and {wheel.name}", flush=True)
    names = zipfile.ZipFile(wheel).namelist()
    has_compiler = any(map(shutil.which, ("cc", "gcc", "clang")))
    library = "emo_kernels.bin"
    is_compiled = {f"emo_torch/_kernels/{name}" for name in (library, "emo_kernels.json")} <= set(names)
    tests = [name for name in names if name.endswith(("_test.py", "_testing.py"))]
    if tests:
        raise SystemExit(f"{wheel.name}: holds tests, such as {tests[0]}")
    if is_compiled != has_compiler or wheel.stem.endswith("-none-any") == has_compiler:
        raise SystemExit(f"{wheel.name}: compiled code {is_compiled}, a compiler {has_compiler}")
    return wheel


def smoke(package: str, wheel: Path, folder: Path) -> None:
    """Installs the wheel with one framework, imports every module and steps with every optimizer."""
    extra, absent, step = PACKAGES[package]
    environment = folder / f"only_{extra}"
    venv.create(environment)
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile")
    _run(*pip, "--disable-pip-version-check", "-c", CONSTRAINTS, f"{wheel}[{extra}]")
    # As a user has it: without the variables of a test run, and without another path.
    dropped = ("JAX_", "PYTHON", "TF_CPP_")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    # The wheel brings both packages; only the framework tells them apart.
    check([name for name in absent if not name.startswith("emo_")], variables, python)
    code = SMOKE.format(framework=extra, package=package, step=step)
    _run(python, "-I", "-W", "error", "-c", code, cwd=folder, environment=variables)


def suite(package: str, folder: Path, workers: str, leave_out: Sequence[str] = ()) -> None:
    """Runs the tests of a package while the other's framework is hidden.

    Args:
        package: "emo_optax" or "emo_torch".
        folder: an empty folder for what hides the framework.
        workers: how many processes.
        leave_out: files of tests that are not run.
    """
    absent = PACKAGES[package].absent
    place = folder / f"without_{absent[0]}"
    place.mkdir()
    environment = hidden(absent, place)
    check(absent, environment)
    print(f"testing {package} without {', '.join(absent)}", flush=True)
    options = ("-n", workers, "--dist", "loadgroup", "--durations=20", "-q")
    # The integrations are tested where the other libraries are installed.
    ignored = ["-p", "no:cacheprovider", "--ignore-glob=*/integrations/*"]
    ignored += [f"--ignore={path}" for path in leave_out]
    _run(sys.executable, "-m", "pytest", *options, *ignored, package, environment=environment)


def main(arguments: list[str] | None = None) -> None:
    """Builds once, tries each package alone, then runs its tests."""
    parser = argparse.ArgumentParser(prog="python -m parity_tests.isolated", description=__doc__)
    parser.add_argument("--only", choices=["smoke", "suites"], help="default: both")
    parser.add_argument("--workers", default="2", help="processes of a suite; default: %(default)s")
    parser.add_argument("--ignore", action="append", default=[], help="a file of tests that is not run")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if given.only != "suites":
            wheel = build(folder / "dist")
            for package in PACKAGES:
                smoke(package, wheel, folder)
        if given.only != "smoke":
            for package in PACKAGES:
                suite(package, folder, given.workers, given.ignore)


if __name__ == "__main__":
    main()
