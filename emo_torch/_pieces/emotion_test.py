import math

import numpy as np
import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._pieces.emotion import feel_in_place

WIDE = torch.float64


def feel_all(
    losses: list[float], dtype: torch.dtype = WIDE, **options: float
) -> list[emo_torch.EmotionState]:
    state = emo_torch.init_emotion(dtype)
    states = []
    for loss in losses:
        state = emo_torch.feel(state, torch.tensor(loss, dtype=dtype), **options)
        states.append(state)
    return states


def same(ours: emo_torch.EmotionState, theirs: emo_torch.EmotionState) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_both_averages_start_at_the_first_loss() -> None:
    (state,) = feel_all([-7.25])
    assert (state.short.item(), state.long.item(), state.scalar.item()) == (-7.25, -7.25, 0.0)
    assert (state.felt.item(), state.held.item()) == (1, 0)


def test_the_averages_and_the_scalar_are_what_a_pen_says() -> None:
    second, third = feel_all([2.0, 3.0, 1.0])[1:]
    assert second.short.item() == pytest.approx(2.3, abs=1e-15)
    assert second.long.item() == pytest.approx(2.01, abs=1e-15)
    assert second.scalar.item() == pytest.approx(math.tanh(1.45), abs=1e-15)
    assert third.short.item() == pytest.approx(1.91, abs=1e-15)
    assert third.long.item() == pytest.approx(1.9999, abs=1e-15)
    assert third.scalar.item() == pytest.approx(math.tanh(-0.4495), abs=1e-14)


def test_the_factors_and_the_gain_are_options() -> None:
    last = feel_all([0.0, 1.0], short_factor=0.5, long_factor=0.25, gain=2.0)[-1]
    assert (last.short.item(), last.long.item()) == (0.5, 0.25)
    assert last.scalar.item() == pytest.approx(math.tanh(0.5), abs=1e-15)


def test_a_loss_above_its_trend_makes_the_scalar_positive() -> None:
    assert feel_all([1.0, 2.0])[-1].scalar.item() > 0 > feel_all([2.0, 1.0])[-1].scalar.item()


def test_the_history_ends_with_the_newest_scalar() -> None:
    states = feel_all([float(step % 7) / 10 for step in range(40)])
    scalars = [state.scalar.item() for state in states]
    assert states[-1].history.tolist() == scalars[-32:]
    assert states[4].history.tolist() == [0.0] * 27 + scalars[:5]


def test_nothing_that_goes_in_is_changed() -> None:
    state = feel_all([1.0, 2.0])[-1]
    before = [field.clone() for field in state]
    after = emo_torch.feel(state, torch.tensor(9.0, dtype=WIDE))
    assert same(state, emo_torch.EmotionState(*before))
    pointers = {field.data_ptr() for field in state}
    assert pointers.isdisjoint(field.data_ptr() for field in after)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_held_and_only_counted(bad: float) -> None:
    state = feel_all([1.0, 2.0])[-1]
    for count in (1, 2, 3):
        held = emo_torch.feel(state, torch.tensor(bad, dtype=WIDE))
        assert same(held, state._replace(held=torch.tensor(count, dtype=torch.int32)))
        state = held


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_leave_no_trace_in_those_that_are(bad: float) -> None:
    losses = [1.0 + 0.1 * math.sin(step) for step in range(40)]
    mixed = [bad, bad, *losses[:1], bad, *losses[1:20], *[bad] * 5, *losses[20:], bad]
    clean, dirty = feel_all(losses)[-1], feel_all(mixed)[-1]
    assert dirty.held.item() == 9
    assert same(dirty, clean._replace(held=dirty.held))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gain", [0.0, 5.0])
def test_huge_losses_never_make_an_average_infinite(gain: float, dtype: torch.dtype) -> None:
    top = torch.finfo(dtype).max
    losses = [top, -top, top, top, -top, -top, 0.0, 1.0, top / 2, -top / 2, top]
    for state in feel_all(losses, dtype, gain=gain):
        assert state.felt + state.held > 0
        assert all(bool(torch.isfinite(field).all()) for field in state)
        assert abs(state.scalar.item()) <= 1.0


