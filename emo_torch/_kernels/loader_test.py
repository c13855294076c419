"""Compiled code is loaded only if the file is as it was built; nothing is compiled when training begins."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch import _kernels as _fused
from emo_torch import build
from emo_torch._kernels import loader
from emo_torch._kernels.loader import load_library
from emo_torch._testing import COMPILED_MEMBERS

needs_library = pytest.mark.skipif(_fused.library() is None, reason="NO COMPILED CODE")
LEVELS = tuple(build.LEVELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the library, its record and its sources."""
    for path in build.SOURCES.iterdir():
        if path.suffix in (".c", ".h") or path.name in (build.LIBRARY, build.RECORD):
            shutil.copy(path, tmp_path)
    return tmp_path


def refuse(folder: Path, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """Asserts that a library is not loaded, and that one warning gives the reason and the remedy."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "emo_torch"):
        assert load_library(folder) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()
    assert "python -m emo_torch.build" in record.getMessage()


def record(folder: Path) -> None:
    """Writes a record that fits the library."""
    told = json.loads((folder / build.RECORD).read_text())
    data = (folder / build.LIBRARY).read_bytes()
    told |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / build.RECORD).write_text(json.dumps(told))


@needs_library
def test_a_library_that_is_whole_is_loaded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_library(folder) is not None
    assert caplog.records == []


@needs_library
@pytest.mark.parametrize("size", [0, 1, 4096, 0.5, -1])
def test_a_library_that_was_cut_off_is_refused(
    size: float, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / build.LIBRARY
    whole = path.read_bytes()
    path.write_bytes(whole[: int(size * len(whole)) if isinstance(size, float) else size])
    refuse(folder, caplog, "it was cut off or altered")


@needs_library
def test_a_library_with_a_flipped_bit_is_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / build.LIBRARY
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refuse(folder, caplog, "it was cut off or altered")


@needs_library
def test_a_library_of_other_sources_is_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (folder / "cpu_rules.h").open("a") as file:
        file.write("/* changed */\n")
    refuse(folder, caplog, "was built from other sources")
    for path in (*folder.glob("*.c"), *folder.glob("*.h")):
        path.unlink()
    assert load_library(folder) is not None  # Without sources there is nothing to compare.


@pytest.mark.parametrize("missing", [build.LIBRARY, build.RECORD])
def test_a_library_that_is_not_there_is_said_so(
    missing: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / missing).unlink(missing_ok=True)
    refuse(folder, caplog, "the library was not built")


@needs_library
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"size": 1}', b"null", b"\xff\xfe"])
def test_a_record_that_is_damaged_is_refused(
    text: bytes, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / build.RECORD).write_bytes(text)
    refuse(folder, caplog, "Stepping without compiled code")


@needs_library
def test_a_file_that_is_no_library_is_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / build.LIBRARY).write_bytes(b"no library")
    record(folder)
    refuse(folder, caplog, "Stepping without compiled code")


@needs_library
@pytest.mark.skipif(shutil.which("cc") is None, reason="NO C COMPILER WAS FOUND")
def test_a_library_without_the_steps_is_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "other.c").write_text("int other(void) { return 1; }\n")
    build.compile_shared(folder / "other.c", folder / build.LIBRARY)
    (folder / "other.c").unlink()
    record(folder)
    refuse(folder, caplog, "emo_use_level")


def test_compiled_code_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EMO_TORCH_COMPILE", "0")
    assert load_library() is None
    assert caplog.records == []


# Levels of instructions.

SHAPES = ((33, 7), (64, 8), (129,), (1,), (3, 5, 2), (1025,))
SUMS = {
    "emo_airy",
    "emo_clan",
    "emo_fact",
    "emo_neco",
    "emo_pilot_airy",
    "emo_zeal",
    "ref_adamw_mini_schedule_free",
}
"""The members with sums: each level of instructions groups the terms differently. Others have no sums."""
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-12}


def trained(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Returns the parameters and the state after some steps."""
    params = [
        torch.nn.Parameter(torch.linspace(-1, 1, max(1, torch.Size(s).numel()), dtype=dtype).view(s))
        for s in SHAPES
    ]
    optimizer: Any = emo_torch.create_optimizer(name, params, lr=1e-2, fused=True)
    for step, loss in enumerate((1.0, 1.3, 0.7, 2.5, 0.4)):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=dtype)
        optimizer.step(loss=loss)
    states = [tensor for state in optimizer.state.values() for _, tensor in sorted(state.items())]
    return [*(param.detach() for param in params), *states]


@needs_library
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", COMPILED_MEMBERS)
def test_all_levels_take_the_same_step(name: str, dtype: torch.dtype) -> None:
    found = _fused.library()
    assert found is not None
    use_level = found.handle.emo_use_level
    best, results = use_level(-1), {}
    try:
        for number, level in enumerate(LEVELS):
            if use_level(number) == number:
                results[level] = trained(name, dtype)
    finally:
        use_level(best)
    if len(results) < 2:
        pytest.skip("THIS PROCESSOR, OR THE LIBRARY, HAS ONE LEVEL")
    plain = results.pop("plain")
    for level, other in results.items():
        for ours, theirs in zip(other, plain, strict=True):
            if name in SUMS:
                torch.testing.assert_close(ours, theirs, rtol=BOUNDS[dtype], atol=BOUNDS[dtype])
            else:
                assert torch.equal(ours, theirs), level


@needs_library
def test_a_level_that_there_is_not_changes_nothing() -> None:
    library = load_library()
    assert library is not None
    best = library.emo_use_level(-1)
    assert [library.emo_use_level(number) for number in (3, 99, 2**33)] == [-1] * 3
    assert library.emo_use_level(0) == 0
    assert library.emo_use_level(best) == best


@needs_library
@pytest.mark.parametrize("level", [*LEVELS, "sse9"])
def test_the_environment_names_the_level(
    level: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    class Library:
        def emo_use_level(self, number: int) -> int:
            asked.append(number)
            return 1 if number < 0 else number if number < 2 else -1

    monkeypatch.setenv("EMO_TORCH_ISA", level)
    monkeypatch.setattr(loader, "_load", lambda _: Library())
    assert load_library(folder) is not None
    assert asked == [-1, *(LEVELS.index(level) for _ in range(level in LEVELS))]
    warnings = [each.getMessage() for each in caplog.records]
    if level in ("avx512", "sse9"):
        assert warnings == [
            f"EMO_TORCH_ISA={level}: the library or this processor lacks these instructions. Stepping "
            "with avx2; known are plain, avx2, avx512."
        ]
    else:
        assert warnings == []


# The first step.

FIRST_STEP = """
import os, pwd, subprocess, sys
import torch
import emo_torch

def no_user(_):
    raise KeyError("no such user")

pwd.getpwuid = no_user  # As in a container whose user has no name.
started, written = [], []

def hook(event, told):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.mkdir"):
        started.append((event, *map(str, told)))
    if event == "open" and isinstance(told[2], int) and told[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        written.append(told[0])

weight = torch.nn.Parameter(torch.ones(5))
weight.grad = torch.ones(5)
optimizer = emo_torch.EmoSens([weight])
sys.addaudithook(hook)
optimizer.step(loss=1.0)
assert (started, written) == ([], []), (started, written)
from emo_torch._kernels import library
print(library() is not None)
"""


def test_the_first_step_starts_no_process_and_writes_no_file(tmp_path: Path) -> None:
    kept = {name: text for name, text in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", FIRST_STEP]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{_fused.library() is not None}\n"
    assert os.listdir(tmp_path) == []
