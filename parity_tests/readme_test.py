"""What the README shows works as pasted, and the commands that it names exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import emo_optax
import emo_torch
from emo_torch._kernels import library
from parity_tests.faults import every_fault

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


PRINTED = {"flax": ("0.0",), "torch": ("tensor(-",), "bridge": ("moved",)}
"""How the output of each piece of code begins."""


@pytest.mark.parametrize(("name", "code"), list(zip(PRINTED, BLOCKS, strict=True)), ids=list(PRINTED))
def test_the_code_works_as_pasted(name: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "pasted.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "-W", "error", "pasted.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(PRINTED[name])


def test_the_commands_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {name for name in re.findall(r"make (\w+)", README) if name.islower()} <= targets
    modules = set(re.findall(r"python -m ([\w.]+)", README))
    assert modules
    for module in modules:
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_tests_named_exist() -> None:
    for path in re.findall(r"`((?:parity_tests|examples|benchmarks)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path


def test_what_it_links_to_exists() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize(
    ("what", "page"), [("yardstick", "docs/yardstick/tables.md"), ("step time", "docs/step_time/tables.md")]
)
def test_the_figures_are_those_of_the_last_run(what: str, page: str) -> None:
    shown = README.split(f"<!-- {what}: tables -->")[1].split(f"<!-- {what}: end -->")[0]
    measured = " ".join((ROOT / page).read_text().split())
    rows = [line for line in shown.splitlines() if line.strip()]
    assert len(rows) > 20
    for row in rows:
        assert " ".join(row.split()) in measured, row


@pytest.mark.skipif(library() is None, reason="without a C compiler none is planted in compiled code")
def test_as_many_faults_are_planted_as_it_says() -> None:
    assert f"plants {len(every_fault())} faults" in README


def test_both_packages_have_one_version() -> None:
    assert emo_optax.__version__ == emo_torch.__version__
