"""Runs the notebooks of `examples/notebooks` and keeps their outputs: `python -m website.notebooks`."""

import argparse
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "examples/notebooks"


def main(arguments: list[str] | None = None) -> int:
    """Runs the notebooks that are asked for; a cell that fails ends the command with its error."""
    parser = argparse.ArgumentParser(prog="python -m website.notebooks", description=__doc__)
    parser.add_argument("names", nargs="*", help="names such as digits; all by default")
    given = parser.parse_args(arguments)
    known = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
    unknown = set(given.names) - set(known)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError:
        parser.exit(
            2, "nbclient is missing: pip install 'emo-optimizers[docs]', from a clone -e '.[docs]'\n"
        )
    # The cells import this copy of the packages, and draw into the notebook.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(FOLDER.parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    )
    for name in given.names or known:
        print(f"running {name}", flush=True)
        notebook = nbformat.read(known[name], as_version=4)
        # Times of day would change at every run.
        NotebookClient(notebook, timeout=1200, record_timing=False).execute()
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, known[name])
    print(f"the notebooks: {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
