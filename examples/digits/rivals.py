"""AdamW at several learning rates, on the same digits, from the same weights and with the same batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from examples.digits import data, torch_side
from examples.digits.flax_side import FlaxRun
from examples.digits.settings import ADAMW_DEFAULT, ADAMW_RATES, MAX_NORM, Settings


class Rival(NamedTuple):
    """A training with AdamW.

    Attributes:
        title: its name in tables and pictures.
        learning_rate: its learning rate.
        accuracy: the share of test digits told rightly after each epoch, shape `[epochs]`.
        test_loss: the loss on the test digits after each epoch, shape `[epochs]`.
    """

    title: str
    learning_rate: float
    accuracy: NDArray[Any]
    test_loss: NDArray[Any]


def train_rivals(settings: Settings, on_step: Callable[[], None] = lambda: None) -> list[Rival]:
    """Trains with AdamW in PyTorch at each of `ADAMW_RATES`.

    Args:
        settings: how to train; the optimizer in it only decides the first weights, by the seed.
        on_step: is called behind each step.

    Returns:
        AdamW at its default learning rate, and AdamW at the rate with the least loss on the test digits
        after the last epoch.
    """
    cpu = jax.default_device(jax.devices("cpu")[0])
    with cpu, jax.enable_x64(settings.dtype == "float64"), torch_side.one_thread():
        start = torch_side.tensors(FlaxRun(settings).weights_for_torch())
        found = {rate: _train(settings, start, rate, on_step) for rate in ADAMW_RATES}
    best = min(found.values(), key=lambda rival: float(np.nan_to_num(rival.test_loss[-1], nan=np.inf)))
    return [
        found[ADAMW_DEFAULT]._replace(title="AdamW, default"),
        best._replace(title=f"AdamW, best of {len(ADAMW_RATES)}"),
    ]


def _train(settings: Settings, start: Any, rate: float, on_step: Callable[[], None]) -> Rival:
    digits = data.load(settings.dtype)
    network = torch_side.Network(start)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    generator = np.random.default_rng(settings.seed)
    results = []
    for _ in range(settings.epochs):
        for batch in data.shuffled_batches(generator, settings.batch_size):
            optimizer.zero_grad()
            scores = network(torch.from_numpy(digits.train_images[batch]))
            loss = nn.functional.cross_entropy(scores, torch.from_numpy(digits.train_labels[batch]))
            loss.backward()
            torch_side.clip_by_global_norm(network.parameters(), MAX_NORM)
            optimizer.step()
            on_step()
        results.append(torch_side.evaluate(network, digits.test_images, digits.test_labels))
    accuracy, test_loss = (np.asarray(column) for column in zip(*results, strict=True))
    return Rival("AdamW", rate, accuracy, test_loss)
