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


ONE_SIDED = {
    "emo_optax": {
        "_aliases_test.py": "members are chains of pieces here, and classes there",
        "_bind_test.py": "the adapter for wrappers that drop arguments, which Optax's alone do",
        "_compiled_step_test.py": "what XLA makes of a step",
        "_devices_test.py": "eight devices in one process",
        "_export.py": "state classes for jax.export",
        "_export_test.py": "state classes for jax.export",
        "_meta_gradient_test.py": "gradients through updates, which are functions here",
        "_promotion_test.py": "JAX's promotion of dtypes, and what Optax makes of hyperparameters",
        "_reference_test.py": "pieces against NumPy; there, members are in _emotional_test.py",
        "_state_test.py": "states are trees of arrays here",
        "_states.py": "numbers that a user put into a state; there, groups and states check themselves",
        "_states_test.py": "numbers that a user put into a state",
        "_wrappers_test.py": "Optax's own wrappers",
    },
    "emo_torch": {
        "_any_optimizer.py": "holds an optimizer; there, `emotional` is a function in _emotional",
        "_around_inner.py": "an optimizer that saves and loads itself; Optax's states are trees of arrays",
        "_around_inner_test.py": "the same",
        "_blocked_test.py": "what steps without a compiler",
        "_calls_test.py": "how many calls a step makes in Python; a step of Optax's is compiled",
        "_cuda_test.py": "what needs a GPU: kernels, syncs, graphs",
        "_family_rules.py": "the rules as data; Optax's rules are transformations already",
        "_grad_scaler_test.py": "PyTorch's gradient scaler",
        "_recipe.py": "what a member does, as data, for several ways to step; Optax has one way",
        "_recipe_test.py": "recipes, and the lists in compiled code",
        "_rules.py": "a folder in emo_optax",
        "_rules_test.py": "a folder in emo_optax",
        "_schedulers_test.py": "PyTorch's schedulers; Optax's schedules are functions",
        "_sharded.py": "DTensors; JAX's own arrays know how they are sharded",
        "build.py": "builds the compiled code, which is PyTorch's side alone",
        "build_test.py": "what it does with compilers of all kinds",
        "_testing.py": "what tests of trainers share; no public module",
        "_inner_check.py": "whether lr can be scaled for a step; an update of Optax can always be scaled",
        "_inner_check_test.py": "the same",
        "_inner_state.py": "an optimizer that saves and loads itself",
        "_inner_step.py": "scaling lr, or moving parameters back; updates of Optax are scaled",
        "_stand_in.py": "a tiny copy of an optimizer, stepped to see how it treats lr",
        "_step_test.py": "what `step` takes, returns and leaves alone",
        "_torch_optim_test.py": "PyTorch's own suite; Optax's is in parity_tests",
        "_triton_test.py": "kernels for CUDA, interpreted",
        "_ways.py": "the ways to step: one tensor, many, compiled code",
        "_ways_test.py": "the ways to step: foreach, fused",
    },
}
"""The files that one package has alone, and why."""


def test_both_packages_have_the_same_files() -> None:
    files = {package: {path.name for path in (ROOT / package).glob("*.py")} for package in ONE_SIDED}
    common = files["emo_optax"] & files["emo_torch"]
    for package, alone in ONE_SIDED.items():
        assert files[package] - common == set(alone)
