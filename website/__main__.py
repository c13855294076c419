"""Builds the documentation site: `python -m website`, or `make docs`."""

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path

CSS = """/* A table that is wider than the page scrolls alone; pictures stand on white in the dark theme. */
article table.docutils td:last-child { min-width: 10em; }
article table.docutils { display: block; overflow-x: auto; max-width: 100%; }
article img { max-width: 100%; background: white; border-radius: 4px; }
div.math { overflow-x: auto; overflow-y: hidden; }
"""

MATHJAX = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions")
"""The parts of MathJax that a page needs, so that it can be read without a network."""


def copy_mathjax(folder: Path) -> None:
    """Copies MathJax from the package that brings it."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("sphinx-mathjax-offline is missing: pip install 'emo-optimizers[docs]'")
    source = Path(spec.origin).parent / "static/mathjax"
    for name in MATHJAX:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / name, folder / name)


def main(arguments: list[str] | None = None) -> int:
    """Builds the site, and says where it lies.

    Returns:
        0, or Sphinx's status where a warning or an error came.
    """
    parser = argparse.ArgumentParser(prog="python -m website", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("build/site"), help="folder of sources and pages"
    )
    given = parser.parse_args(arguments)
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        parser.exit(2, "Sphinx is missing: pip install 'emo-optimizers[docs]', from a clone -e '.[docs]'\n")
    from website.assemble import assemble

    source, pages = given.output / "source", given.output / "html"
    print("1/2 collecting pages, members and names", flush=True)
    assemble(source)
    (source / "_static").mkdir(exist_ok=True)
    (source / "_static/site.css").write_text(CSS)
    copy_mathjax(source / "_static/mathjax")
    print("2/2 building with Sphinx", flush=True)
    status = int(build_main(["-b", "html", "-W", "--keep-going", "-q", "-E", str(source), str(pages)]))
    print(f"the site: {pages / 'index.html'}" if status == 0 else "the site has warnings, see above")
    return status


if __name__ == "__main__":
    sys.exit(main())
