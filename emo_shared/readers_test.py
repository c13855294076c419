"""A reader beside writers of the same file sees one whole file, whichever it is."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emo_shared import files
from emo_shared.arrays import load_arrays, save_arrays
from emo_shared.errors import CheckpointError

WRITER = """
import sys
import numpy as np
from emo_shared.arrays import save_arrays
path, own = sys.argv[1], int(sys.argv[2])
for number in range(own, 10**9, 100):
    # Files of several sizes: the header of one does not fit the data of another.
    save_arrays(path, {f"array {own}": np.full(1_000 * (1 + number % 7), float(number))})
    if number == own:
        print("begun", flush=True)
"""


@pytest.mark.parametrize("writers", [4, 8])
def test_a_reader_beside_several_writers_never_sees_a_mixture(writers: int, tmp_path: Path) -> None:
    path, seen = tmp_path / "run", set()
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(own)], stdout=subprocess.PIPE, env=environment
        )
        for own in range(writers)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
        for _ in range(300):
            ((name, array),) = load_arrays(path).items()
            assert name == f"array {int(array[0]) % 100}"
            assert len(set(array)) == 1
            assert len(array) == 1_000 * (1 + int(array[0]) % 7)
            seen.add(name)
        assert all(process.poll() is None for process in running)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert len(seen) > 1


def test_a_file_is_opened_once(tmp_path: Path) -> None:
    path, opened = tmp_path / "run", []
    save_arrays(path, {"one": np.ones(3), "two": np.ones(2)})
    recording = [True]
    sys.addaudithook(
        lambda event, told: (
            opened.append(told[0]) if recording and event == "open" and str(told[0]) == str(path) else None
        )
    )
    load_arrays(path)
    recording.clear()
    assert len(opened) == 1


def test_a_file_that_grows_shorter_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    save_arrays(path, {"long": np.ones(10_000)})
    own = files._read_header

    def then_cut(file: Any) -> Any:
        told = own(file)
        os.truncate(path, 40_000)
        return told

    monkeypatch.setattr(files, "_read_header", then_cut)
    with pytest.raises(CheckpointError, match="'long' was cut off while it was read"):
        load_arrays(path)
