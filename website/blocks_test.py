"""Every block of Python code of README and `docs` runs, in the environment that its page names."""

import re
import subprocess
import sys

import pytest

from website import blocks

ALL = [session for page in blocks.pages() for session in blocks.sessions(page)]
SUCCESS = r"done: loss 0\.00\d+\n"
PRINTS = {
    ("README.md", "torch"): SUCCESS,
    ("README.md", "jax flax"): SUCCESS,
    ("docs/start.md", "jax flax"): r"loss \d+\.\d{4} after 100 losses, scalar -?[01]\.\d\d\n",
    ("docs/start.md", "torch"): r"tensor\(-[^\n]*\n",
    ("docs/moving_a_run.md", "jax,torch"): r"moved 3 losses\n",
    ("docs/from_adamw.md", "torch"): r"loss 0\.0\d+\n",
    ("docs/from_adamw.md", "jax"): r"loss 0\.0\d+\n",
}
"""The output of some pages, as a pattern of the whole output."""


@pytest.mark.parametrize("environment", sorted({session.environment for session in ALL}))
def test_the_blocks_run_as_pasted(environment: str) -> None:
    command = [sys.executable, "-m", "website.blocks", "--show", "--environment", environment]
    run = subprocess.run(command, cwd=blocks.ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    ran = dict(re.findall(r"^ran \d+ blocks of (\S+)\n(.*?)(?=^ran |\Z)", run.stdout, flags=re.M | re.S))
    assert ran.keys() == {session.page for session in ALL if session.environment == environment}
    for (page, needed), prints in PRINTS.items():
        if needed == environment:
            assert re.fullmatch(prints, ran[page]), ran[page]


def test_a_block_that_fails_is_reported_with_its_line_of_the_page() -> None:
    mark = 'Runs with: `pip install "emo-optimizers[torch]"`.\n\n'
    (session,) = blocks.sessions("a.md", mark + "```python\nprint(1)\nprint(nothing)\n```\n")
    error, printed = blocks.run_session(session)
    assert printed == "1\n"
    assert error is not None
    assert 'File "a.md", line 5' in error


def test_a_block_without_an_environment_is_an_error() -> None:
    with pytest.raises(blocks.PageError, match=r"a\.md:2: add a line 'Runs with:"):
        blocks.sessions("a.md", "```python\nprint(1)\n```\n")
    with pytest.raises(blocks.PageError, match="is none of torch"):
        blocks.sessions("a.md", 'Runs with: `pip install "emo-optimizers[tensor]"`\n\n```python\n1\n```\n')


@pytest.mark.parametrize("page", blocks.ELSEWHERE)
def test_what_another_test_runs_exists(page: str) -> None:
    assert (blocks.ROOT / page).exists()
    assert (blocks.ROOT / blocks.ELSEWHERE[page].split()[0]).exists()
