"""Kills a run with SIGKILL at random moments: it goes on from its checkpoint to the last bit.

A server process imports JAX, traces the run's functions and starts no thread; each process of the run is a
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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

KILLS = 50
STEPS = 60
EVERY = 2
"""After how many steps a checkpoint is written."""


# A process with threads must not be forked, and Linux alone says how many there are.
needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or not Path("/proc/self/task").exists(),
    reason="NO RUN WAS KILLED: THIS SYSTEM LACKS os.fork OR /proc/self/task",
)


OPTIMIZER = emo_optax.emo_sens(optax.linear_schedule(1e-2, 1e-3, STEPS), use_shadow=True)
init = jax.jit(OPTIMIZER.init)


@jax.jit
def train_step(params: Any, state: Any, images: Any) -> Any:
    def mean_loss(params: Any) -> Any:
        return jnp.mean((jnp.tanh(images @ params["hidden"]) @ params["output"]) ** 2)

    loss, grads = jax.value_and_grad(mean_loss)(params)
    updates, state = OPTIMIZER.update(grads, state, params, value=loss)
    return optax.apply_updates(params, updates), state


def trace() -> None:
    """Traces both functions, which all processes need; JAX starts no thread for that."""
    shapes = {"hidden": (64, 32), "output": (32, 1)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    state = init.trace(params).out_info
    train_step.trace(params, state, jax.ShapeDtypeStruct((16, 64), jnp.float32))


def run_to_end(folder: Path, say: Callable[[str], None]) -> None:
    """Runs from the last checkpoint, or from the beginning, to the end."""
    # Compiled in the first process, which is not killed, and not again.
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    first = np.random.default_rng(0)
    params = {
        "hidden": jnp.asarray((0.1 * first.normal(size=(64, 32))).astype(np.float32)),
        "output": jnp.asarray((0.1 * first.normal(size=(32, 1))).astype(np.float32)),
    }
    path = folder / "run.safetensors"
    run: Any = {"params": params, "state": init(params), "step": 0}
    if path.exists():
        run = emo_optax.load_checkpoint(path, like=run)
    say(f"from {run['step']}")
    while run["step"] < STEPS:
        images = np.random.default_rng(run["step"]).normal(size=(16, 64)).astype(np.float32)
        params, state = train_step(run["params"], run["state"], images)
        run = {"params": params, "state": state, "step": run["step"] + 1}
        digest = hashlib.sha256()
        for array in jax.tree.leaves((params, state)):
            digest.update(np.asarray(array).tobytes())
        say(f"step {run['step']} {digest.hexdigest()}")
        if run["step"] % EVERY == 0:
            emo_optax.save_checkpoint(path, run)
            say(f"saved {run['step']}")


def serve(folder: Path) -> None:
    """Runs once to the end, and then kills and resumes the run until it was killed `KILLS` times."""
    chance = random.Random(0)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, b"begun\n")
    trace()
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
    server = [sys.executable, "-W", "error", "-m", "emo_optax._state.checkpoint_kill_test", str(tmp_path)]
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
