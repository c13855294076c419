"""`python -m emo_torch.launch`: scripts that nobody edits, run as they are."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import emo_torch

pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install accelerate")

import accelerate

from emo_torch.integrations.accelerate import losses_from_backward
from emo_torch.launch.__main__ import main

SCRIPT = '''\
"""A training script that takes the optimizer's name, and knows nothing of losses in steps."""

import importlib
import sys

import torch
from accelerate import Accelerator

import beside

module, _, name = sys.argv[1].rpartition(".")
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = getattr(importlib.import_module(module), name)(model.parameters(), lr=1e-3)
model, wrapped = accelerator.prepare(model, optimizer)
losses = []
for step in range(4):
    with accelerator.accumulate(model):
        loss = (model(torch.full((2, 4), float(step))) ** 2).mean()
        losses.append(float(loss.detach()))
        accelerator.backward(loss)
        wrapped.step()
        wrapped.zero_grad()
first, second = (sum(losses[:2]) / 2, sum(losses[2:]) / 2)
print(__name__, sys.argv[1:], beside.HERE, int(optimizer.emotion.felt))
assert abs(float(optimizer.emotion.long) - (first + 0.01 * (second - first))) < 1e-5
'''
PLAIN = """\
import torch, emo_torch
weight = torch.nn.Parameter(torch.ones(2))
optimizer = emo_torch.EmoSens([weight])
weight.sum().backward()
optimizer.step()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("HERE = 'beside'\n")
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_a_script_needs_no_edit(script: Path) -> None:
    result = run("-m", "emo_torch.launch", script, "emo_torch.EmoSens", "--more")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "__main__ ['emo_torch.EmoSens', '--more'] beside 2\n"
    alone = run(script, "emo_torch.EmoSens")
    assert "LossMissingError" in alone.stderr


def test_a_module_needs_no_edit_either_nor_does_accelerate_launch(script: Path) -> None:
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1")
    options = ("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "emo_torch.launch")
    result = run(*launch, *options, "-m", "train", "emo_torch.EmoCats", cwd=script.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "__main__ ['emo_torch.EmoCats'] beside 2\n"


def test_what_it_cannot_see_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    monkeypatch.setattr(sys, "argv", ["unchanged"])
    backward, path = accelerate.Accelerator.backward, sys.path[:]
    with pytest.raises(emo_torch.LossMissingError) as caught:
        main([str(tmp_path / "plain.py")])
    assert "A plain `loss.backward()` it cannot see" in caught.value.__notes__[0]
    assert (sys.argv, sys.path) == (["unchanged"], path)
    assert accelerate.Accelerator.backward is backward


def test_it_is_undone_when_the_script_ends(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("import sys, accelerate\nsys.exit(accelerate.Accelerator.backward)\n")
    backward = accelerate.Accelerator.backward
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "ends.py")])
    wrapper: Any = ended.value.code
    assert wrapper.__wrapped__ is backward
    assert accelerate.Accelerator.backward is backward


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["-m"], 2), (["--unknown"], 2), (["--help"], 0)])
def test_it_says_how_it_is_used(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    printed = capsys.readouterr()
    assert (printed.err if code else printed.out).startswith("usage: python -m emo_torch.launch script.py")


def test_importing_it_changes_nothing() -> None:
    code = (
        "import accelerate; before = accelerate.Accelerator.backward\n"
        "import emo_torch.launch.__main__, emo_torch.integrations.accelerate\n"
        "assert accelerate.Accelerator.backward is before\n"
    )
    result = run("-W", "error", "-c", code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert losses_from_backward.__doc__
