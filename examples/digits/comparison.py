"""Three trainings beside each other: Flax, PyTorch, and a control that starts a rounding away.

The frameworks round differently, and training lets such differences grow. The control shows how much:
it is PyTorch again, with nothing changed but the last digit of every weight at the start. Where either
difference jumps within one step, some gradient stood so close to a border (EmoSens' and EmoAiry's filter,
EmoCats' sign) that rounding decided on which side.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from examples.digits import data, torch_side
from examples.digits.data import Digits
from examples.digits.flax_side import FlaxRun
from examples.digits.history import History, Run, fetch, join
from examples.digits.settings import Settings
from examples.digits.torch_side import TorchRun

RUNS = ("Flax NNX", "PyTorch", "Control")


class Comparison(NamedTuple):
    """How the trainings went, over one or more epochs.

    Attributes:
        flax: the training in Flax NNX.
        torch: the training in PyTorch, from the same weights.
        difference: how far apart the two are after each step in the weight that differs most; shape
            `[steps]`.
        control_difference: the same between PyTorch and its control; shape `[0]` without a control.
    """

    flax: History
    torch: History
    difference: NDArray[Any]
    control_difference: NDArray[Any]


def compare(
    settings: Settings,
    on_step: Callable[[str], None] = lambda _: None,
    on_epoch: Callable[[Comparison], None] = lambda _: None,
    *,
    with_control: bool = True,
) -> Comparison:
    """Trains two or three times with the same batches.

    Args:
        settings: how to train.
        on_step: is told the name of the training, one of `RUNS`, behind each of its steps.
        on_epoch: is told what happened in an epoch behind each of them.
        with_control: whether the control is trained, too.

    Returns:
        The history of all epochs.
    """
    # Both on the CPU, so that rounding is all that can differ.
    cpu = jax.default_device(jax.devices("cpu")[0])
    with cpu, jax.enable_x64(settings.dtype == "float64"), torch_side.one_thread():
        digits = data.load(settings.dtype)
        flax_run = FlaxRun(settings)
        weights = torch_side.tensors(flax_run.weights_for_torch())
        runs: dict[str, Run] = {
            "Flax NNX": flax_run,
            "PyTorch": TorchRun(settings, weights),
        }
        if with_control:
            runs["Control"] = TorchRun(settings, torch_side.next_numbers(weights))
        generator = np.random.default_rng(settings.seed)
        epochs = []
        for _ in range(settings.epochs):
            batches = data.shuffled_batches(generator, settings.batch_size)
            (flax, flax_weights), (torch, torch_weights), *controls = (
                _train_epoch(run, digits, batches, partial(on_step, name)) for name, run in runs.items()
            )
            # Here, because the weights after every step of all epochs would fill the memory.
            difference = np.abs(flax_weights - torch_weights).max(axis=1)
            control_difference = np.zeros(0)
            for _, control_weights in controls:
                control_difference = np.abs(control_weights - torch_weights).max(axis=1)
            epochs.append(Comparison(flax, torch, difference, control_difference))
            on_epoch(epochs[-1])
    return Comparison(
        flax=join([epoch.flax for epoch in epochs]),
        torch=join([epoch.torch for epoch in epochs]),
        difference=np.concatenate([epoch.difference for epoch in epochs]),
        control_difference=np.concatenate([epoch.control_difference for epoch in epochs]),
    )


def _train_epoch(
    run: Run, digits: Digits, batches: NDArray[np.int64], on_step: Callable[[], None]
) -> tuple[History, NDArray[Any]]:
    steps = []
    for batch in batches:
        steps.append(run.step(digits.train_images[batch], digits.train_labels[batch]))
        on_step()
    return fetch(steps, run.evaluate(digits.test_images, digits.test_labels))
