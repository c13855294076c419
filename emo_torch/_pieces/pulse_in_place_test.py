"""A pulse that is felt in place has the bits of `feel_pulse`."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import emo_torch
from emo_torch._pieces.pulse import PulseState
from emo_torch._pieces.pulse_in_place import feel_pulse_in_place

OPTIONS: dict[str, dict[str, Any]] = {
    "published": {},
    "steady": {"steady": True, "stopcoef": 0.4},
    "limited": {"spike_limit": 1.5, "loss_unit": "first"},
    "unit": {"loss_unit": 0.03, "steady": True},
}
DEFAULTS: dict[str, Any] = {"stopcoef": 0.04, "steady": False, "spike_limit": None, "loss_unit": None}


def losses_of(dtype: torch.dtype) -> list[float]:
    """Returns losses that fall, rest, jump, are not finite, are 0, negative, tiny or huge."""
    source = np.random.default_rng(0)
    falling = 3.0 * 0.97 ** np.arange(120) * np.exp(0.1 * source.standard_normal(120))
    jumps = np.exp(4.0 * source.standard_normal(200))
    special = [0.0, float("nan"), 1.0, float("inf"), -2.0, 1e-30, torch.finfo(dtype).max, -1.0, 2.0]
    quiet = [0.01] * 80 + [0.02, float("nan"), 0.01]
    return [
        *quiet,
        *falling,
        *special,
        *jumps,
        *([-torch.finfo(dtype).max] * 2),
        *quiet,
        *special,
        *special,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_bits_are_those_of_feel_pulse(options: str, dtype: torch.dtype) -> None:
    given = {**DEFAULTS, **OPTIONS[options]}
    scopes: itertools.cycle[Any] = itertools.cycle((1.0, 20.0, 0, torch.tensor([3.7]), 1 / 3))
    for losses in (losses_of(dtype), losses_of(dtype)[85:], [float("nan"), 0.0, *losses_of(dtype)[::-1]]):
        expected, found = (emo_torch.init_pulse(dtype) for _ in range(2))
        arrays = None
        for loss, scope in zip(losses, scopes, strict=False):
            number = torch.tensor(loss, dtype=dtype)
            expected = emo_torch.feel_pulse(expected, number, scope, **given)
            arrays = feel_pulse_in_place(found, number, scope, arrays=arrays, **given)
            assert arrays is not None
            for name, one, other in zip(PulseState._fields, found, expected, strict=True):
                assert one.dtype == other.dtype
                assert one.equal(other), (name, loss, one, other)
        assert int(found.held) >= 4


def test_a_state_with_other_tensors_is_read_and_written() -> None:
    loss = torch.tensor(1.0)
    state = emo_torch.init_pulse(torch.float32)
    arrays = feel_pulse_in_place(state, loss, 1.0, **DEFAULTS)
    other = PulseState(*(field.clone() for field in state))
    again = feel_pulse_in_place(other, 3.0 * loss, 1.0, arrays=arrays, **DEFAULTS)
    assert again is not arrays
    assert (int(state.felt), int(other.felt)) == (1, 2)
    assert other.short.item() == pytest.approx(1.6)
