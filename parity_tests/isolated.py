"""Builds the distribution and uses each package where the other's framework is not installed.

Run with `python -m parity_tests.isolated`. It builds a source distribution and, from it, a wheel;
makes two virtual environments, one with the extra `jax` and one with the extra `torch`; makes sure
that the other framework is absent; and runs the package's own tests on what was installed.
"""

import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALONE = {
    # Package: its extra, the frameworks that must be absent, what its tests need besides.
    "emo_optax": ("jax", ("torch", "flax"), ()),
    "emo_torch": (
        "torch",
        ("jax", "optax", "flax"),
        ("expecttest", "hypothesis", "triton; sys_platform == 'linux'"),
    ),
}


def _run(*command: str | Path, cwd: Path = ROOT) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def build(folder: Path) -> Path:
    """Builds both distributions and returns the wheel."""
    _run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    print(f"built {sdist.name} and {wheel.name}", flush=True)
    names = zipfile.ZipFile(wheel).namelist()
    has_compiler = any(map(shutil.which, ("cc", "gcc", "clang")))
    library = "emo_kernels.dll" if sys.platform == "win32" else "emo_kernels.so"
    is_compiled = {f"emo_torch/_fused/{name}" for name in (library, "emo_kernels.json")} <= set(names)
    if is_compiled != has_compiler or wheel.stem.endswith("-none-any") == has_compiler:
        raise SystemExit(f"{wheel.name}: compiled code {is_compiled}, a compiler {has_compiler}")
    return wheel


def test_alone(package: str, wheel: Path, folder: Path) -> None:
    """Installs the wheel with one framework and runs the package's tests."""
    extra, absent, needs = ALONE[package]
    environment = folder / f"only_{extra}"
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*pip, "-c", ROOT / "constraints.txt", f"{wheel}[{extra},test]", *needs)
    for framework in absent:
        found = subprocess.run([python, "-c", f"import {framework}"], capture_output=True, check=False)
        if found.returncode == 0:
            raise SystemExit(f"{framework} is installed where {package} should be alone")
    print(f"testing {package}, installed without {', '.join(absent)}", flush=True)
    options = (
        "-n",
        "2",
        "--dist",
        "loadgroup",
        "-W",
        "error",
        # As pyproject.toml has it, which is not there.
        "-W",
        "ignore:A learning rate of",
        "--doctest-modules",
        "--import-mode=importlib",
    )
    # What joins other libraries is tested where those are.
    files = (
        "-o",
        "python_files=*_test.py",
        "-p",
        "no:cacheprovider",
        "-q",
        "--ignore-glob=*/integrations/*",
    )
    packages = (package, "emo_shared")
    _run(python, "-m", "pytest", *options, *files, "--pyargs", *packages, cwd=folder)


def main() -> None:
    """Builds once, then tests each package alone."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel = build(folder / "dist")
        for package in ALONE:
            test_alone(package, wheel, folder)


if __name__ == "__main__":
    main()
