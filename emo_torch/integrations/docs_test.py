"""What `docs/trainers` shows works as pasted."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import emo_torch
from emo_torch._testing import batch, small_model

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "trainers"
RECIPES_IN_JAX = "emo_optax/integrations/recipes_test.py"


def yours() -> dict[str, Any]:
    """The names that the pages leave to their reader."""

    def loss_of(model: Any, given: Any) -> torch.Tensor:
        x, y = given
        loss: torch.Tensor = (model(x).float() - y).square().mean()
        return loss

    batches = [batch(step) for step in range(8)]
    return {"model": small_model(), "new_model": small_model, "batches": batches, "loss_of": loss_of}


def yours_in_transformers() -> dict[str, Any]:
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    from emo_torch.integrations.transformers_test import collate, sentences, small_gpt2

    del transformers
    return {"model": small_gpt2(), "dataset": sentences(), "collate": collate}


def yours_in_lightning() -> dict[str, Any]:
    pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
    from emo_torch.integrations.lightning_test import Module

    class WithOneOptimizer(Module):
        def configure_optimizers(self) -> Any:
            return emo_torch.EmoSens(self.parameters(), lr=1e-3)

    data: Any = DataLoader([batch(step) for step in range(4)], batch_size=None)  # type: ignore[arg-type]
    return {"Module": WithOneOptimizer, "train_data": data}


def yours_in_accelerate() -> dict[str, Any]:
    pytest.importorskip("accelerate", reason="Accelerate is not installed")
    return yours()


READERS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain_loop": yours,
    "grad_scaler": yours,
    "accelerate": yours_in_accelerate,
    "transformers": yours_in_transformers,
    "lightning": yours_in_lightning,
}
"""What each page with code to paste leaves to its reader."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (PAGES / f"{page}.md").read_text(), flags=re.DOTALL)


def test_every_page_with_code_is_run() -> None:
    with_code = {path.stem for path in PAGES.glob("*.md") if "```python" in path.read_text()}
    tests = (*ROOT.glob("emo_torch/integrations/recipes*_test.py"), ROOT / RECIPES_IN_JAX)
    elsewhere = set(re.findall(r"run_page\(\s*\"(\w+)\"", "".join(path.read_text() for path in tests)))
    assert len(elsewhere) > 25
    assert elsewhere.isdisjoint(READERS)
    assert with_code == {*READERS, *elsewhere, "distributed"}  # That one has a test of its own.


@pytest.mark.parametrize("page", READERS)
def test_the_code_works_as_pasted(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = READERS[page]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A trainer's own advice; what must not warn has a test of its own.
        for number, block in enumerate(blocks(page, "python")):
            exec(compile(block, f"{page}.md, block {number}", "exec"), names)


def test_the_modules_and_options_that_pages_name_exist() -> None:
    text = "".join(path.read_text() for path in PAGES.glob("*.md"))
    modules = set(re.findall(r"(?:python|accelerate launch) -m (emo_torch[\w.]*)", text))
    assert modules == {"emo_torch.launch"}
    assert (ROOT / "emo_torch" / "launch" / "__main__.py").exists()
    assert set(re.findall(r"--optimizer_type (\S+)", text)) == {"emo_torch.EmoSens"}
