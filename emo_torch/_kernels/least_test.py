"""One small element is found at every position, by every level of instructions."""

from collections.abc import Iterator

import pytest
import torch

from emo_torch import _kernels
from emo_torch._kernels.least import which_are_below
from emo_torch.build import LEVELS

LENGTHS = (1, 3, 4, 7, 64, 4095, 4 * 4096, 4 * 4096 + 1, 70_001)


@pytest.fixture(params=[*range(len(LEVELS))], ids=[*LEVELS])
def level(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiled code of one level."""
    found = _kernels.library()
    if found is None or found.handle.emo_use_level(request.param) != request.param:
        pytest.skip("this processor, or the library, lacks the level")
    yield
    found.handle.emo_use_level(-1)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_one_small_element_is_found_wherever_it_stands(length: int, dtype: torch.dtype) -> None:
    large = -torch.ones(length, dtype=dtype)
    assert which_are_below([large, large], 1.0) == [False, False]
    for place in {0, length // 4, length // 2, max(0, length - 2), length - 1}:
        for small in (0.999, -0.5, float("nan")):
            other = large.clone()
            other[place] = small
            assert which_are_below([large, other], 1.0) == [False, True]
