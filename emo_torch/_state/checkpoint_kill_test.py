"""Kills a run with SIGKILL at random moments: it goes on from its checkpoint to the last bit.

A server process imports PyTorch, does no work with it and starts no thread; each process of the run is a
fork of it. Each process writes its actions to a log, a line at a time, which the test reads.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch._dynamo  # Every optimizer imports it; without this line, each fork needs a second more.

import emo_torch

KILLS = 50
STEPS = 60
EVERY = 2
"""After how many steps a checkpoint is written."""


# A process with threads must not be forked, and Linux alone says how many there are.
needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or not Path("/proc/self/task").exists(),
    reason="NO RUN WAS KILLED: THIS SYSTEM LACKS os.fork OR /proc/self/task",
)


def run_to_end(folder: Path, say: Callable[[str], None]) -> None:
    """Runs from the last checkpoint, or from the beginning, to the end."""

    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    torch.manual_seed(0)
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.1)
    optimizer = emo_torch.EmoSens(model.parameters(), lr=1e-2, use_shadow=True)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=STEPS)
    generator = torch.Generator().manual_seed(1)
    step, path = 0, folder / "run.safetensors"
    if path.exists():
        run = emo_torch.load_checkpoint(path)
        model.load_state_dict(run["model"])
        optimizer.load_state_dict(run["optimizer"])
        scheduler.load_state_dict(run["scheduler"])
        generator.set_state(run["generator"])
        step = run["step"]
    say(f"from {step}")
    while step < STEPS:
        optimizer.zero_grad()
        loss = model(torch.randn(16, 64, generator=generator)).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        scheduler.step()
        step += 1
        tensors = [*model.parameters(), *(t for state in optimizer.state.values() for t in state.values())]
        digest = hashlib.sha256()
        for tensor in (*tensors, *optimizer.emotion):
            digest.update(tensor.detach().numpy().tobytes())
        say(f"step {step} {digest.hexdigest()}")
        if step % EVERY == 0:
            run = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "generator": generator.get_state(),
                "step": step,
            }
            emo_torch.save_checkpoint(path, run)
            say(f"saved {step}")


def serve(folder: Path) -> None:
    """Runs once to the end, and then kills and resumes the run until it was killed `KILLS` times."""
    chance = random.Random(0)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, b"begun\n")
    assert len(os.listdir("/proc/self/task")) == 1  # Else a fork could hang.
    begun = time.monotonic()
    status = run_in_a_fork(folder, log, None)
    pause = (time.monotonic() - begun) / STEPS  # As long as one step, and a half of a save.
    kills, seen = 0, set[Path]()
    while kills < KILLS and status in (0, -signal.SIGKILL):
        if status == 0:
            (folder / "run.safetensors").unlink()
            os.write(log, b"begun\n")
        status = run_in_a_fork(folder, log, (chance.randrange(15), chance.random() * pause))
        if status == -signal.SIGKILL:
            kills += 1
            left = set(folder.glob(".run.safetensors.*.tmp"))
            os.write(log, b"killed writing\n" if left - seen else b"killed\n")
            seen |= left


def run_in_a_fork(folder: Path, log: int, kill: tuple[int, float] | None) -> int:
    """Runs in a forked process, kills it after some lines and seconds, and returns its exit code."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:

            def say(line: str) -> None:
                os.write(log, f"{line}\n".encode())
                os.write(send, b"!")

            run_to_end(folder, say)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(send)
    if kill is not None:
        lines, seconds = kill
        for _ in range(lines):
            os.read(receive, 1)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # A process that has ended keeps its exit code until waitpid.
    _, status = os.waitpid(child, 0)
    os.close(receive)
    return os.waitstatus_to_exitcode(status)


@needs_fork
def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint_to_the_last_bit(tmp_path: Path) -> None:
    server = [sys.executable, "-W", "error", "-m", "emo_torch._state.checkpoint_kill_test", str(tmp_path)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # NumPy's would start threads at once.
    done = subprocess.run(server, capture_output=True, text=True, check=False, timeout=500, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    whole: dict[str, str] = {}
    resumed = saved = 0
    for event, *rest in lines:
        if event == "begun":
            saved = 0
        elif event == "from":
            # The process may have been killed after it wrote a checkpoint and before it logged "saved".
            assert int(rest[0]) in (saved, saved + EVERY)
            saved = int(rest[0])
            resumed += saved > 0
        elif event == "saved":
            saved = int(rest[0])
        elif event == "step":
            assert whole.setdefault(rest[0], rest[1]) == rest[1], f"step {rest[0]} is another one"
    assert len(whole) == len(set(whole.values())) == STEPS
    kills = [rest for event, *rest in lines if event == "killed"]
    assert len(kills) == KILLS
    assert kills.count(["writing"]) >= 3
    assert resumed >= KILLS // 2


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
