"""Runs every block of Python code of README and `docs`: `python -m website.blocks`.

A page names the environment of its blocks in a line `Runs with:` and an install command. The line holds for
all blocks below it, up to the next such line. The blocks of a page that share a line share their names, as
if pasted one after the other into one session. Each page has a folder of its own. Packages that the install
command does not bring cannot be imported, even if they are installed.
"""

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
MARK = re.compile(
    r'^Runs with: `pip install "emo-optimizers\[([\w,]+)\]"((?: [\w-]+)*)`', flags=re.MULTILINE
)
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
ABSENT = {
    "torch": ("jax", "optax", "flax", "matplotlib", "rich", "safetensors", "sklearn", "transformers"),
    "jax": ("torch", "flax", "matplotlib", "rich", "safetensors", "sklearn", "transformers"),
    "jax,torch": ("flax", "matplotlib", "rich", "safetensors", "sklearn", "transformers"),
    "integrations": (),
    "examples": (),
}
"""For each extra that a page may name, modules that it lacks unless the page names them, too."""
BRINGS = {"flax": ("rich",)}
"""The packages that other packages of a page install themselves."""
ELSEWHERE = {
    "docs/add_a_member.md": "parity_tests/add_a_member_test.py writes its blocks into a copy",
    "docs/from_published.md": "parity_tests/published_errors_test.py gives it published files to read",
    "docs/trainers/distributed.md": "emo_torch/_distributed/page_test.py runs it in several processes",
}
"""Pages whose blocks are run by a test of their own, and by which."""
TRAINERS = "docs/trainers/"
"""Pages about one library each; one without a `Runs with:` line is run by a test with that library."""


class Session(NamedTuple):
    """Blocks that are pasted into one session.

    Attributes:
        page: the path of the page, relative to the repository.
        environment: the extras that the page names and other packages, such as "torch" or "jax flax".
        blocks: the line of each block in the page, and its code.
    """

    page: str
    environment: str
    blocks: list[tuple[int, str]]


class PageError(ValueError):
    """A page has code, but does not name the packages with which it runs."""


def pages() -> list[str]:
    """Returns README and all pages of `docs` that have Python code."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}
    return [
        page
        for page, text in texts.items()
        if BLOCK.search(text)
        and page not in ELSEWHERE
        and (MARK.search(text) or not page.startswith(TRAINERS))
    ]


def sessions(page: str, text: str | None = None) -> list[Session]:
    r"""Returns the sessions of a page.

    Args:
        page: the path of the page, relative to the repository.
        text: the page; read from its file by default.

    Raises:
        PageError: if a block stands above the first `Runs with:` line, or the line names unknown extras.

    Example:
        >>> text = 'Runs with: `pip install "emo-optimizers[torch]"`\n\n```python\nprint(1)\n```\n'
        >>> sessions("docs/start.md", text)
        [Session(page='docs/start.md', environment='torch', blocks=[(4, 'print(1)\n')])]
    """
    text = (ROOT / page).read_text() if text is None else text
    marks = [(found.start(), found[1] + found[2]) for found in MARK.finditer(text)]
    made: dict[int, Session] = {}
    for found in BLOCK.finditer(text):
        above = [mark for mark in marks if mark[0] < found.start()]
        line = text.count("\n", 0, found.start(1)) + 1
        if not above:
            raise PageError(f"{page}:{line}: add a line 'Runs with: `pip install ...`' above this block")
        start, environment = above[-1]
        if environment.split()[0] not in ABSENT:
            raise PageError(f"{page}:{line}: [{environment}] is none of {', '.join(ABSENT)}")
        made.setdefault(start, Session(page, environment, [])).blocks.append((line, found[1]))
    return list(made.values())


@contextlib.contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_session(session: Session) -> tuple[str | None, str]:
    """Runs the blocks of a session in a new folder.

    Returns:
        The error, or `None`, and all that the blocks printed.
    """
    printed = io.StringIO()
    names: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, _in_folder(folder), contextlib.redirect_stdout(printed):
        for line, code in session.blocks:
            try:
                # The line numbers of an error are the line numbers of the page.
                exec(compile("\n" * (line - 1) + code, session.page, "exec"), names)
            except Exception:
                return f"{session.page}:{line}\n{traceback.format_exc(limit=-3)}", printed.getvalue()
    return None, printed.getvalue()


def run_environment(environment: str, wanted: list[str], *, show: bool) -> int:
    """Runs all sessions of an environment in this process; returns how many failed."""
    extras, *others = environment.split()
    brought = {*others, *(each for other in others for each in BRINGS.get(other, ()))}
    absent = [name for name in ABSENT[extras] if name not in brought]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: cannot be imported.
    # Libraries of other people may warn.
    warnings.simplefilter("error" if absent else "ignore")
    failed = 0
    for session in [each for page in wanted for each in sessions(page)]:
        if session.environment != environment:
            continue
        error, printed = run_session(session)
        failed += error is not None
        print(f"{'FAILED' if error else 'ran'} {len(session.blocks)} blocks of {session.page}", flush=True)
        print(printed if show else "", error or "", sep="", end="", flush=True)
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Runs the blocks, one process for each environment.

    Returns:
        0, or 1 where a block failed.
    """
    parser = argparse.ArgumentParser(prog="python -m website.blocks", description=__doc__)
    parser.add_argument("pages", nargs="*", help="pages such as docs/start.md; all by default")
    parser.add_argument("--environment", help="run only blocks of this environment, in this process")
    parser.add_argument("--show", action="store_true", help="print the output of the blocks")
    given = parser.parse_args(arguments)
    wanted = given.pages or pages()
    if given.environment:
        return int(run_environment(given.environment, wanted, show=given.show) > 0)
    environments = {session.environment for page in wanted for session in sessions(page)}
    status = 0
    for environment in sorted(environments):
        print(f"environment {environment}", flush=True)
        command = [
            sys.executable,
            "-m",
            "website.blocks",
            "--environment",
            environment,
            *["--show"] * given.show,
            *wanted,
        ]
        status |= subprocess.run(command, check=False).returncode
    print("all blocks ran" if status == 0 else "some blocks failed, see above")
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
