"""Puts the sources of the site together: the pages of `docs`, and the pages that are made from the code."""

import re
import shutil
from pathlib import Path

from website import members, reference
from website.links import DOCS, MOVED, ROOT, for_the_site

COPIED = ("*.md", "*.png")
TITLE = re.compile(r"^# (.*)$", flags=re.MULTILINE)
LINKED = re.compile(r"\]\((?!https?:|#)([^)#\s]+\.(?:md|ipynb))\)")


def copy_pages(folder: Path) -> None:
    """Copies pages and pictures of `docs`, and the pages that stand outside of it."""
    for pattern in COPIED:
        for path in sorted(DOCS.rglob(pattern)):
            page = path.relative_to(DOCS).as_posix()
            target = folder / page
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".md":
                target.write_text(for_the_site(path.read_text(), f"docs/{page}", page))
            else:
                shutil.copyfile(path, target)
    for source, page in MOVED.items():
        if (ROOT / source).is_file():
            # README is no page of the side bar: the start page takes its place.
            head = "---\norphan: true\n---\n\n" if source == "README.md" else ""
            (folder / page).write_text(head + for_the_site((ROOT / source).read_text(), source, page))


def findings_page() -> str:
    """Returns the index of `findings/`: the comment at the top of each script, and the script."""
    parts = [
        "# Findings about other libraries",
        "Each script shows a behaviour of a public library that surprised us. It installs pinned packages "
        "in a temporary folder, runs without this project, and ends with an error if the behaviour has "
        "changed. [Contributing](contributing.md) has the form.",
    ]
    for path in sorted((ROOT / "findings").glob("*.sh")):
        parts += [
            f"## {path.stem.replace('_', ' ')}",
            f"`sh findings/{path.name}`",
            f"```bash\n{path.read_text()}```",
        ]
    return "\n\n".join(parts) + "\n"


def copy_notebooks(folder: Path) -> list[str]:
    """Copies the executed notebooks, and returns their paths on the site."""
    paths = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
    (folder / "notebooks").mkdir(exist_ok=True)
    for path in paths:
        shutil.copyfile(path, folder / "notebooks" / path.name)
    return [f"notebooks/{path.name}" for path in paths]


def toctree(caption: str, pages: list[str]) -> str:
    """Returns a list of pages for the side bar."""
    lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]
    return "\n".join(lines)


def side_bar(index: str, made: dict[str, list[str]]) -> str:
    """Returns the side bar: the sections of `docs/index.md`, with the pages that each one links to.

    Args:
        index: the text of the page, with the links of the site.
        made: the pages that are made from the code, by the section to which they are added.

    A page that several sections link to stands in the first one.
    """
    sections = re.split(r"^## (.*)$", index, flags=re.MULTILINE)[1:]
    taken = {"index.md"}
    trees = []
    for caption, text in zip(sections[::2], sections[1::2], strict=True):
        pages = [
            page
            for page in dict.fromkeys(LINKED.findall(text) + made.pop(caption, []))
            if page not in taken
        ]
        taken.update(pages)
        trees.append(toctree(caption, pages))
    assert not made, f"docs/index.md has no section {sorted(made)}"
    return "\n".join(trees)


def assemble(folder: Path) -> None:
    """Writes all sources of the site into a folder, which is emptied first."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    copy_pages(folder)
    (folder / "findings.md").write_text(findings_page())
    made = {
        "Members": members.write(folder),
        "API reference": reference.write(folder),
        "Notebooks": copy_notebooks(folder),
    }
    index = folder / "index.md"
    made["Trainers"] = sorted(path.relative_to(folder).as_posix() for path in folder.glob("trainers/*.md"))
    index.write_text(index.read_text() + "\n" + side_bar(index.read_text(), made))
    shutil.copyfile(Path(__file__).with_name("conf.py"), folder / "conf.py")
