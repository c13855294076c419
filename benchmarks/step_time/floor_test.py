import numpy as np
import pytest

from benchmarks.step_time.floor import Floor, touch_function
from benchmarks.step_time.problems import fill

SHAPES = ((5, 7), (1,), (0,), (1023,), (3, 2, 11))

needs_compiler = pytest.mark.skipif(touch_function() is None, reason="there is no C compiler")


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("written", [1, 2, 3, 4])
def test_every_element_is_touched_once(written: int, threads: int) -> None:
    grads = fill(SHAPES, 1.0, seed=0)
    streams = [fill(SHAPES, 1.0, seed=1 + stream) for stream in range(written)]
    before = [[array.copy() for array in stream] for stream in streams]
    floor = Floor(grads, streams, threads)
    floor.touch(0.5)
    for stream, old in zip(streams, before, strict=True):
        for array, start, grad in zip(stream, old, grads, strict=True):
            np.testing.assert_allclose(array, start + np.float32(0.5) * grad, rtol=1e-6, atol=1e-6)
            assert not np.any(array == start)


@needs_compiler
@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_pass_that_reads_changes_nothing(before: int) -> None:
    grads = fill(SHAPES, 1.0, seed=0)
    plain, read = ([fill(SHAPES, 1.0, seed=1 + stream) for stream in range(2)] for _ in range(2))
    Floor(grads, plain, 2).touch(0.5)
    Floor(grads, read, 2, before).touch(0.5)
    for ours, theirs in zip(read, plain, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


@needs_compiler
def test_by_default_nothing_moves() -> None:
    grads = fill(SHAPES, 1.0, seed=0)
    stream = fill(SHAPES, 1.0, seed=1)
    before = [array.copy() for array in stream]
    Floor(grads, [stream], 2).touch()
    for array, start in zip(stream, before, strict=True):
        np.testing.assert_array_equal(array, start)
