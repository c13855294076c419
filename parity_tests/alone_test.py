"""Hidden packages cannot be imported: by no process, no child process, and no test."""

import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests.alone import check, hidden

CHILD = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"


def _run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("code", ["import wave", "from wave import open", "import xml.dom"])
def test_what_is_hidden_is_found_by_no_process_and_by_no_child_of_it(code: str, tmp_path: Path) -> None:
    environment = hidden(["wave", "xml"], tmp_path)
    for arguments in (("-c", code), ("-c", CHILD, code)):
        done = _run(environment, *arguments)
        assert done.returncode != 0
        assert "ModuleNotFoundError: No module named" in done.stderr
    assert _run(environment, "-c", "import numpy, json").returncode == 0
    check(["wave", "xml"], environment)


def test_a_test_that_imports_what_is_hidden_fails_in_itself_and_in_a_process_that_it_starts(
    tmp_path: Path,
) -> None:
    (tmp_path / "away").mkdir()
    environment = hidden(["wave"], tmp_path / "away")
    (tmp_path / "some_test.py").write_text(
        "import subprocess, sys\n\n"
        "def test_itself():\n    import wave\n\n"
        "def test_a_process():\n    subprocess.run([sys.executable, '-c', 'import wave'], check=True)\n\n"
        "def test_neither():\n    import json\n"
    )
    options = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "1", "-c", "/dev/null", "--rootdir")
    done = _run(environment, *options, str(tmp_path), str(tmp_path / "some_test.py"))
    assert "2 failed, 1 passed" in done.stdout, done.stdout


def test_what_is_there_is_said_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="numpy can be imported"):
        check(["numpy"], hidden(["wave"], tmp_path))
