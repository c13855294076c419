"""The compiled code is built with compilers of all kinds; where none works, the reason is said."""

import hashlib
import json
import os
import platform
import shutil
import sys
from pathlib import Path

import pytest

from emo_torch import build

needs_compiler = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("cc") is None, reason="NO C COMPILER WAS FOUND"
)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds the plain level alone, and without optimizing."""
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))
    monkeypatch.setenv("EMO_TORCH_ISA", "plain")
    monkeypatch.delenv("EMO_TORCH_COMPILE", raising=False)
    monkeypatch.delenv("CC", raising=False)


def compiler(folder: Path, script: str) -> str:
    """Makes a compiler that is a shell script."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return str(path)


@needs_compiler
def test_a_library_and_its_record_are_built(tmp_path: Path) -> None:
    built = build.build(tmp_path / "new")
    assert sorted(os.listdir(tmp_path / "new")) == sorted([build.LIBRARY, build.RECORD])
    data, told = built.library.read_bytes(), json.loads(built.record.read_text())
    assert told["size"] == len(data)
    assert told["sha256"] == hashlib.sha256(data).hexdigest()
    assert told["sources"] == build.source_digest()
    assert told["levels"] == ["plain"] == list(built.levels)


@needs_compiler
def test_a_library_that_fits_its_sources_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not build.is_built(tmp_path)
    built = build.build(tmp_path)
    assert build.is_built(tmp_path)
    with monkeypatch.context() as other_flags:
        other_flags.setattr(build, "FLAGS", ("-O1", *build.FLAGS[1:]))
        assert not build.is_built(tmp_path)
    with monkeypatch.context() as more_levels:
        more_levels.setattr(build, "_wanted_levels", lambda: ["plain", "avx2"])
        assert not build.is_built(tmp_path)
    built.library.write_bytes(built.library.read_bytes()[:-1])
    assert not build.is_built(tmp_path)
    built.record.write_text("[]")
    assert not build.is_built(tmp_path)


@needs_compiler
def test_a_compiler_without_openmp_builds_for_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'for flag in "$@"; do [ "$flag" = -fopenmp ] && exit 1; done; exec cc "$@"'
    monkeypatch.setenv("CC", compiler(tmp_path, script))
    built = build.build(tmp_path / "new")
    assert not built.openmp
    assert b"omp_get_max_threads" not in built.library.read_bytes()


@needs_compiler
@pytest.mark.skipif(platform.machine().lower() not in build._X86, reason="NO x86 PROCESSOR")
def test_a_compiler_that_knows_fewer_instructions_builds_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EMO_TORCH_ISA")
    script = 'for flag in "$@"; do [ "$flag" = -mavx512f ] && exit 1; done; exec cc "$@"'
    monkeypatch.setenv("CC", compiler(tmp_path, script))
    assert build.build(tmp_path / "new").levels == ("plain", "avx2")


@needs_compiler
def test_a_compiler_with_arguments_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -pipe")
    assert build.find_compiler() == ["cc", "-pipe"]


@needs_compiler
@pytest.mark.parametrize("given", ["cc 'not closed", "/no/such/compiler", ""])
def test_another_compiler_is_taken_and_named_where_cc_cannot_be_run(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", given)
    taken = build.find_compiler()
    assert taken[0] in ("cc", "gcc", "clang")
    made = build.Built(tmp_path / build.LIBRARY, tmp_path / build.RECORD, ("plain",), openmp=True)
    monkeypatch.setattr(build, "build", lambda _: made)
    assert build.main() == 0
    assert f" by {taken[0]} for plain, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("printf 'b\\351ton \\377' >&2; exit 1", "failed: b\ufffdton \ufffd"),
        ("exit 3", "failed: exit status 3"),
        ("kill -9 $$", "failed: exit status -9"),
        ("exit 0", "No such file"),
    ],
    ids=["stderr is no UTF-8", "fails in silence", "is killed", "makes nothing"],
)
@pytest.mark.skipif(sys.platform == "win32", reason="NO SHELL")
def test_a_compiler_that_fails_says_why_and_leaves_all_as_it_was(
    script: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, script))
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / build.LIBRARY).write_bytes(b"old")
    with pytest.raises(build.BuildError, match=message):
        build.build(folder)
    assert os.listdir(folder) == [build.LIBRARY]
    assert (folder / build.LIBRARY).read_bytes() == b"old"
    monkeypatch.setattr(build, "SOURCES", folder)
    assert build.main() == 1
    assert capsys.readouterr().err.startswith("emo_torch steps without compiled code: ")


def test_without_a_compiler_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="no C compiler was found"):
        build.build(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_build_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMO_TORCH_COMPILE", "0")
    with pytest.raises(build.BuildError, match="EMO_TORCH_COMPILE=0"):
        build.build(tmp_path)
    assert os.listdir(tmp_path) == []


@needs_compiler
def test_a_folder_that_cannot_be_written_to_is_an_error_of_the_build(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(build.BuildError, match="file"):
        build.build(tmp_path / "file")
