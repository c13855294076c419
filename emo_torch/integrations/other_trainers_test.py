"""The loops of trainers that cannot be installed as libraries, imitated, with the line that each needs."""

import math
from collections.abc import Iterator

import accelerate
import pytest
import torch
from torch import Tensor

import emo_torch

LOSSES = (1.0, 2.0, 6.0, 3.0, 2.0, 0.5, 4.0, 1.5)


def losses_of(param: Tensor) -> Iterator[Tensor]:
    """Yields losses of known sizes, with a graph."""
    for size in LOSSES:
        yield size + 0.0 * param.sum()


def felt_by(losses: list[float]) -> emo_torch.EmotionState:
    stop = emo_torch.EarlyStop()
    for loss in losses:
        stop.update(loss)
    return stop.emotion


@pytest.fixture
def param() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(3))


def test_onetrainer_feels_the_sum_of_the_parts_that_it_logs(param: torch.nn.Parameter) -> None:
    optimizer = emo_torch.EmoSens([param], lr=1e-3)
    scaler, steps = torch.amp.GradScaler("cpu", init_scale=1024.0), 4
    for number, loss in enumerate(losses_of(param), start=1):
        loss = loss / steps
        scaler.scale(loss).backward()
        optimizer.observe(loss.detach(), reduction="sum")
        if number % steps == 0:
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
    assert float(optimizer.emotion.short) == float(felt_by([3.0, 2.0]).short)


def test_diffusion_pipe_feels_the_loss_of_the_step_before(param: torch.nn.Parameter) -> None:
    optimizer = emo_torch.EmoSens([param], lr=1e-3)
    batches = losses_of(param)

    def train_batch() -> float:
        """Steps within, and returns the loss when that is over."""
        loss = next(batches)
        optimizer.step()
        return loss.item()

    optimizer.observe(math.nan)
    for _ in LOSSES:
        optimizer.observe(train_batch())
    emotion, expected = optimizer.emotion, felt_by(list(LOSSES[:-1]))
    assert (int(emotion.felt), int(emotion.held)) == (7, 1)
    assert (emotion.short, emotion.long) == (expected.short, expected.long)


def test_ai_toolkit_puts_0_for_a_bad_loss_which_is_held_where_it_is_watched_before(
    param: torch.nn.Parameter,
) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = accelerator.prepare(emo_torch.EmoSens([param], lr=1e-3))
    inside = emo_torch.unwrap(optimizer)
    assert isinstance(inside, emo_torch.EmoSens)
    for number, loss in enumerate(losses_of(param)):
        if number == 2:
            loss = loss * math.nan
        loss = inside.watch(loss)
        if torch.isnan(loss):
            inside.observe(loss.detach())  # No backward pass will reach it.
            loss = torch.zeros_like(loss).requires_grad_(True)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    expected = felt_by([loss for loss in LOSSES if loss != 6.0])
    assert (int(inside.emotion.felt), int(inside.emotion.held)) == (7, 1)
    assert inside.emotion.long == expected.long
