"""The memory of a state's tensors as NumPy arrays: for few numbers, calls of PyTorch take longer."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from typing import Any

import numpy as np
import torch
from torch import Tensor


class ArraysInPlace:
    """The memory of a state's tensors on the CPU, as NumPy arrays.

    On the CPU, NumPy's numbers are computed with the same roundings as tensors.

    Args:
        state: a named tuple of tensors on the CPU.
        dtype: the floating-point dtype of the numbers of the state.

    Attributes:
        places: the addresses of the tensors when the arrays were made.
        dtype: the dtype of the numbers at that time.
        real: the type of NumPy's numbers of this dtype.
        fields: the array of each tensor, in a named tuple of the same class as the state.
    """

    def __init__(self, state: Any, dtype: torch.dtype) -> None:
        # These arrays keep the memory alive, so that no new tensor can have one of these addresses.
        self.places, self.dtype = list(map(Tensor.data_ptr, state)), dtype
        self.real: Any = np.float64 if dtype == torch.float64 else np.float32
        self.fields: Any = type(state)._make(field.numpy() for field in state)

    def fit(self, state: Any, dtype: torch.dtype) -> bool:
        """Returns whether the state still has the tensors of these arrays, and its numbers the dtype."""
        return self.dtype == dtype and self.places == list(map(Tensor.data_ptr, state))
