"""A drive that is felt in place has the bits of `feel_drive`."""

import pytest
import torch

import emo_torch
from emo_torch._pieces.drive import DriveState
from emo_torch._pieces.drive_in_place import feel_drive_in_place
from emo_torch._pieces.emotion import EmotionState
from emo_torch._pieces.pulse_in_place_test import losses_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_are_those_of_feel_drive(dtype: torch.dtype) -> None:
    every, stops = losses_of(dtype), set()
    for losses in (every, every[85:], [float("nan"), 0.0, *every[::-1]]):
        expected, found = (emo_torch.init_drive(dtype) for _ in range(2))
        arrays = None
        for loss in losses:
            number = torch.tensor(loss, dtype=dtype)
            expected = emo_torch.feel_drive(expected, number)
            arrays = feel_drive_in_place(found, number, arrays)
            assert arrays is not None
            pairs = zip((*found.emotion, found.medium), (*expected.emotion, expected.medium), strict=True)
            for name, (one, other) in zip((*EmotionState._fields, "medium"), pairs, strict=True):
                assert one.dtype == other.dtype
                assert one.equal(other), (name, loss, one, other)
            stops.add(bool(found.emotion.should_stop))
        assert int(found.emotion.held) >= 4
    assert stops == {False, True}


def test_a_state_with_other_tensors_is_read_and_written() -> None:
    loss, state = torch.tensor(1.0), emo_torch.init_drive(torch.float32)
    arrays = feel_drive_in_place(state, loss)
    other = DriveState(EmotionState(*(field.clone() for field in state.emotion)), state.medium.clone())
    assert feel_drive_in_place(other, 3.0 * loss, arrays) is not arrays
    assert (int(state.emotion.felt), int(other.emotion.felt)) == (1, 2)
    assert other.medium.item() == pytest.approx(1.1)
