"""All code of `docs/trainers` is run by some test, and the names on the pages exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "trainers"
RECIPES_IN_JAX = "emo_optax/integrations/recipes_test.py"


def test_every_page_with_code_is_run() -> None:
    texts = {path.stem: path.read_text() for path in PAGES.glob("*.md")}
    with_code = {page for page, text in texts.items() if "```python" in text}
    # `website/blocks_test.py` runs the pages that name their packages.
    complete = {page for page, text in texts.items() if "\nRuns with: `pip install" in text}
    assert len(complete) >= 5
    tests = (*ROOT.glob("emo_torch/integrations/recipes*_test.py"), ROOT / RECIPES_IN_JAX)
    elsewhere = set(re.findall(r"run_page\(\s*\"(\w+)\"", "".join(path.read_text() for path in tests)))
    assert len(elsewhere) > 25
    assert elsewhere.isdisjoint(complete)
    assert with_code == {*complete, *elsewhere, "distributed"}  # That one has a test of its own.


def test_the_modules_and_options_that_pages_name_exist() -> None:
    text = "".join(path.read_text() for path in PAGES.glob("*.md"))
    modules = set(re.findall(r"(?:python|accelerate launch) -m (emo_torch[\w.]*)", text))
    assert modules == {"emo_torch.launch"}
    assert (ROOT / "emo_torch" / "launch" / "__main__.py").exists()
    assert set(re.findall(r"--optimizer_type (\S+)", text)) == {"emo_torch.EmoSens"}
