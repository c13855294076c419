from typing import Any

import pytest
import torch

import emo_torch


def test_one_signal_stays_and_the_other_is_of_now() -> None:
    stop = emo_torch.EarlyStop()
    seen = []
    for loss in [0.7] * 33 + [9.0] + [0.7] * 5:
        stop.update(torch.tensor(loss))
        seen.append((stop.should_stop, stop.is_quiet))
    assert seen == [(False, False)] * 31 + [(True, True)] * 2 + [(True, False)] * 6


def test_the_monitor_gives_the_signals_of_an_optimizer() -> None:
    stop = emo_torch.EarlyStop()
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = emo_torch.EmoSens([weight], lr=0.0)
    for loss in [1.0, float("nan"), 1.1] + [1.05] * 300 + [5.0]:
        weight.grad = torch.ones(2)
        optimizer.step(loss=loss)
        stop.update(loss)
        emotion = optimizer.emotion
        assert (bool(emotion.should_stop), bool(emotion.is_quiet)) == (stop.should_stop, stop.is_quiet)
        assert torch.equal(stop.emotion.history[-1], emotion.scalar)
    assert stop.should_stop
    assert not stop.is_quiet
    assert int(stop.emotion.held) == 1


def test_it_goes_on_where_another_was() -> None:
    first, whole = emo_torch.EarlyStop(gain=2.0), emo_torch.EarlyStop(gain=2.0)
    for step in range(20):
        first.update(1.0 + 0.01 * step)
        whole.update(1.0 + 0.01 * step)
    saved = first.state_dict()
    first.update(100.0)
    second = emo_torch.EarlyStop(gain=2.0)
    second.load_state_dict(saved)
    for _ in range(40):
        second.update(1.2)
        whole.update(1.2)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(second.emotion, whole.emotion, strict=True)
    )


@pytest.mark.parametrize("damage", [{"history": torch.zeros(7)}, {"felt": None}])
def test_a_damaged_state_is_refused_before_anything_changes(damage: dict[str, Any]) -> None:
    stop, other = emo_torch.EarlyStop(), emo_torch.EarlyStop()
    other.update(3.0)
    with pytest.raises(ValueError, match="not that of an EarlyStop"):
        stop.load_state_dict({**other.state_dict(), **damage})
    assert int(stop.emotion.felt) == 0


def test_bounds_and_gain_are_options() -> None:
    restless = [1.0 + 0.1 * (-1) ** step for step in range(60)]
    usual, deaf, patient = emo_torch.EarlyStop(), emo_torch.EarlyStop(gain=0.1), None
    patient = emo_torch.EarlyStop(mean_below=1.0, variance_below=1.0)
    for loss in restless:
        for stop in (usual, deaf, patient):
            stop.update(loss)
    assert (usual.is_quiet, deaf.is_quiet, patient.is_quiet) == (False, True, True)
    assert (usual.should_stop, deaf.should_stop, patient.should_stop) == (False, True, True)
    assert "gain=0.1" in repr(deaf)


@pytest.mark.parametrize("name", ["short_factor", "long_factor", "mean_below", "variance_below", "gain"])
def test_bad_options_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"Invalid {name}"):
        emo_torch.EarlyStop(**{name: -1.0})


def test_a_loss_that_is_none_or_no_scalar_is_refused() -> None:
    stop = emo_torch.EarlyStop()
    with pytest.raises(emo_torch.LossMissingError):
        stop.update(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be a scalar"):
        stop.update(torch.ones(2))
    assert int(stop.emotion.felt) == 0
