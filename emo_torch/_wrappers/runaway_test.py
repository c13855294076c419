from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import emo_torch

GRADIENT = torch.tensor([0.5, 0.5, 0.5, -0.2])


def scale_of(gradient: Tensor) -> float:
    return 1.0 - float(emo_torch.runaway_emotion(emo_torch.gradient_moments([gradient])))


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Rprop])
def test_a_step_goes_a_part_of_its_way(make: Any, foreach: bool) -> None:
    alone, scaled = Parameter(torch.ones(4)), Parameter(torch.ones(4))
    plain = make([alone], lr=0.1, foreach=foreach)
    optimizer = make([scaled], lr=0.1, foreach=foreach)
    emo_torch.scale_by_runaway(optimizer)
    for step in range(4):
        gradient = GRADIENT * (1 + step)
        before = scaled.detach().clone()
        alone.data.copy_(before)
        alone.grad, scaled.grad = gradient.clone(), gradient.clone()
        plain.step()
        optimizer.step()
        expected = before + scale_of(gradient) * (alone.detach() - before)
        torch.testing.assert_close(scaled.detach(), expected)
        assert torch.equal(scaled.grad, gradient)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_the_moments_are_of_all_parameters_together() -> None:
    first, second, third = Parameter(torch.zeros(3)), Parameter(torch.zeros(1)), Parameter(torch.zeros(9))
    first.grad, second.grad = GRADIENT[:3].clone(), GRADIENT[3:].clone()
    monitor = emo_torch.RunawayMonitor()
    shown = monitor.observe([first, second, third])
    assert float(shown.emotion) == pytest.approx(1 - scale_of(GRADIENT))
    assert all(field.shape == shape for field, shape in zip(shown, [(4,), (), ()], strict=True))
    assert monitor.runaway is shown


def test_a_closure_is_looked_at_behind_its_first_call() -> None:
    weight = Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    monitor = emo_torch.scale_by_runaway(optimizer)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        weight.grad = GRADIENT.clone()
        return torch.tensor(3.0)

    for keyword in (False, True):
        weight.data.fill_(1.0)
        returned = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert float(returned) == 3.0
        torch.testing.assert_close(weight.detach(), 1.0 - scale_of(GRADIENT) * GRADIENT)
    assert len(calls) == 2
    assert float(monitor.runaway.scale) == pytest.approx(scale_of(GRADIENT))


def test_it_stands_around_an_emotional_optimizer_too() -> None:
    alone, scaled = Parameter(torch.ones(4)), Parameter(torch.ones(4))
    plain, optimizer = emo_torch.EmoSens([alone], lr=0.1), emo_torch.EmoSens([scaled], lr=0.1)
    emo_torch.scale_by_runaway(optimizer)
    alone.grad, scaled.grad = GRADIENT.clone(), GRADIENT.clone()
    plain.step(loss=1.0)
    optimizer.step(loss=1.0)
    torch.testing.assert_close(scaled.detach(), 1 + scale_of(GRADIENT) * (alone.detach() - 1))


def test_what_goes_up_is_the_mirror_of_what_goes_down() -> None:
    moved = []
    for sign, maximize in ((1.0, False), (-1.0, True)):
        weight = Parameter(torch.zeros(4))
        optimizer = torch.optim.SGD([weight], lr=1.0, maximize=maximize)
        emo_torch.scale_by_runaway(optimizer)
        weight.grad = sign * GRADIENT
        optimizer.step()
        moved.append(weight.detach())
    assert torch.equal(*moved)


def test_tracking_changes_nothing_and_removing_ends_it() -> None:
    weight = Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    tracker = emo_torch.track_runaway(optimizer)
    scaler = emo_torch.scale_by_runaway(optimizer)
    scaler.remove()
    weight.grad = GRADIENT.clone()
    optimizer.step()
    assert torch.equal(weight.detach(), -GRADIENT)
    assert float(tracker.runaway.scale) == pytest.approx(scale_of(GRADIENT))
    assert float(scaler.runaway.scale) == 1.0
    tracker.remove()
    weight.grad = torch.zeros(4)
    optimizer.step()
    assert float(tracker.runaway.scale) == pytest.approx(scale_of(GRADIENT))


