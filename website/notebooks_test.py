"""The notebooks are executed from top to bottom, without an error, and use public names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import emo_optax
import emo_torch
from website.notebooks import FOLDER

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks_of_each_kind() -> None:
    assert {"choose_nothing", "digits", "early_stop", "lora"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_as_it_stands(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_names_that_exist(path: Path) -> None:
    code = "".join("".join(cell["source"]) for cell in code_cells(path))
    for package, name in re.findall(r"\b(emo_torch|emo_optax)\.(\w+)", code):
        assert hasattr({"emo_torch": emo_torch, "emo_optax": emo_optax}[package], name), name
