"""Loads the compiled code of the package, or logs once why steps run without compiled code."""

import ctypes
import hashlib
import json
import logging
import os
from pathlib import Path

from emo_torch.build import LEVELS, LIBRARY, RECORD, SOURCES, source_digest

logger = logging.getLogger("emo_torch")

REMEDY = (
    "To get compiled code, install a C compiler and run `python -m emo_torch.build`, or install the "
    "package again; EMO_TORCH_COMPILE=0 in the environment steps without compiled code and this line"
)


def load_library(folder: Path = SOURCES) -> ctypes.CDLL | None:
    """Loads the library; nothing is compiled here.

    The environment variable `EMO_TORCH_COMPILE=0` switches the library off. `EMO_TORCH_ISA` names the
    instructions that the library steps with: "plain", "avx2" or "avx512". Without `EMO_TORCH_ISA` the
    library uses the best instructions of the processor.

    Args:
        folder: the folder of the library and of its record.

    Returns:
        The library. `None` if there is no library, or if the file is not the library that was built; a
        line at the level WARNING gives the reason.
    """
    if os.environ.get("EMO_TORCH_COMPILE", "1") == "0":
        logger.debug("EMO_TORCH_COMPILE=0: stepping without compiled code")
        return None
    try:
        library = _load(folder)
    except Exception as error:  # After any error, steps run without compiled code.
        logger.warning("Stepping without compiled code, which takes longer: %s. %s.", error, REMEDY)
        return None
    _choose_level(library)
    return library


def _load(folder: Path) -> ctypes.CDLL:
    path, record = folder / LIBRARY, folder / RECORD
    if not path.exists() or not record.exists():
        raise ValueError("the library was not built when the package was installed, or this is a checkout")
    built = json.loads(record.read_text())
    data = path.read_bytes()
    # To load a library file that was cut off would end the process.
    if (len(data), hashlib.sha256(data).hexdigest()) != (built["size"], built["sha256"]):
        raise ValueError(f"{path} is not the file that was built: it was cut off or altered")
    sources = source_digest(folder)
    if sources and sources != built["sources"]:
        raise ValueError(f"{path} was built from other sources than the sources in its folder")
    library = ctypes.CDLL(str(path))
    library.emo_use_level.argtypes, library.emo_use_level.restype = (ctypes.c_int64,), ctypes.c_int64
    return library


def _choose_level(library: ctypes.CDLL) -> None:
    """Sets the instructions that the library steps with."""
    best, wanted = library.emo_use_level(-1), os.environ.get("EMO_TORCH_ISA")
    known = list(LEVELS)
    if wanted and (wanted not in known or library.emo_use_level(known.index(wanted)) < 0):
        logger.warning(
            "EMO_TORCH_ISA=%s: the library or this processor lacks these instructions. Stepping with %s; "
            "known are %s.",
            wanted,
            known[best],
            ", ".join(known),
        )
