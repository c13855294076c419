"""The tables of `cuda.py` that say which tensor and which elements each program of a kernel works on."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emo_shared import eight_bit

Numbers = NDArray[np.int64]

BLOCK, HEIGHT, WIDTH = 1024, 128, 64
"""The number of elements of one program, and the height and width of the tile of a matrix it reads."""


def numbers(of: Any) -> Numbers:
    """Returns whole numbers as an array."""
    return np.fromiter(of, np.int64)


def rows_and_columns(param: Tensor) -> tuple[int, int]:
    """Returns the rows and columns of a parameter as a matrix; a vector has one column."""
    return (param.shape[0], param.shape[1:].numel()) if param.ndim >= 2 else (param.numel(), 1)


def block_of(dtype: torch.dtype) -> int:
    """Returns the number of elements of one program, for moments of a dtype; uint8 is for codes."""
    return eight_bit.BLOCK if dtype == torch.uint8 else BLOCK


def layout_of(heights: Numbers, columns: Numbers, block: int, *, is_matrix: bool) -> dict[str, Numbers]:
    """Returns the tables of the tensors and elements that each program works on, by name."""
    blocks = -(-heights * columns // block)
    layout = {"sizes": heights * columns, "heights": heights, "columns": columns, "blocks": blocks}
    layout["never"] = np.zeros(2, np.int64)
    layout["tensor_of"], layout["start_of"] = _tiles(blocks, block)
    layout["first_blocks"] = _starts(blocks)
    if is_matrix:
        high, wide = -(-heights // HEIGHT), -(-columns // WIDTH)
        layout["tensor_of_rows"], layout["row_of"] = _tiles(high, HEIGHT)
        layout["tensor_of_columns"], layout["column_of"] = _tiles(wide, WIDTH)
        layout["row_starts"], layout["column_starts"] = _starts(heights), _starts(columns)
        layout["part_starts"] = _starts(high * columns)
    return layout


def counts_of(heights: Numbers, columns: Numbers, block: int) -> dict[str, int]:
    """Returns the numbers of programs, and of elements of temporary memory, by name."""
    high = -(-heights // HEIGHT)
    counts = {"tensors": len(heights), "blocks": (-(-heights * columns // block)).sum()}
    counts |= {"rows": heights.sum(), "columns": columns.sum(), "parts": (high * columns).sum()}
    counts |= {"high": high.sum(), "wide": (-(-columns // WIDTH)).sum()}
    return {name: int(count) for name, count in counts.items()}


def _starts(sizes: Numbers) -> Numbers:
    return np.cumsum(sizes) - sizes


def _tiles(counts: Numbers, size: int) -> tuple[Numbers, Numbers]:
    """Returns for each tile its tensor, and the first element (or row, or column) of the tile."""
    tensor_of = np.repeat(np.arange(len(counts)), counts)
    return tensor_of, (np.arange(len(tensor_of)) - _starts(counts)[tensor_of]) * size