def test_a_gradient_with_a_nan_leaves_the_step_as_it_is() -> None:
    weight = Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    monitor = emo_torch.scale_by_runaway(optimizer)
    weight.grad = torch.tensor([1.0, float("nan")])
    optimizer.step()
    assert float(weight.detach()[0]) == -1.0
    assert float(monitor.runaway.scale) == 1.0
    assert bool(monitor.runaway.moments.isnan().all())


def test_parameters_without_a_gradient_and_empty_ones_rest() -> None:
    weight, still, empty = (
        Parameter(torch.ones(4)),
        Parameter(torch.full((2,), float("inf"))),
        Parameter(torch.ones(0)),
    )
    optimizer = torch.optim.SGD([weight, still, empty], lr=1.0)
    emo_torch.scale_by_runaway(optimizer)
    weight.grad, empty.grad = GRADIENT.clone(), torch.ones(0)
    optimizer.step()
    assert bool(still.isinf().all())


def test_bounds_hold_the_factor() -> None:
    weight = Parameter(torch.zeros(4))
    weight.grad = GRADIENT.clone()
    assert float(emo_torch.RunawayMonitor(bounds=(0.9, 1.0)).observe([weight]).scale) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, "Invalid eps"),
        ({"bounds": (2.0, 0.0)}, "must not be above"),
        ({"bounds": 1.0}, "must be a pair"),
        ({"bounds": (float("nan"), 1.0)}, "must not be above"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))])
    for make in (emo_torch.scale_by_runaway, emo_torch.track_runaway):
        with pytest.raises(ValueError, match=message):
            make(optimizer, **options)
    assert not optimizer._optimizer_step_pre_hooks


def test_what_cannot_be_scaled_or_read_is_refused() -> None:
    weight = Parameter(torch.zeros(2))
    with pytest.raises(TypeError, match="LBFGS calls the closure itself"):
        emo_torch.scale_by_runaway(torch.optim.LBFGS([weight]))
    with pytest.raises(TypeError, match="The optimizer that moves the parameters"):
        emo_torch.track_runaway(weight)  # type: ignore[arg-type]
    for gradient in (torch.ones(2).to_sparse(), torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(RuntimeError, match="does not support complex or sparse"):
            emo_torch.gradient_moments([gradient])


def test_optimizers_that_a_step_of_another_length_would_falsify_are_refused() -> None:
    params = [Parameter(torch.ones(2))]
    pilot = emo_torch.EmoPilot(params)
    for steered in (pilot, emo_torch.Autopilot(torch.optim.SGD(params, lr=0.1))):
        with pytest.raises(TypeError, match=r"steers its steps already.*track_runaway"):
            emo_torch.scale_by_runaway(steered)
    assert emo_torch.track_runaway(pilot).runaway.scale == 1.0
    with pytest.raises(ValueError, match=r"ASGD keeps track of where it moved the parameters \(0\.ax\)"):
        emo_torch.scale_by_runaway(torch.optim.ASGD(params, lr=0.1))
    pilot.step(loss=1.0)  # A refused optimizer has no hooks.


def test_narrow_weights_are_warned_of_once() -> None:
    optimizer = emo_torch.EmoSens([Parameter(torch.ones(3, dtype=torch.bfloat16))], rounding="kahan")
    with pytest.warns(emo_torch.EmoWarning, match=r"scale_by_runaway reads.*weights of torch\.bfloat16"):
        emo_torch.scale_by_runaway(optimizer)
    emo_torch.scale_by_runaway(optimizer)  # A second warning would be an error.
