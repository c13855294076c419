"""Sums of large arrays in blocks are those of all elements at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_optax._pieces.sums import BLOCK, LARGE, mean_square_by_rows, sums_of


def _two(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    return a * b, jnp.square(a + 1.0)


def _arrays(size: int) -> list[Any]:
    random = np.random.default_rng(0)
    return [random.standard_normal((2, size // 2)).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize("size", [6, LARGE - 2, LARGE, LARGE + 2, LARGE + 3 * BLOCK // 2])
@pytest.mark.parametrize("is_jitted", [False, True])
def test_sums_are_those_of_float64(size: int, is_jitted: bool) -> None:
    a, b = _arrays(size)
    one, other = (jax.jit(sums_of, static_argnums=0) if is_jitted else sums_of)(_two, a, b)
    wide, second = a.astype(np.float64), b.astype(np.float64)
    assert float(one) == pytest.approx(float((wide * second).sum()), abs=1e-6 * size)
    assert float(other) == pytest.approx(float(((wide + 1.0) ** 2).sum()), rel=1e-6)


def _quotient(array: jax.Array, by_row: jax.Array, by_column: jax.Array) -> jax.Array:
    return array / (by_row * by_column + 0.5)


@pytest.mark.parametrize(
    "shape", [(3, 5), (700, 512), (701, 500), (300, 20, 50), (2, LARGE), (LARGE, 1), (40, BLOCK)], ids=str
)
@pytest.mark.parametrize("is_jitted", [False, True])
def test_a_mean_by_rows_is_that_of_float64(shape: tuple[int, ...], is_jitted: bool) -> None:
    random = np.random.default_rng(0)
    array = random.standard_normal(shape).astype(np.float32)
    by_row = random.random((shape[0], *(1 for _ in shape[1:]))).astype(np.float32)
    by_column = random.random((1, *shape[1:])).astype(np.float32)
    mean = jax.jit(mean_square_by_rows, static_argnums=0) if is_jitted else mean_square_by_rows
    wide: Any = _quotient(*(np.asarray(each, np.float64) for each in (array, by_row, by_column)))  # type: ignore[arg-type]
    found = float(mean(_quotient, jnp.asarray(array), jnp.asarray(by_row), jnp.asarray(by_column)))
    assert found == pytest.approx(float(np.square(wide).mean()), rel=1e-5)


def test_only_large_arrays_on_one_cpu_are_summed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def text(size: int) -> str:
        return str(jax.make_jaxpr(lambda *arrays: sums_of(_two, *arrays))(*_arrays(size)))

    assert "dynamic_slice" in text(LARGE)
    assert "dynamic_slice" not in text(LARGE - 2)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert "dynamic_slice" not in text(LARGE)


def test_no_temporary_array_is_as_large_as_a_parameter() -> None:
    arrays = [jnp.asarray(each) for each in _arrays(4 * LARGE)]
    compiled: Any = jax.jit(sums_of, static_argnums=0).lower(_two, *arrays).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < arrays[0].nbytes / 4
