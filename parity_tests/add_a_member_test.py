"""The page about adding a member, followed to the letter in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "add_a_member.md").read_text()
PATH = re.compile(r"`(emo_\w+/[\w/]+\.py)`")
MOST_LINES = 90

LOOK = """
import emo_optax, emo_torch
import inspect
import torch
from benchmarks.step_time.members import MEMBERS
from benchmarks.step_time.plan import GROUPS, TRACED
from examples.yardstick.optimizers import contenders
from parity_tests import cases, faults, lockstep, registry_test, report
from parity_tests.family import FAMILY

# By name, and exported.
assert "emo_echo" in emo_torch.list_optimizers() and "emo_echo" in emo_optax.list_optimizers()
made = emo_torch.create_optimizer("EmoEcho", [torch.zeros(1, requires_grad=True)])
assert type(made) is emo_torch.EmoEcho
assert emo_optax.create_optimizer("emo_echo", 1e-2).init is not None
registry_test.test_both_packages_have_the_same_members()
registry_test.test_what_is_exported_are_the_members_of_the_registry()
registry_test.test_both_bridges_have_the_same_names()
registry_test.test_every_option_of_the_signature_reaches_the_groups("emo_echo")
registry_test.test_a_member_has_the_same_arrays_on_both_sides("EmoEcho")

# Parity: both sides in step, in the readable way and in compiled code; the cases, and the page's table.
member = FAMILY["EmoEcho"]
assert (member.cousin, member.memory, member.lacks) == ("EmoSens", "emotion", frozenset())
assert cases.cases(("EmoEcho",))
for options in ({}, {"theta": 0.3}, {"fused": True}):
    found = lockstep.run(lockstep.Case("EmoEcho", options, losses="rising", steps=8))
    assert found.first_excess is None, (options, found.first_excess)
assert found.leaves["param/matrix"].values and found.leaves["shadow/matrix"].values
rows = report.rows([type("Result", (), {"case": lockstep.Case("EmoEcho"), "lockstep": found})])
assert {row[0] for row in rows} == {"EmoEcho"} and len(rows) > 3
# Faults.
assert "EmoEcho" in {case.optimizer for case in faults.CASES}
# Benchmarks.
assert (MEMBERS["emo_echo"].title, MEMBERS["emo_echo"].cousin) == ("EmoEcho", "emo_sens")
assert MEMBERS["emo_echo"].shadow and "emo_echo" in TRACED
for groups in GROUPS.values():
    assert "emo_echo" in {variant.make for group in groups.values() for variant in group.variants}
# Yardstick.
assert contenders()["emo_echo"].title == "EmoEcho"
print("seen everywhere")
"""


def _steps() -> list[tuple[str, str]]:
    """Returns the blocks of code on the page, each with the file that is named last before it."""
    parts = re.split(r"```python\n(.*?)```\n", PAGE, flags=re.DOTALL)
    texts, blocks = parts[:-1:2], parts[1::2]
    return [(PATH.findall(text)[-1], code) for text, code in zip(texts, blocks, strict=True)]


def _add(folder: Path, path: str, code: str) -> None:
    """Writes a new file, or adds lines to a file beside lines of the same kind."""
    file = folder / path
    if not file.exists():
        assert len(code.splitlines()) <= MOST_LINES, path
        file.write_text(code)
        return
    package = path.split("/")[0]
    lines = file.read_text().splitlines()
    for line in code.splitlines():
        kind = f"from {package}." if line.startswith("from ") else line.split("(")[0]
        places = [index for index, known in enumerate(lines) if known.startswith(kind)]
        # An import may take several lines, so before the first one; an entry goes to the end.
        lines.insert(places[0] if line.startswith("from ") else places[-1] + 1, line)
    file.write_text("\n".join([*lines, ""]))


def test_the_page_adds_a_file_of_few_lines_and_three_lines_on_either_side() -> None:
    steps = _steps()
    assert [path for path, _ in steps] == [
        f"{package}/{file}"
        for package in ("emo_torch", "emo_optax")
        for file in ("_members/emo_echo.py", "_members/by_name.py", "_public.py")
    ]
    assert [len(code.splitlines()) for path, code in steps if "emo_echo" not in path] == [2, 1, 2, 1]


def test_a_member_that_is_added_by_the_page_is_seen_everywhere(tmp_path: Path) -> None:
    for name in ("emo_shared", "emo_torch", "emo_optax", "parity_tests", "benchmarks", "examples"):
        skipped = shutil.ignore_patterns("recordings", "add_a_member_test.*")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skipped)
    for path, code in _steps():
        _add(tmp_path, path, code)
    (tmp_path / "look.py").write_text(LOOK)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "look.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "seen everywhere\n"


@pytest.mark.parametrize("package", ["emo_torch", "emo_optax"])
def test_the_code_on_the_page_is_formatted_like_the_rest(package: str) -> None:
    path = f"{package}/_members/emo_echo.py"
    for command in (["check"], ["format", "--check"]):
        run = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", path, "-"],
            cwd=ROOT,
            input=dict(_steps())[path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
