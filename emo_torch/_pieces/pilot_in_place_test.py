"""Scalars of EmoPilot that are moved in place have the bits of `steer`."""

from typing import Any

import numpy as np
import pytest
import torch

from emo_torch._pieces.pilot import PilotState, init_pilot, steer, with_agreement
from emo_torch._pieces.pilot_in_place import PilotArrays

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {"limit": 2.5, "min_courage": 0.03, "max_courage": 1000.0, "learning_rate": 1e-2},
    "warm-up": {"limit": 2.5, "min_courage": 0.03, "max_courage": 1000.0, "learning_rate": 1e-4},
    "bounded": {"limit": 0.7, "min_courage": 0.5, "max_courage": 1.0, "learning_rate": 0.0},
}


def inputs(dtype: torch.dtype) -> list[tuple[float, list[float]]]:
    """Returns losses and products: falling, jumping, 0, equal, huge, tiny and not finite."""
    source = np.random.default_rng(0)
    losses = list(3.0 * 0.98 ** np.arange(150) * np.exp(0.05 * source.standard_normal(150)))
    losses += [*np.exp(4.0 * source.standard_normal(100)), *[0.25] * 40]
    losses += [0.0, -2.0, 1e-30, float("nan"), 1.0, float("inf"), torch.finfo(dtype).max, -1.0, 2.0, 0.1]
    found = []
    for index, loss in enumerate(losses):
        sizes = np.exp(source.standard_normal(2))
        sizes[0] *= {3: 0.0, 40: np.nan, 41: np.inf, 50: 1e6}.get(index, 1.0)
        agreement = 0.3 + 0.4 * source.standard_normal()
        product = 0.0 if index == 0 else float(agreement * np.sqrt(sizes[0] * sizes[1]))
        found.append((float(loss), [float(sizes[0]), product, 0.0 if index == 0 else float(sizes[1])]))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_the_bits_are_those_of_steer(name: str, dtype: torch.dtype, is_reversed: bool) -> None:
    expected, found = init_pilot(dtype), init_pilot(dtype)
    arrays = PilotArrays(found)
    skipped = 0
    for loss, sums in inputs(dtype)[:: -1 if is_reversed else 1]:
        products = torch.tensor(sums, dtype=dtype)
        new, is_finite = steer(expected, torch.tensor(loss, dtype=dtype), products[0], **OPTIONS[name])
        number = torch.tensor(loss, dtype=dtype).item()
        steered = arrays.steer(number, products[0].item(), **OPTIONS[name])
        assert (steered is not None) == bool(is_finite)
        if steered is None:
            skipped += 1
            continue
        expected = with_agreement(new, products)._replace(
            longest=torch.tensor(0.5, dtype=dtype), bound=torch.tensor(1.0, dtype=dtype)
        )
        arrays.keep(steered, products.numpy(), arrays.real(0.5), arrays.real(1.0))
        for field, one, other in zip(PilotState._fields, found, expected, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)), (field, loss, one, other)
    assert skipped >= 3
    assert arrays.fits(found)
    assert not arrays.fits(expected)