@pytest.mark.parametrize("loss", [0.0, 1.0, 3.3333, 1e-30, -1234.5678, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_loss_keeps_the_scalar_at_0(dtype: torch.dtype, loss: float) -> None:
    assert all(state.scalar.item() == 0.0 for state in feel_all([loss] * 50, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_keeps_its_dtypes(dtype: torch.dtype) -> None:
    for state in (emo_torch.init_emotion(dtype), feel_all([1.0, 2.0], dtype)[-1]):
        for name in ("short", "long", "scalar", "history"):
            assert getattr(state, name).dtype == dtype
        assert state.felt.dtype == state.held.dtype == torch.int32
        assert state.should_stop.dtype == torch.bool
        assert [tuple(field.shape) for field in state] == [(), (), (), (), (), (32,), ()]


def test_a_fresh_emotion_is_zeros_in_tensors_of_their_own() -> None:
    state = emo_torch.init_emotion(torch.float32)
    assert all(not field.any() for field in state)
    assert len({field.data_ptr() for field in state}) == len(state)


def _quiet(steps: int) -> list[float]:
    return [1.0 + 0.002 * (step % 3) for step in range(steps)]


def test_the_signal_comes_with_the_32nd_quiet_loss_and_stays() -> None:
    states = feel_all([*_quiet(32), 50.0, *(float(step) for step in range(40))])
    signals = [bool(state.should_stop) for state in states]
    assert signals == [False] * 31 + [True] * 42


def test_a_loss_that_is_held_does_not_count_towards_the_32() -> None:
    states = feel_all([*_quiet(20), *[math.nan] * 30, *_quiet(12)])
    assert [bool(state.should_stop) for state in states].index(True) == 61


def test_a_loss_that_is_held_after_the_signal_does_not_clear_it() -> None:
    assert feel_all([*_quiet(32), math.nan])[-1].should_stop


# In an optimizer.


def stepped(losses: list[float], **options: object) -> tuple[Tensor, emo_torch.EmoSens]:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = emo_torch.EmoSens([weight], lr=1e-2, **options)  # type: ignore[arg-type]
    for loss in losses:
        weight.grad = torch.ones(3)
        optimizer.step(loss=loss)
    return weight, optimizer


@pytest.mark.parametrize("losses", [[math.nan], [1.0, math.inf], [1.0, 2.0, -math.inf, 1.0, math.nan]])
def test_a_step_with_a_held_loss_goes_by_the_scalar_that_stands(losses: list[float]) -> None:
    weight, optimizer = stepped(losses, weight_decay=0.0, betas=(0.0, 0.0), eps=0.0)
    expected, scalar, felt = 1.0, 0.0, [loss for loss in losses if math.isfinite(loss)]
    short = long = felt[0] if felt else 0.0
    for loss in losses:
        if math.isfinite(loss):
            short, long = 0.3 * loss + 0.7 * short, 0.01 * loss + 0.99 * long
            scalar = math.tanh(5 * (short - long))
        expected -= 1e-2 * (1 - abs(scalar))
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-6)
    emotion = optimizer.emotion
    assert (int(emotion.felt), int(emotion.held)) == (len(felt), len(losses) - len(felt))
    assert emotion.scalar.item() == pytest.approx(scalar, rel=1e-5)


def test_a_held_loss_still_pulls_to_the_shadow_by_the_ratio_that_stands() -> None:
    pulled, optimizer = stepped([1.0, 2.0, math.nan], use_shadow=True)
    assert optimizer.emotion.shadow_ratio.item() == pytest.approx(math.tanh(1.45), rel=1e-6)
    free, _ = stepped([1.0, 2.0, math.nan])
    assert not torch.equal(pulled, free)


def test_a_loss_that_overflows_the_emotion_s_dtype_is_held() -> None:
    _, optimizer = stepped([1.0])
    weight = optimizer.param_groups[0]["params"][0]
    for loss in (1e300, torch.tensor(1e39, dtype=torch.float64), np.float64(-1e200), 10**400):
        weight.grad = torch.ones(3)
        optimizer.step(loss=loss)
    assert (int(optimizer.emotion.felt), int(optimizer.emotion.held)) == (1, 4)
    assert bool(torch.isfinite(weight).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0, 1e38])
def test_in_place_it_is_the_same_to_the_last_bit(dtype: torch.dtype, spread: float) -> None:
    generator = np.random.default_rng(3)
    losses = 2.0 + spread * generator.standard_normal(200)
    losses[generator.integers(0, 200, 12)] = [math.nan, math.inf, -math.inf] * 4
    ours, theirs = emo_torch.init_emotion(dtype), emo_torch.init_emotion(dtype)
    for loss in losses:
        value = torch.tensor(loss, dtype=dtype)
        theirs = emo_torch.feel(theirs, value, gain=1.7)
        feel_in_place(ours, value, short_factor=0.3, long_factor=0.01, gain=1.7)
        for name, one, other in zip(ours._fields, ours, theirs, strict=True):
            assert one.equal(other), name


def test_a_look_at_the_emotion_is_a_copy() -> None:
    weight, optimizer = stepped([1.0, 2.0])
    look, numbers = optimizer.emotion, [float(field) for field in optimizer.emotion]
    weight.grad = torch.ones(3)
    optimizer.step(loss=9.0)
    assert [float(field) for field in look] == numbers
    for field in optimizer.emotion:
        field.zero_()
    assert optimizer.emotion.felt.item() == 3


def test_a_look_at_the_emotion_is_made_of_scalars() -> None:
    emotion = stepped([1.0, 2.0])[1].emotion
    assert isinstance(emotion, emo_torch.Emotion)
    assert all(isinstance(field, Tensor) and field.shape == () for field in emotion)
    assert emotion.step_scale.item() == pytest.approx(1 - math.tanh(1.45), rel=1e-6)
    assert emotion.shadow_ratio.item() == 0.0
    assert emotion.should_stop.dtype == torch.bool


def test_should_stop_is_a_plain_bool_that_comes_with_the_32nd_quiet_loss() -> None:
    weight, optimizer = stepped(_quiet(31))
    assert optimizer.should_stop is False
    for loss in (1.0, 99.0, 0.0):
        weight.grad = torch.ones(3)
        optimizer.step(loss=loss)
        assert optimizer.should_stop is True


def test_one_emotion_serves_however_many_parameters_there_are() -> None:
    looks = []
    for count in (1, 40):
        weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(count)]
        optimizer = emo_torch.EmoCats([{"params": weights[:1]}, {"params": weights[1:]}])
        for loss in _quiet(31):
            for weight in weights:
                weight.grad = torch.ones(2)
            optimizer.step(loss=loss)
        looks.append(optimizer.emotion)
    assert looks[0] == looks[1]
    assert not looks[1].should_stop


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float32], torch.float32),
        ([torch.bfloat16], torch.float32),
        ([torch.float16, torch.bfloat16], torch.float32),
        ([torch.float32, torch.float64], torch.float64),
    ],
)
def test_it_is_float32_unless_a_parameter_is_float64(
    dtypes: list[torch.dtype], expected: torch.dtype
) -> None:
    weights = [torch.nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in dtypes]
    emotion = emo_torch.EmoSens(weights).emotion
    assert all(field.dtype == expected for field in emotion if field.is_floating_point())
