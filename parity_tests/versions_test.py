"""The lower bounds of pyproject.toml are the pins of `constraints-oldest.txt`."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from parity_tests.environment import plan
from parity_tests.versions import PACKAGES, versions

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _requirements() -> dict[str, list[Requirement]]:
    """Returns the requirements of all extras by name, without requirements of one extra on another.

    The extra `docs` is left out: it builds the site, and no test of the packages needs it.
    """
    found: dict[str, list[Requirement]] = {}
    for extra, lines in PROJECT["optional-dependencies"].items():
        for line in lines if extra != "docs" else ():
            requirement = Requirement(line)
            if requirement.name != PROJECT["name"]:
                found.setdefault(requirement.name, []).append(requirement)
    return found


def _pins() -> dict[str, Version]:
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {pin.name: Version(next(iter(pin.specifier)).version) for pin in pins}


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    pins = _pins()
    # JAX has no bound for its own other half; both have one version.
    assert pins.pop("jaxlib") == pins["jax"]
    bounds = {}
    for name, requirements in _requirements().items():
        lower = {
            Version(one.version) for each in requirements for one in each.specifier if one.operator == ">="
        }
        assert len(lower) == 1, f"{name} has the lower bounds {lower}"
        bounds[name] = lower.pop()
    assert pins == bounds


def test_what_is_installed_is_admitted() -> None:
    found = versions()
    assert found.keys() >= {"Python", "torch", "jax", "numpy", "pytest"}
    for name, requirements in _requirements().items():
        if name in PACKAGES and name in found:  # The extra `trainers` may be missing.
            for requirement in requirements:
                assert requirement.specifier.contains(found[name], prereleases=True), (name, found[name])


def test_pytest_is_below_the_version_with_which_groups_of_tests_are_not_kept_together() -> None:
    (pytest_bound,) = _requirements()["pytest"]
    assert not pytest_bound.specifier.contains("9.2.0")
    assert Version(pytest.__version__) < Version("9.2")


def test_the_page_of_versions_has_a_row_for_the_oldest_and_the_newest() -> None:
    page = (ROOT / "docs/versions.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\| (oldest|newest|default) \|", line)]
    assert {row.split("|")[1].strip() for row in rows} == {"oldest", "newest", "default"}
    pins = _pins()
    for name in ("torch", "jax", "numpy", "safetensors", "flax", "transformers", "lightning"):
        assert f"{name} {pins[name]}" in page


def test_a_build_for_cuda_is_announced_before_it_is_downloaded() -> None:
    def one(name: str, version: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "version": version}}

    plain, cuda = [one("torch", "2.13.0+cpu")], [one("torch", "2.11.0"), one("nvidia-cublas", "13.1")]
    assert "NVIDIA" not in plan(plain)
    assert "torch 2.13.0+cpu" in plan(plain)
    assert "PyTorch 2.11.0 comes as a build for CUDA, with 1 packages of NVIDIA" in plan(cuda)
