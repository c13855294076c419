"""The code on the pages about checkpoints and metrics works as pasted, with the stated results."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import emo_optax
import emo_torch
from emo_torch._wrappers.metrics_test import NAMES

DOCS = Path(__file__).parent.parent / "docs"


def run(page: str, index: int, folder: Path, steps: int = 100) -> str:
    """Runs a piece of code of a page, as pasted except its number of steps, and returns its output."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    assert steps == 100 or "< 100:" in blocks[index]
    folder.mkdir(exist_ok=True)
    seed = "import torch\n\ntorch.manual_seed(0)\n" if index == 0 else ""
    (folder / "pasted.py").write_text(seed + blocks[index].replace("< 100:", f"< {steps}:"))
    command = [sys.executable, "-W", "error", "pasted.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("index", [0, 1], ids=["torch", "jax"])
def test_a_run_of_the_page_goes_on_from_its_checkpoint(index: int, tmp_path: Path) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    assert run("checkpoints.md", index, broken, steps=50) == "saved at step 40\n"
    for folder in (broken, whole):
        assert run("checkpoints.md", index, folder) == "saved at step 100\n"
    name = ("run.safetensors", "run_jax.safetensors")[index]
    assert (broken / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("index", [0, 1], ids=["torch", "jax"])
def test_the_metrics_of_the_page_are_those_that_it_lists(index: int, tmp_path: Path) -> None:
    names = sorted(f"emotion/{name}" for name in NAMES)
    assert run("metrics.md", index, tmp_path) == f"{names}\n"
    page = (DOCS / "metrics.md").read_text()
    assert all(f"`{name}`" in page for name in names)


def test_each_package_says_whose_checkpoint_the_other_ones_is(tmp_path: Path) -> None:
    emo_torch.save_checkpoint(tmp_path / "torch", {"x": 1})
    emo_optax.save_checkpoint(tmp_path / "jax", {"x": 1})
    with pytest.raises(emo_torch.CheckpointError, match=r"its format is emo_optax checkpoint.*to_arrays"):
        emo_torch.load_checkpoint(tmp_path / "jax")
    with pytest.raises(emo_optax.CheckpointError, match=r"its format is emo_torch checkpoint.*to_arrays"):
        emo_optax.load_checkpoint(tmp_path / "torch", {"x": 1})


def test_each_package_reads_the_others_arrays_and_finds_damage_in_them(tmp_path: Path) -> None:
    path, arrays = tmp_path / "arrays", {"x": np.arange(3.0), "flag": np.asarray(True)}
    for ours, theirs in ((emo_torch, emo_optax), (emo_optax, emo_torch)):
        ours.save_arrays(path, arrays)
        assert theirs.load_arrays(path).keys() == arrays.keys()
        path.write_bytes(path.read_bytes()[:-1] + b"\7")
        with pytest.raises(theirs.CheckpointError, match="does not have the contents"):
            theirs.load_arrays(path)


def test_both_packages_write_files_in_one_way() -> None:
    for name in ("save_arrays", "load_arrays", "CheckpointError", "ARRAYS_VERSION"):
        assert getattr(emo_torch, name) is getattr(emo_optax, name)


TABLES = {
    "behaviour_changes.md": 40,
    "integrations.md": 30,
    "integrations_jax.md": 50,
    "integrations_libraries.md": 25,
    "integrations_torch_distributed.md": 20,
    "integrations_torch_trainers.md": 30,
}
"""How many tests each table names at least."""


def test_no_table_is_left_out() -> None:
    assert {path.name for path in DOCS.glob("integrations*.md")} == set(TABLES) - {"behaviour_changes.md"}


@pytest.mark.parametrize("page", TABLES)
def test_every_row_of_a_table_names_a_test_that_exists(page: str) -> None:
    text = (DOCS / page).read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not set(line) <= set("|- ")]
    heads = ("before", "combination", "what", "thing")
    rows = [row for row in rows if row.split("|")[1].strip() not in heads]
    assert len(rows) > 20
    for row in rows:
        assert "::test_" in row, row
    named = re.findall(r"`([\w./]+)::(\w+)`", text)
    assert len(named) > TABLES[page]
    for file, test in named:
        found = re.search(rf"^def {test}\(", (DOCS.parent / file).read_text(), flags=re.MULTILINE)
        assert found, f"{file}::{test}"


@pytest.mark.parametrize("page", sorted(str(path.relative_to(DOCS)) for path in DOCS.glob("**/*.md")))
def test_what_a_page_links_to_exists(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", (DOCS / page).read_text()):
        assert (DOCS / page).parent.joinpath(link).exists(), link
