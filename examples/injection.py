"""The effect of RefAdamWMiniScheduleFree's injection on a training, and of its bound.

Run `python -m examples.injection`: it trains the network of `examples.digits`, and a perceptron with
pixels that are always dark and units that rest, whose gradients are 0, and prints a table.
"""

import argparse

from examples.command import answer_early, positive_int


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m examples.injection", description=__doc__)
    parser.add_argument("--epochs", type=positive_int, default=30, help="default: %(default)s")
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("torch", "rich", "sklearn"))

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import emo_torch
from examples.digits import data
from examples.digits.settings import MAX_NORM
from examples.digits.torch_side import clip_by_global_norm, one_thread

BATCH_SIZE = 32


class Way(NamedTuple):
    """One way to train.

    Attributes:
        title: its name in the table.
        make: makes the optimizer from the parameters and the number of steps.
        with_loss: whether every step is given the loss.
    """

    title: str
    make: Callable[[list[nn.Parameter], int], Any]
    with_loss: bool = True


def _ref(**options: Any) -> Callable[[list[nn.Parameter], int], Any]:
    def make(params: list[nn.Parameter], steps: int) -> Any:
        length = {"ref_max_steps": steps} if options.get("ref_max_steps") else {}
        return emo_torch.RefAdamWMiniScheduleFree(params, lr=1e-3, **{**options, **length})

    return make


WAYS = (
    Way("AdamW", lambda params, _: torch.optim.AdamW(params, lr=1e-3), with_loss=False),
    Way("no loss: no injection", _ref(), with_loss=False),
    Way("bounded (default)", _ref()),
    Way("bounded, length known", _ref(ref_max_steps=True)),
    Way("published", _ref(injection_bound=None)),
    Way("published, length known", _ref(injection_bound=None, ref_max_steps=True)),
)


class Outcome(NamedTuple):
    """How a training went.

    Attributes:
        losses: the mean loss of each epoch; ends where a loss is not finite.
        accuracies: the share of test digits recognized after each of these epochs.
        broken_at: the first step, from 1, whose loss is not finite, or `None`.
    """

    losses: list[float]
    accuracies: list[float]
    broken_at: int | None


def convolutions() -> nn.Module:
    """Returns the network of `examples.digits`, with PyTorch's own first weights."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def perceptron() -> nn.Module:
    """Returns a perceptron: 64 pixels, 128 and 64 units, 10 scores."""
    sizes = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    return nn.Sequential(nn.Flatten(), *sizes)


NETWORKS = {"convolutions": convolutions, "perceptron": perceptron}


def train(network: Callable[[], nn.Module], way: Way, epochs: int, seed: int = 0) -> Outcome:
    """Trains a network from first weights and batches that the seed decides.

    Args:
        network: makes the network.
        way: how to train.
        epochs: how often every digit is seen, > 0.
        seed: of weights and batches.

    Returns:
        Losses and accuracies by epoch.
    """
    digits = data.load("float32")
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    test_images = torch.from_numpy(digits.test_images)
    torch.manual_seed(seed)
    model = network()
    params = list(model.parameters())
    optimizer = way.make(params, epochs * (data.TRAIN_COUNT // BATCH_SIZE))
    generator = np.random.default_rng(seed)
    outcome, steps = Outcome([], [], None), 0
    for _ in range(epochs):
        losses: list[Tensor] = []
        for batch in data.shuffled_batches(generator, BATCH_SIZE):
            steps += 1
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            if not math.isfinite(loss.item()):
                return outcome._replace(broken_at=steps)
            loss.backward()
            clip_by_global_norm(params, MAX_NORM)
            if way.with_loss:
                optimizer.step(loss=loss)
            else:
                optimizer.step()
            losses.append(loss.detach())
        with torch.no_grad():
            guesses = model(test_images).argmax(dim=-1).numpy()
        outcome.losses.append(torch.stack(losses).mean().item())
        outcome.accuracies.append(float(np.mean(guesses == digits.test_labels)))
    return outcome


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains every network in every way, and prints losses and accuracies."""
    parser = options()
    given = parser.parse_args(arguments)
    epochs = max(1, given.epochs)
    shown = sorted({1, 2, 5, 10, 20, 30, epochs} & set(range(1, epochs + 1)))
    table = Table(title="Mean loss and test accuracy, by epoch", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("network", "way", *map(str, shown)):
        table.add_column(column, justify="left" if column in ("network", "way") else "right")
    with one_thread():
        for title, network in NETWORKS.items():
            for way in WAYS:
                outcome = train(network, way, epochs)
                cells = [
                    f"{outcome.losses[epoch - 1]:.3f} {outcome.accuracies[epoch - 1]:.3f}"
                    for epoch in shown
                    if epoch <= len(outcome.losses)
                ]
                if outcome.broken_at is not None:
                    cells.append(f"NaN, step {outcome.broken_at}")
                table.add_row(title, way.title, *cells)
    Console(width=124).print(table)


if __name__ == "__main__":
    main()
