"""The finished cells in one JSON file, so that a run that was stopped goes on where it was."""

import json
import os
import time
from pathlib import Path
from typing import Any

VERSION = 1
SAVE_EVERY = 5.0
"""Seconds between two writings of the file, which grows to more than a megabyte."""

Result = dict[str, Any]


class Store:
    """Results by the key of their cell.

    Args:
        path: the file; read if it is there, else made with the first saving.

    Raises:
        ValueError: if the file is not one of this store, before anything is run or overwritten.

    Example:
        >>> import pathlib, tempfile
        >>> from examples.yardstick.store import Store
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "results.json"
        >>> store = Store(path)
        >>> store.put("a cell", {"loss": 0.5})
        >>> store.save()
        >>> Store(path).get("a cell")
        {'loss': 0.5}
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: dict[str, Result] = {}
        self._saved = time.monotonic()
        if path.exists():
            self._cells = _read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._cells

    def get(self, key: str) -> Result:
        """Returns the result of a cell; a `KeyError` if it is not finished."""
        return self._cells[key]

    def put(self, key: str, result: Result) -> None:
        """Keeps the result of a cell, and writes the file now and then."""
        self._cells[key] = result
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Writes the file: whole or not at all, and the same for the same results."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"{json.dumps(key)}: {json.dumps(result, separators=(',', ':'), allow_nan=False)}"
            for key, result in sorted(self._cells.items())
        ]
        text = '{"version": %d, "cells": {\n%s\n}}\n' % (VERSION, ",\n".join(lines))  # noqa: UP031
        beside = self._path.with_suffix(".partial")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, self._path)
        self._saved = time.monotonic()


def _read(path: Path) -> dict[str, Result]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = content["cells"] if content["version"] == VERSION else None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        cells = None
    if not isinstance(cells, dict):
        raise ValueError(f"{path} does not hold results of this yardstick: remove it, or pass --fresh")
    return cells
