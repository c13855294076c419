"""The code of 8-bit moments in tensors against the plain Python of `emo_shared.eight_bit`."""

import math

import pytest
import torch

from emo_shared import eight_bit as plain
from emo_torch._rules.eight_bit import decode, encode


def _adversarial(table: tuple[float, ...]) -> list[float]:
    values = [0.0, 2.0**-149, 2.0**-127, 2.0**-126, 1e-30, 1.0, 3e38, math.inf] + [0.0] * 248
    for toward in (0.0, None, 2.0):  # Exact midpoints, and their neighbours: the scale is 1.
        middle = torch.tensor(plain.midpoints(table))
        near = middle if toward is None else torch.nextafter(middle, middle * toward)
        values += [1.0, *near.tolist()]
    values += [1e30, *(1e-9 * number for number in range(255))]  # One huge element in the block.
    values += [0.0] * 256 + [2.0**-140] * 256
    values += torch.randn(700, generator=torch.Generator().manual_seed(0)).tolist()  # A short last block.
    return [abs(value) for value in values] if table == plain.UNSIGNED else [-v for v in values] + values


@pytest.mark.parametrize("table", [plain.SIGNED, plain.UNSIGNED], ids=["signed", "unsigned"])
def test_codes_and_values_are_those_of_plain_python(table: tuple[float, ...]) -> None:
    values = _adversarial(table)
    codes, scales = plain.encode(values, table)
    got, scale = encode(torch.tensor(values), table)
    assert got.tolist() == codes
    assert scale.tolist() == scales
    assert decode(got, scale, table).tolist() == plain.decode(codes, scales, table)
    again, _ = encode(decode(got, scale, table), table)
    assert torch.equal(again, got)


def test_a_block_with_nan_decodes_to_nan() -> None:
    codes, scale = encode(torch.tensor([1.0, math.nan]), plain.SIGNED)
    assert codes.tolist() == plain.encode([1.0, math.nan], plain.SIGNED)[0]
    assert decode(codes, scale, plain.SIGNED).isnan().all()
