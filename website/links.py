"""Links of the pages, which can be read in the repository, as the site needs them."""

import os
import re
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

MOVED = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    ".github/SECURITY.md": "security.md",
    ".github/CODE_OF_CONDUCT.md": "code_of_conduct.md",
    "findings": "findings.md",
    "findings/": "findings.md",
    "examples/notebooks": "notebooks/index.md",
}
"""Files and folders outside of `docs` that have a page on the site, and the page."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)]*)?\)")


def repository_url() -> str | None:
    """Returns the address of the repository, if the environment names it.

    GitHub's workflows set `GITHUB_SERVER_URL` and `GITHUB_REPOSITORY`.
    """
    name = os.environ.get("GITHUB_REPOSITORY")
    return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}" if name else None


def relative(target: str, page: str) -> str:
    """Returns a path from the folder of a page to a target; both are relative to the site.

    Example:
        >>> relative("glossary.md", "trainers/kohya.md")
        '../glossary.md'
    """
    return os.path.relpath(target, PurePosixPath(page).parent).replace(os.sep, "/")


def for_the_site(text: str, source: str, page: str) -> str:
    """Returns the text of a page with links that work on the site.

    Args:
        text: the page, in Markdown.
        source: the path of the file that the text is from, relative to the repository.
        page: the path of the page on the site.

    Links between pages stay. Links to files outside of `docs` go to the page of the file, to the
    repository if its address is known, or become code.

    Example:
        >>> for_the_site("see [the demo](../examples/digits)", "docs/start.md", "start.md")
        'see the demo (`examples/digits`)'
    """
    url = repository_url()

    def replace(found: re.Match[str]) -> str:
        picture, words, target, fragment = found[1], found[2], found[3], found[4] or ""
        path = os.path.normpath(PurePosixPath(source).parent / target).replace(os.sep, "/")
        if path in MOVED:
            return f"{picture}[{words}]({relative(MOVED[path], page)}{fragment})"
        if path.startswith("docs/") and (picture or path.endswith(".md")):
            return f"{picture}[{words}]({relative(path.removeprefix('docs/'), page)}{fragment})"
        if url:
            return f"[{words}]({url}/blob/main/{path})"
        return f"`{path}`" if path.endswith(words.strip("`")) else f"{words} (`{path}`)"

    return LINK.sub(replace, text)
