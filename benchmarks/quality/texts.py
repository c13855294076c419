"""Texts to learn: the licence of this repository, and Python's help texts."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Data = tuple[Array, Array]

CONTEXT = 32


@functools.cache
def text() -> tuple[list[Data], int]:
    """Returns windows of two texts, and the number of characters.

    The first text is two thirds of the licence, the second text the last third in capitals. The windows of
    each, to learn from and to be tested on, are characters and the next ones, `[windows, 32]` each.
    """
    words = " ".join((Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8").split())
    kinds = sorted(set(words + words.upper()))
    third = len(words) // 3
    pieces = []
    for piece in (words[: 2 * third], words[2 * third :].upper()):
        numbers = np.asarray([kinds.index(character) for character in piece])
        cut = len(numbers) - third // 4
        for part, stride in ((numbers[:cut], 1), (numbers[cut:], CONTEXT)):
            begins = np.arange(0, len(part) - CONTEXT, stride)[:, None]
            windows = part[begins + np.arange(CONTEXT + 1)]
            pieces.append((windows[:, :-1], windows[:, 1:]))
    return pieces, len(kinds)


@functools.cache
def help_texts() -> tuple[tuple[Data, Data], int]:
    """Returns windows of Python's help texts, to learn from and to test, and the number of characters."""
    from pydoc_data.topics import topics

    words = " ".join(" ".join(topics[name] for name in sorted(topics)).split())
    known = sorted(set(words) & set(map(chr, range(32, 127))))
    places = {character: index for index, character in enumerate(known)}
    numbers = np.asarray([places[character] for character in words if character in places])
    cut = len(numbers) * 9 // 10
    windows = [_windows(part, stride) for part, stride in ((numbers[:cut], 7), (numbers[cut:], 300))]
    return (windows[0], windows[1]), len(known)


def _windows(numbers: Array, stride: int, length: int = 64) -> Data:
    begins = np.arange(0, len(numbers) - length, stride)[:, None]
    windows = numbers[begins + np.arange(length + 1)]
    return windows[:, :-1], windows[:, 1:]
