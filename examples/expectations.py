"""Results of the second generation, measured on handwritten digits in some two minutes.

Run with `python -m examples.expectations`. It prints tables for docs/quality_of_training.md: how training
depends on the learning rate and on its length, on the scale of the loss, and what the emotion filter
stops. A perceptron with one hidden layer (4,810 parameters), batches of 64, PyTorch, one seed. At the end
it prints what the options of the pulse do (`examples.pulse_options`).
"""

import argparse

from examples.command import answer_early, positive_int


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m examples.expectations", description=__doc__)
    parser.add_argument("--short", type=positive_int, default=400, help="steps of a short run, default 400")
    parser.add_argument("--long", type=positive_int, default=2000, help="steps of a long run, default 2000")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and batches (default 0)")
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("torch", "rich", "sklearn"))

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import emo_torch
from examples.digits import data
from examples.progress import Progress
from examples.pulse_options import print_tables

BATCH_SIZE = 64
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SCALES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "AdamW": torch.optim.AdamW,
    "EmoSens": emo_torch.EmoSens,
    "EmoAiry": emo_torch.EmoAiry,
    "EmoCats": emo_torch.EmoCats,
}


class Run(NamedTuple):
    """The result of a training: accuracy and loss on the test digits, and the mean step scale."""

    accuracy: float
    loss: float
    step_scale: float


class Task:
    """The digits as tensors, and batches of them that are the same for every run."""

    def __init__(self, seed: int) -> None:
        digits = data.load("float32")
        self.train = torch.tensor(digits.train_images).flatten(1), torch.tensor(digits.train_labels)
        self.test = torch.tensor(digits.test_images).flatten(1), torch.tensor(digits.test_labels)
        self.seed = seed

    def model(self) -> nn.Module:
        """Returns the network, always with the same weights."""
        torch.manual_seed(self.seed)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def batches(self, steps: int) -> list[tuple[Tensor, Tensor]]:
        """Returns the batches of a run, each drawn from all training digits."""
        generator = torch.Generator().manual_seed(self.seed)
        images, labels = self.train
        picks = torch.randint(len(images), (steps, BATCH_SIZE), generator=generator)
        return [(images[pick], labels[pick]) for pick in picks]


def train(task: Task, name: str, steps: int, rate: float, scale: float = 1.0) -> Run:
    """Trains once; the loss, and with it the gradients, are multiplied by `scale`."""
    model = task.model()
    optimizer = OPTIMIZERS[name](model.parameters(), lr=rate)
    step_scale = torch.zeros(())
    for images, labels in task.batches(steps):
        optimizer.zero_grad()
        loss = scale * nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        if isinstance(optimizer, emo_torch.EmoOptimizer):
            optimizer.step(loss=loss)
            step_scale += optimizer.emotion.step_scale / steps
        else:
            optimizer.step()
            step_scale += 1.0 / steps
    with torch.no_grad():
        images, labels = task.test
        logits = model(images)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return Run(float(accuracy), float(nn.functional.cross_entropy(logits, labels)), float(step_scale))


def rates_table(task: Task, short: int, long: int) -> Table:
    """Trains with every learning rate, for short and for long."""
    table = Table(title=f"Test accuracy after {short} and after {long} steps, by learning rate")
    table.add_column("steps", justify="right")
    table.add_column("optimizer")
    for rate in RATES:
        table.add_column(f"{rate:g}", justify="right")
    table.add_column("scale at 1e-3", justify="right")
    with Progress(transient=True) as progress:
        bar = progress.add_task("learning rates", total=2 * len(OPTIMIZERS) * len(RATES))
        for steps in (short, long):
            for name in OPTIMIZERS:
                runs = {}
                for rate in RATES:
                    runs[rate] = train(task, name, steps, rate)
                    progress.advance(bar)
                cells = [f"{run.accuracy:.3f}" for run in runs.values()]
                table.add_row(str(steps), name, *cells, f"{runs[1e-3].step_scale:.2f}")
    return table


def scales_table(task: Task, steps: int) -> Table:
    """Trains with the loss multiplied by a constant, at the default learning rate."""
    table = Table(title=f"Test accuracy / mean step scale after {steps} steps, loss times a constant")
    table.add_column("optimizer")
    for scale in SCALES:
        table.add_column(f"{scale:g}", justify="right")
    with Progress(transient=True) as progress:
        bar = progress.add_task("scales of the loss", total=len(OPTIMIZERS) * len(SCALES))
        for name in OPTIMIZERS:
            cells = []
            for scale in SCALES:
                run = train(task, name, steps, 1e-3, scale)
                cells.append(f"{run.accuracy:.3f} {run.step_scale:.2f}")
                progress.advance(bar)
            table.add_row(name, *cells)
    return table


def filter_table(task: Task, steps: int) -> Table:
    """Counts the elements that the filter stops in one training with EmoSens."""
    model = task.model()
    optimizer = emo_torch.EmoSens(model.parameters(), lr=1e-3)
    thetas = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 2e-1)
    stopped = dict.fromkeys(thetas, 0)
    zeros = elements = 0
    for images, labels in task.batches(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step(loss=loss)
        for param in model.parameters():
            grad = param.grad if param.grad is not None else torch.zeros_like(param)
            elements += grad.numel()
            zeros += int((grad == 0).sum())
            for theta in thetas:
                tolerance = theta * (1 + optimizer.emotion.scalar.abs())
                stopped[theta] += int((~emo_torch.keep_elements(grad, tolerance)).sum())
    table = Table(title="Share of elements that the filter stops, by theta (default 0.0001)")
    table.add_column("gradient exactly 0", justify="right")
    for theta in thetas:
        table.add_column(f"{theta:g}", justify="right")
    table.add_row(f"{zeros / elements:.4f}", *(f"{count / elements:.4f}" for count in stopped.values()))
    return table


def first_steps_table() -> Table:
    """Shows how long the first steps are under a constant gradient, in learning rates."""
    table = Table(title="Length of a step under a constant gradient, in learning rates")
    table.add_column("optimizer")
    shown = (1, 2, 5, 12, 100, 400)
    for step in shown:
        table.add_column(f"step {step}", justify="right")
    for name, shape in (("EmoSens", (1, 1)), ("EmoAiry", (1, 1)), ("EmoCats", (1, 1))):
        weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        with warnings.catch_warnings():  # A learning rate of 1 makes the lengths easy to read.
            warnings.simplefilter("ignore", emo_torch.EmoWarning)
            optimizer = OPTIMIZERS[name]([weight], lr=1.0, weight_decay=0.0)
        cells = []
        for step in range(1, shown[-1] + 1):
            before = weight.detach().clone()
            weight.grad = torch.ones_like(weight)
            optimizer.step(loss=1.0)
            if step in shown:
                cells.append(f"{float((before - weight).detach().abs()):.1f}")
        table.add_row(name, *cells)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Prints all tables."""
    parser = options()
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # The tensors are small: more threads would only wait for each other.
    console = Console(width=92)
    task = Task(given.seed)
    console.print(rates_table(task, given.short, given.long))
    console.print(scales_table(task, given.short))
    console.print(filter_table(task, given.short))
    console.print(first_steps_table())
    print_tables(Console(width=112), seeds=3)


if __name__ == "__main__":
    main()
