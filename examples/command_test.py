"""Every command answers `--help` before the imports that take seconds, and names a missing extra."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples import command
from examples.progress import Progress, track

ROOT = Path(__file__).parent.parent
FOLDERS = ("emo_optax", "emo_torch", "examples", "parity_tests", "benchmarks", "website")
INTERNAL = {
    "parity_tests.worker": "a process that `parity_tests` starts",
    "benchmarks.step_time.worker": "a process that `benchmarks.step_time` starts",
}
"""Modules that only a command starts."""
HEAVY = ("torch", "jax", "matplotlib", "flax", "sklearn", "rich", "sphinx", "nbclient", "transformers")


def is_command(path: Path) -> bool:
    tests = [node.test for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    return any(ast.unparse(test) == "__name__ == '__main__'" for test in tests)


def commands() -> list[str]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for path in paths
        if not path.name.endswith("_test.py") and is_command(path)
    ]
    return [name for name in names if name not in INTERNAL]


def ask(name: str) -> subprocess.CompletedProcess[str]:
    """Asks a command for its help, and then says which heavy modules it imported."""
    code = f"""
import atexit, runpy, sys
loaded = lambda: [name for name in {HEAVY!r} if sys.modules.get(name)]
atexit.register(lambda: print("heavy:", *loaded(), file=sys.stderr))
sys.argv = [{name!r}, "--help"]
runpy.run_module({name!r}, run_name="__main__", alter_sys=True)
"""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", commands())
def test_help_comes_before_the_imports_that_take_seconds(name: str) -> None:
    run = ask(name)
    assert run.returncode == 0, run.stderr
    assert f"usage: python -m {name} " in run.stdout
    assert run.stderr == "heavy:\n"


def test_there_are_many_commands() -> None:
    assert len(commands()) > 25
    assert all((ROOT / f"{name.replace('.', '/')}.py").exists() for name in INTERNAL)


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as caught:
        command.answer_early("A text.", "integrations", ("sys", "no_such_package"))
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "no_such_package missing" in said
    assert "emo-optimizers[integrations]" in said


def test_names_are_taken_in_any_spelling() -> None:
    from examples.digits.__main__ import parse

    assert parse(["--optimizer", "EmoSens"])[0].optimizer == "emo_sens"
    assert parse(["--optimizer", "emo_sens"])[0].optimizer == "emo_sens"
    with pytest.raises(SystemExit):
        parse(["--optimizer", "emo_sense"])


def test_progress_is_seen_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2, 3, 4], "counting")) == [1, 2, 3, 4]
    with Progress() as bars:
        task = bars.add_task("long", total=1000)
        for _ in range(1000):
            bars.advance(task)
    printed = capsys.readouterr().out
    assert re.findall(r"counting: (\d+) %", printed) == ["0", "25", "50", "75", "100"]
    assert re.findall(r"long: (\d+) %", printed) == ["0", "25", "50", "75", "100"]


@pytest.mark.parametrize(
    ("module", "arguments", "what"),
    [
        ("benchmarks.first_step", ["--repeats", "-1"], "not a positive whole number"),
        ("benchmarks.step_profile", ["--rounds", "0"], "not a positive whole number"),
        ("benchmarks.listener", ["--tensors", "3"], "3 is below 100"),
        ("benchmarks.listener", ["--rounds", "-1"], "not a positive whole number"),
        ("benchmarks.quality.__main__", ["--most", "-1"], "not a positive whole number"),
        ("benchmarks.quality.__main__", ["--only", "("], "not a regular expression"),
        ("benchmarks.quality.__main__", ["--only", "zzz", "--most", "1"], "no cell matches --only 'zzz'"),
        ("benchmarks.quality.__main__", ["--folder", "{file}"], "does not allow it"),
        ("benchmarks.quality.__main__", ["--report", "--folder", "{folder}"], "there are no results in"),
        ("examples.early_stop", ["--output", "{file}/x.png"], "does not allow it"),
        ("examples.early_stop", ["--output", "{folder}"], "is a folder"),
    ],
)
def test_wrong_arguments_end_a_command_before_its_work(
    module: str, arguments: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    filled = [each.format(file=tmp_path / "file", folder=tmp_path) for each in arguments]
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(module).main(filled)
    assert caught.value.code == 2
    assert what in capsys.readouterr().err
    assert not (tmp_path / "tables.md").exists()
