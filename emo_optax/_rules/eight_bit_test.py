"""The code of 8-bit moments in arrays against the plain Python of `emo_shared.eight_bit`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_optax._rules.eight_bit import CodedMoment, decode, encode, zeros
from emo_shared import eight_bit as plain

compiled_encode = jax.jit(encode, static_argnums=1)
compiled_decode = jax.jit(decode, static_argnums=1)


def _adversarial(table: tuple[float, ...]) -> list[float]:
    values = [0.0, 2.0**-149, 2.0**-127, 2.0**-126, 1e-30, 1.0, 3e38, math.inf] + [0.0] * 248
    middle = np.asarray(plain.midpoints(table), np.float32)
    for near in (middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, middle * 2)):
        values += [1.0, *near.tolist()]  # Exact midpoints, and their neighbours: the scale is 1.
    values += [1e30, *(1e-9 * number for number in range(255))]  # One huge element in the block.
    values += [0.0] * 256 + [2.0**-140] * 256
    values += np.random.RandomState(0).normal(size=700).astype(np.float32).tolist()  # A short last block.
    return [abs(value) for value in values] if table == plain.UNSIGNED else [-v for v in values] + values


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("table", [plain.SIGNED, plain.UNSIGNED], ids=["signed", "unsigned"])
def test_codes_and_values_are_those_of_plain_python(table: tuple[float, ...], is_compiled: bool) -> None:
    values = _adversarial(table)
    codes, scales = plain.encode(values, table)
    array = jnp.asarray(np.asarray(values, np.float32))
    into = compiled_encode if is_compiled else encode
    back = compiled_decode if is_compiled else decode
    coded = into(array, table)
    assert coded.codes.tolist() == codes
    assert coded.scales.tolist() == scales
    assert back(coded, table).tolist() == plain.decode(codes, scales, table)
    assert into(back(coded, table), table).codes.tolist() == codes


def test_a_block_with_nan_decodes_to_nan() -> None:
    coded = compiled_encode(jnp.asarray([1.0, math.nan]), plain.SIGNED)
    assert coded.codes.tolist() == plain.encode([1.0, math.nan], plain.SIGNED)[0]
    assert jnp.isnan(compiled_decode(coded, plain.SIGNED)).all()


@pytest.mark.parametrize("table", [plain.SIGNED, plain.UNSIGNED], ids=["signed", "unsigned"])
def test_zeros_are_the_codes_of_zeros(table: tuple[float, ...]) -> None:
    param = jnp.ones((3, 171))
    made, coded = zeros(param, table), compiled_encode(0.0 * param, table)
    for one, other in zip(made, coded, strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


def test_scales_of_another_shape_are_refused() -> None:
    codes, scales = compiled_encode(jnp.ones((2, 256)), plain.SIGNED)
    with pytest.raises(ValueError, match=r"float32 scales \(1,\)"):
        decode(CodedMoment(codes, scales[:1]), plain.SIGNED)
