"""Loads the compiled code that came with the package, or says once why steps go without it."""

import ctypes
import hashlib
import json
import logging
import os
from pathlib import Path

from emo_torch.build import LEVELS, LIBRARY, RECORD, SOURCES, source_digest

logger = logging.getLogger("emo_torch")

REMEDY = (
    "To have it, install a C compiler and run `python -m emo_torch.build`, or install the package anew; "
    "EMO_TORCH_COMPILE=0 in the environment steps without it and without this line"
)


def load_library(folder: Path = SOURCES) -> ctypes.CDLL | None:
    """Loads the library; nothing is compiled here.

    The environment's `EMO_TORCH_COMPILE=0` does without it, and `EMO_TORCH_ISA` names the instructions
    that it steps with: "plain", "avx2" or "avx512"; otherwise they are the best that the processor has.

    Args:
        folder: where the library and its record lie.

    Returns:
        The library, or `None` where there is none, or it is not what was built; a line at the level
        WARNING says why.
    """
    if os.environ.get("EMO_TORCH_COMPILE", "1") == "0":
        logger.debug("EMO_TORCH_COMPILE=0: stepping without compiled code")
        return None
    try:
        library = _load(folder)
    except Exception as error:  # Whatever it is: a step without compiled code is a step.
        logger.warning("Stepping without compiled code, which takes longer: %s. %s.", error, REMEDY)
        return None
    _choose_level(library)
    return library


def _load(folder: Path) -> ctypes.CDLL:
    path, record = folder / LIBRARY, folder / RECORD
    if not path.exists() or not record.exists():
        raise ValueError("it was not built when the package was installed, or this is a checkout")
    told = json.loads(record.read_text())
    data = path.read_bytes()
    # A library that was cut off would end the process.
    if (len(data), hashlib.sha256(data).hexdigest()) != (told["size"], told["sha256"]):
        raise ValueError(f"{path} is not the file that was built: it was cut off or altered")
    sources = source_digest(folder)
    if sources and sources != told["sources"]:
        raise ValueError(f"{path} was built from other sources than those beside it")
    library = ctypes.CDLL(str(path))
    library.emo_use_level.argtypes, library.emo_use_level.restype = (ctypes.c_int64,), ctypes.c_int64
    return library


def _choose_level(library: ctypes.CDLL) -> None:
    """Sets the instructions that the library steps with."""
    best, wanted = library.emo_use_level(-1), os.environ.get("EMO_TORCH_ISA")
    known = list(LEVELS)
    if wanted and (wanted not in known or library.emo_use_level(known.index(wanted)) < 0):
        logger.warning(
            "EMO_TORCH_ISA=%s: the library or this processor lacks that. Stepping with %s; known are %s.",
            wanted,
            known[best],
            ", ".join(known),
        )
