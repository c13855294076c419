"""The number of the package's functions that one step calls: with small tensors, calls take most time."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._kernels import library

FOLDER = str(Path(emo_torch.__file__).parent)

MOST = 25
"""The most calls of a step whose tensors are known."""


def _calls(optimizer: emo_torch.LossOptimizer) -> list[str]:
    """Returns the names of the package's functions that a step calls; comprehensions do not count."""
    calls: list[str] = []

    def listen(frame: FrameType, event: str, argument: Any) -> None:
        del argument
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(FOLDER) and not code.co_name.startswith("<"):
            calls.append(f"{Path(code.co_filename).stem}.{code.co_name}")

    before = sys.getprofile()
    sys.setprofile(listen)
    try:
        optimizer.step(loss=1.0)
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.skipif(library() is None, reason="without a C compiler no tensors are known")
@pytest.mark.parametrize("name", ["emo_sens", "emo_airy", "emo_clan"])
def test_a_step_of_known_tensors_makes_few_calls(name: str) -> None:
    params = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))]
    optimizer = emo_torch.create_optimizer(name, params)
    for param in params:
        param.grad = torch.ones_like(param)
    first = _calls(optimizer)
    for _ in range(5):
        optimizer.step(loss=1.0)
    known = _calls(optimizer)
    assert len(known) <= MOST, known
    assert len(known) < len(first)  # The profiler counts calls of the steps.
