import sys

import numpy as np
import pytest

from benchmarks.step_time.memory import peak_growth

MEGABYTE = 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
@pytest.mark.parametrize("count", [1, 256])
def test_what_is_taken_and_given_back_is_seen(count: int) -> None:
    def take() -> None:
        [np.ones(8 * MEGABYTE // count, np.uint8) for _ in range(count)].clear()

    for _ in range(2):  # The second time the allocator may have kept the memory that the first one freed.
        grown = peak_growth(take)
        assert grown is not None
        assert 7.5 * MEGABYTE < grown < 10 * MEGABYTE
