"""Many processes, really run: two or four on this machine's CPU, which talk through gloo.

A test marked `@in_processes` runs in each of them at once, with a `Place` that says in which one it is.
The processes start once and are kept; each test has process groups of its own. The
fixture `processes` is in conftest.py.
"""

import contextlib
import importlib
import inspect
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("torch.distributed.fsdp", reason="THIS PYTORCH WAS BUILT WITHOUT torch.distributed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("THIS PYTORCH WAS BUILT WITHOUT gloo", allow_module_level=True)

import torch.distributed as dist

PATIENCE = 60.0
"""Seconds that a process waits for another one: more than any test takes."""


class Place(NamedTuple):
    """Which of the processes this is, how many there are, and a folder that they share."""

    rank: int
    size: int
    folder: Path


CASES: dict[tuple[str, str], Callable[..., None]] = {}
"""Tests by module and name: a process imports the module of the test that it runs."""


def in_processes(size: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a test one that runs in so many processes at once; parameters become its keywords."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        case = (test.__module__, test.__name__)
        CASES[case] = test
        names = [name for name in test.__annotations__ if name not in ("place", "return")]

        def run(processes: Processes, tmp_path: Path, **given: Any) -> None:
            __tracebackhide__ = True
            failures = processes.run(case, size, tmp_path, given)
            assert not failures, "\n".join(failures)

        run.__name__ = test.__name__
        # pytest reads the arguments from the signature.
        run.__signature__ = _signature(["processes", "tmp_path", *names])  # type: ignore[attr-defined]
        return run

    return decorate


def _signature(names: list[str]) -> Any:
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names])


class Processes:
    """Processes that wait for tests; as many are started as the largest test so far needed."""

    def __init__(self) -> None:
        self.pipes: list[Any] = []
        self.alive: list[Any] = []

    def run(self, case: tuple[str, str], size: int, folder: Path, given: dict[str, Any]) -> list[str]:
        """Runs a test in so many of them; returns the errors by process."""
        context = multiprocessing.get_context("spawn")
        while len(self.alive) < size:
            mine, theirs = context.Pipe()
            self.alive.append(context.Process(target=_serve, args=(theirs,), daemon=True))
            self.alive[-1].start()
            self.pipes.append(mine)
        for rank, pipe in enumerate(self.pipes[:size]):
            pipe.send((case, Place(rank, size, folder), given))
        failures = []
        for rank, pipe in enumerate(self.pipes[:size]):
            try:
                answer = pipe.recv() if pipe.poll(2 * PATIENCE) else "no answer"
            except EOFError:
                answer = "it ended"
            if answer is not None:
                failures.append(f"in process {rank} of {size}: {answer}")
        if failures:  # One may have ended, or wait for the other.
            self.end()
        return failures

    def end(self) -> None:
        """Ends them."""
        for process in self.alive:
            process.kill()
            process.join()
        self.pipes, self.alive = [], []


def _serve(pipe: Any) -> None:
    """Runs the tests that come through a pipe, until it closes."""
    warnings.simplefilter("error")
    # A warning of torch.compile under one release of Python, as in pyproject.toml.
    warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")
    # A checkpoint that one process reads by itself, as it should.
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while True:
        try:
            case, place, given = pipe.recv()
        except EOFError:
            return
        answer = None
        try:
            importlib.import_module(case[0])
            dist.init_process_group(
                "gloo",
                init_method=f"file://{place.folder}/store_of_{case[1]}",
                rank=place.rank,
                world_size=place.size,
                timeout=timedelta(seconds=PATIENCE),
            )
            CASES[case](place, **given)
            dist.barrier()
        except BaseException:
            answer = traceback.format_exc()
        # The other one may wait for this one: it finds the group closed.
        with contextlib.suppress(Exception):
            dist.destroy_process_group()
        pipe.send(answer)


@in_processes(2)
def fails_in_one_process(place: Place) -> None:
    assert place.rank == 0, "the second one"


def test_a_failure_in_one_process_fails_the_test(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"in process 1 of 2:(.|\n)*the second one"):
        fails_in_one_process(processes=processes, tmp_path=tmp_path)
