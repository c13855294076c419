"""The 8-bit code of moments: its tables, its rules on hard input, and its error."""

import math

import numpy as np
import pytest

from emo_shared import eight_bit
from emo_shared.eight_bit import (
    BLOCK,
    LARGEST,
    SIGNED,
    TINY,
    UNSIGNED,
    block_count,
    decode,
    encode,
    midpoints,
    to_float32,
    zero_code,
)

TABLES = {"signed": SIGNED, "unsigned": UNSIGNED}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_256_sorted_float32_numbers_with_0_and_1(name: str) -> None:
    table = TABLES[name]
    assert len(table) == len(set(table)) == 256
    assert list(table) == sorted(table)
    assert all(value == float(np.float32(value)) for value in table)
    assert table[-1] == 1.0
    assert table[zero_code(table)] == 0.0
    middle = midpoints(table)
    assert len(middle) == 255
    assert all(low < mid < high for low, mid, high in zip(table, middle, table[1:], strict=False))
    assert list(middle) == [float(np.float32(value)) for value in middle]


def test_the_signed_table_is_symmetric_but_for_the_value_next_to_zero() -> None:
    without = [value for value in SIGNED if value != SIGNED[zero_code(SIGNED) + 1]]
    assert sorted(-value for value in without) == without
    assert SIGNED[0] == -1.0


@pytest.mark.parametrize("name", TABLES)
def test_a_decoded_array_is_encoded_to_the_same_codes_and_scales(name: str) -> None:
    table = TABLES[name]
    values = 1e-20 * _sample(1000, name)
    codes, scales = encode(values.tolist(), table)
    assert (codes, scales) == encode(decode(codes, scales, table), table)


@pytest.mark.parametrize("name", TABLES)
def test_numpy_finds_the_same_codes_and_scales(name: str) -> None:
    table = TABLES[name]
    values = _sample(3 * BLOCK + 17, name)
    codes, scales = encode(values.tolist(), table)
    middle, place = np.asarray(midpoints(table), np.float32), 0
    for scale in scales:
        block = values[place * BLOCK : (place + 1) * BLOCK]
        assert np.float32(scale) == np.abs(block).max()
        expected = np.searchsorted(middle, block * (np.float32(1.0) / np.float32(scale)), side="left")
        if name == "unsigned":
            expected = np.where(block > 0.0, np.maximum(expected, 1), expected)
        assert codes[place * BLOCK : (place + 1) * BLOCK] == expected.tolist()
        place += 1
    assert place == block_count(len(values)) == 4


@pytest.mark.parametrize("name", TABLES)
def test_every_value_of_the_table_is_its_own_code(name: str) -> None:
    table = TABLES[name]
    codes, scales = encode(table, table)
    assert codes == list(range(256))
    assert decode(codes, scales, table) == list(table)


@pytest.mark.parametrize("name", TABLES)
def test_a_midpoint_gets_the_lower_code(name: str) -> None:
    table = TABLES[name]
    middle = midpoints(table)
    for code in (1, 100, 200, 254):
        above = float(np.nextafter(np.float32(middle[code]), np.float32(2.0)))
        assert encode([1.0, middle[code], above], table)[0] == [255, code, code + 1]


@pytest.mark.parametrize("name", TABLES)
def test_the_error_is_half_a_gap_at_most(name: str) -> None:
    table = TABLES[name]
    values = _sample(5000, name)
    codes, scales = encode(values.tolist(), table)
    for place, (value, code) in enumerate(zip(values.tolist(), codes, strict=True)):
        below = table[code] - table[max(code - 1, 0)]
        above = table[min(code + 1, 255)] - table[code]
        scale = scales[place // BLOCK]
        # Rule 6 replaces what would be 0 by the least value.
        gap = 1.01 * max(below, above) * (1.0 if code == 1 else 0.5)
        assert abs(table[code] * scale - value) <= scale * gap


@pytest.mark.parametrize("name", TABLES)
def test_blocks_of_zeros_and_of_tiny_values_are_zero(name: str) -> None:
    table = TABLES[name]
    tiny = float(np.nextafter(np.float32(TINY), np.float32(0.0)))
    for values in ([0.0] * 3, [-0.0, 0.0], [tiny, tiny / 2.0, 1e-45]):
        codes, scales = encode(values, table)
        assert (codes, scales) == ([zero_code(table)] * len(values), [0.0])
        assert not any(decode(codes, scales, table))


@pytest.mark.parametrize("name", TABLES)
def test_a_tiny_value_is_zero_beside_a_small_one(name: str) -> None:
    table = TABLES[name]
    codes, scales = encode([TINY, TINY / 2.0], table)
    assert (codes, scales) == ([255, zero_code(table)], [TINY])


def test_a_second_moment_above_zero_never_becomes_zero() -> None:
    codes, scales = encode([1.0, 0.0, 1e-8, TINY], UNSIGNED)
    assert codes == [255, 0, 1, 1]
    assert all(value > 0.0 for value in decode(codes[2:], scales, UNSIGNED))
    # The product TINY * (1 / LARGEST) rounds to 0.
    assert encode([LARGEST, TINY], UNSIGNED)[0] == [255, 1]


def test_a_first_moment_far_below_the_largest_becomes_zero() -> None:
    codes, _ = encode([1.0, 1e-7, -1e-7, LARGEST], SIGNED)
    assert codes == [zero_code(SIGNED)] * 3 + [255]


def test_one_huge_value_spoils_its_own_block_only() -> None:
    values = [0.5] * (2 * BLOCK)
    values[3] = 1e30
    codes, scales = encode(values, SIGNED)
    assert scales == [to_float32(1e30), 0.5]
    assert codes[BLOCK:] == [255] * BLOCK
    assert codes[:BLOCK].count(zero_code(SIGNED)) == BLOCK - 1


def test_a_short_last_block_has_a_scale_of_its_own() -> None:
    codes, scales = encode([2.0] * BLOCK + [0.25], SIGNED)
    assert scales == [2.0, 0.25]
    assert codes == [255] * (BLOCK + 1)
    assert decode(codes, scales, SIGNED) == [2.0] * BLOCK + [0.25]


def test_infinity_is_the_largest_number_and_nan_spoils_its_block() -> None:
    codes, scales = encode([-math.inf, math.inf, 0.0], SIGNED)
    assert (codes, scales) == ([0, 255, 127], [LARGEST])
    codes, scales = encode([math.nan, 1.0, math.inf], UNSIGNED)
    assert codes == [0, 0, 0]
    assert all(map(math.isnan, decode(codes, scales, UNSIGNED)))


def test_the_bytes_of_a_state() -> None:
    size = 100_000
    bytes_of_one = size + 4 * block_count(size)
    assert 2 * bytes_of_one / size < 2.1  # EmoSens has two moments.
    assert bytes_of_one / size < 1.05
    assert eight_bit.is_coded(size)
    assert not eight_bit.is_coded(eight_bit.SMALLEST - 1)


def _sample(size: int, name: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Returns values of many magnitudes: sizes from 1e-12 to 1, with both signs for the signed table."""
    random = np.random.default_rng(7)
    sizes = 10.0 ** random.uniform(-12.0, 0.0, size)
    signs = random.choice([-1.0, 1.0], size) if name == "signed" else 1.0
    values: np.ndarray[tuple[int], np.dtype[np.float32]] = (sizes * signs).astype(np.float32)
    return values
