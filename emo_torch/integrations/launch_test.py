"""`python -m emo_torch.launch`: scripts that nobody edits, run as they are."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import emo_torch

pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install accelerate")

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
for part in (1.0, 3.0):
    (part * weight.sum() / 2).backward()
optimizer.step()
print(float(optimizer.emotion.long))
"""
UNHEARD = """\
import torch, emo_torch
weight = torch.nn.Parameter(torch.ones(2))
optimizer = emo_torch.EmoSens([weight])
weight.grad = torch.ones(2)
optimizer.step()
"""
TRAINER = """\
import os
os.environ["HF_HUB_OFFLINE"] = "1"
from pathlib import Path
import emo_torch

from emo_torch.integrations.transformers_test import collate, sentences, small_gpt2
import transformers
model = small_gpt2()
optimizer = emo_torch.EmoSens(model.parameters(), lr=1e-3)
felt = []
update_memory = optimizer.update_memory
def note(loss, **beside):
    felt.append(float(loss))
    return update_memory(loss, **beside)
optimizer.update_memory = note
arguments = transformers.TrainingArguments(
    output_dir="out", max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=3,
    logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, max_grad_norm=1.0,
)
trainer = transformers.Trainer(
    model, arguments, train_dataset=sentences(), data_collator=collate, optimizers=(optimizer, None)
)
trainer.train()
logged = [each["loss"] for each in trainer.state.log_history if "loss" in each]
assert len(felt) == len(logged) == 3, (felt, logged)
assert all(abs(one - other) <= 1e-6 * abs(other) for one, other in zip(felt, logged)), (felt, logged)
print("equal")
"""
LIGHTNING = """\
import lightning.pytorch as pl, torch
import emo_torch
from emo_torch._testing import batch, small_model
class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model, self.losses = small_model(), []
    def training_step(self, given, index):
        x, y = given
        loss = (self.model(x) - y).square().mean()
        self.losses.append(float(loss.detach()))
        return loss
    def configure_optimizers(self):
        return emo_torch.EmoSens(self.parameters(), lr=1e-3)
module = Module()
data = torch.utils.data.DataLoader([batch(step) for step in range(2)], batch_size=None)
trainer = pl.Trainer(
    max_epochs=1, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(module, data)
emotion = emo_torch.unwrap(module.optimizers()).emotion
assert int(emotion.felt) == 1
assert abs(float(emotion.long) - sum(module.losses) / 2) < 1e-6, (emotion.long, module.losses)
print("equal")
"""

STABLE_BASELINES3 = """\
import emo_torch, gymnasium, numpy, stable_baselines3
class World(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), numpy.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, seed=None, options=None):
        self.steps = 0
        return numpy.zeros(2, numpy.float32), {}
    def step(self, action):
        self.steps += 1
        return numpy.full(2, self.steps / 10, numpy.float32), float(action), self.steps >= 8, False, {}
options = {"optimizer_class": emo_torch.EmoSens, "optimizer_kwargs": {}}
model = stable_baselines3.PPO(
    "MlpPolicy", World(), policy_kwargs=options, n_steps=16, batch_size=16, n_epochs=1, device="cpu"
)
model.learn(16)
emotion = model.policy.optimizer.emotion
assert int(emotion.felt) == 1
assert float(emotion.long) == model.logger.name_to_value["train/loss"]
print("equal")
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


def test_a_plain_loop_needs_no_edit(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    result = run("-m", "emo_torch.launch", tmp_path / "plain.py")
    assert (result.returncode, result.stdout) == (0, "4.0\n"), result.stderr


def test_a_trainer_with_accumulation_feels_what_it_logs(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="Transformers is not installed: pip install transformers")
    (tmp_path / "trains.py").write_text(TRAINER)
    result = run("-m", "emo_torch.launch", tmp_path / "trains.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("equal\n")


def test_lightning_with_accumulation_feels_the_mean(tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: pip install lightning")
    (tmp_path / "trains.py").write_text(LIGHTNING)
    result = run("-m", "emo_torch.launch", tmp_path / "trains.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("equal\n")


def test_stable_baselines3_feels_what_it_logs(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="not installed: pip install stable-baselines3")
    (tmp_path / "trains.py").write_text(STABLE_BASELINES3)
    result = run("-m", "emo_torch.launch", tmp_path / "trains.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("equal\n")


def test_what_it_cannot_see_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unheard.py").write_text(UNHEARD)
    monkeypatch.setattr(sys, "argv", ["unchanged"])
    backward, path = torch.autograd.backward, sys.path[:]
    with pytest.raises(emo_torch.LossMissingError, match="saw no backward pass") as caught:
        main([str(tmp_path / "unheard.py")])
    assert "computes its gradients in another way, add one line" in caught.value.__notes__[0]
    assert (sys.argv, sys.path) == (["unchanged"], path)
    assert torch.autograd.backward is backward


def test_it_is_undone_when_the_script_ends(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("import sys, torch\nsys.exit(torch.autograd.backward)\n")
    backward = torch.autograd.backward
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "ends.py")])
    wrapper: Any = ended.value.code
    assert wrapper.__wrapped__ is backward
    assert torch.autograd.backward is backward


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
        "import accelerate, torch; before = accelerate.Accelerator.backward, torch.autograd.backward\n"
        "import emo_torch.launch.__main__, emo_torch.integrations.accelerate\n"
        "assert (accelerate.Accelerator.backward, torch.autograd.backward) == before\n"
    )
    result = run("-W", "error", "-c", code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert losses_from_backward.__doc__
