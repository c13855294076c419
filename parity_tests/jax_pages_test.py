"""What the pages on JAX show stands in files that are tested."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/jax.md").read_text()
BLOCKS = re.findall(r"From \[([\w/.]+)\]\(\.\./\1\):\n\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
TESTED = (ROOT / "examples/integrations_test.py").read_text()


def without_empty_lines(code: str) -> str:
    # Where a function stands alone, style wants more of them than inside of another.
    return "".join(line + "\n" for line in code.splitlines() if line.strip())


def test_every_piece_of_code_says_where_it_is_from() -> None:
    assert len(BLOCKS) == PAGE.count("```python") > 10


@pytest.mark.parametrize(("file", "code"), BLOCKS)
def test_a_piece_of_code_stands_in_a_tested_file(file: str, code: str) -> None:
    source = without_empty_lines((ROOT / file).read_text())
    code = without_empty_lines(code)
    assert any(textwrap.indent(code, " " * width) in source for width in (0, 4, 8)), code
    assert f'"{Path(file).stem}"' in TESTED
