"""`python -m examples.early_stop`: two trainings that end when their loss has gone quiet.

Handwritten digits, learnt by AdamW of Optax and of PyTorch: no optimizer of this family is at work, only
the monitor, which reads the loss. Both trainings start from the same weights; one line each, marked
below, is all that the monitor asks for.
"""

import argparse
from pathlib import Path

from examples.command import answer_early, file_to_write, positive_int, seed_number


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.early_stop",
        description="Learn handwritten digits with AdamW of Optax and of PyTorch, until the early-stop "
        "monitor says that the loss has gone quiet.",
    )
    parser.add_argument(
        "--steps", type=positive_int, default=1000, help="how many steps at most (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="decides the first weights (default: %(default)s)"
    )
    parser.add_argument(
        "--go-on", action="store_true", help="continue after the stop, to see the effect of more steps"
    )
    parser.add_argument(
        "--output",
        type=file_to_write,
        default=Path("output/early_stop.png"),
        help="where the picture, a PNG, is written (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("jax", "optax", "torch", "flax", "matplotlib", "rich", "sklearn"))

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

import emo_optax
import emo_torch
from examples.digits import data
from examples.digits.data import Digits
from examples.progress import Progress

LEARNING_RATE = 1e-2
NAMES = ("Optax", "PyTorch")


class Training(NamedTuple):
    """How a training went.

    Attributes:
        loss: the loss before each step, shape `[steps]`.
        scalar: the emotion scalar of each loss, shape `[steps]`.
        is_quiet: whether the training was quiet at each step, shape `[steps]`.
        stopped: the first step, from 1, at which the monitor said stop; `None` if it never did.
        accuracy: the share of test digits told rightly where it stopped, or else at the end.
        last_accuracy: the same at the end.
    """

    loss: NDArray[Any]
    scalar: NDArray[Any]
    is_quiet: NDArray[Any]
    stopped: int | None
    accuracy: float
    last_accuracy: float


Train = Callable[[Digits, int, int, bool, Callable[[], None]], Training]
"""Digits, steps at most, a seed, whether to continue after the stop, and a function to call every step."""


def start(seed: int) -> dict[str, NDArray[Any]]:
    """Returns the first weights of a perceptron with one hidden layer, 64 to 32 to 10."""
    generator = np.random.default_rng(seed)
    return {
        "hidden": generator.normal(0.0, 1 / 8, (64, 32)).astype(np.float32),
        "hidden_bias": np.zeros(32, np.float32),
        "output": generator.normal(0.0, 1 / 6, (32, 10)).astype(np.float32),
        "output_bias": np.zeros(10, np.float32),
    }


def train_with_optax(
    digits: Digits, steps: int, seed: int, go_on: bool, on_step: Callable[[], None]
) -> Training:
    """Trains with `optax.adamw` until the monitor says stop, or past that with `go_on`."""
    images, labels = jnp.asarray(digits.train_images).reshape(-1, 64), jnp.asarray(digits.train_labels)
    optimizer, stop = optax.adamw(LEARNING_RATE), emo_optax.early_stop()

    def scores(params: Any, images: jax.Array) -> jax.Array:
        hidden = jnp.tanh(images @ params["hidden"] + params["hidden_bias"])
        outputs: jax.Array = hidden @ params["output"] + params["output_bias"]
        return outputs

    @jax.jit
    def step(params: Any, state: Any, stop_state: emo_optax.EarlyStopState) -> Any:
        def mean_loss(params: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(scores(params, images), labels).mean()

        loss, gradients = jax.value_and_grad(mean_loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        stop_state = stop.update(stop_state, loss)  # The monitor's line.
        return optax.apply_updates(params, updates), state, stop_state, loss

    def accuracy(params: Any) -> float:
        guesses = scores(params, jnp.asarray(digits.test_images).reshape(-1, 64)).argmax(axis=-1)
        return float(np.mean(np.asarray(guesses) == digits.test_labels))

    params = {name: jnp.asarray(weight) for name, weight in start(seed).items()}
    state, stop_state = optimizer.init(params), stop.init()
    rows, stopped, best = [], None, None
    for index in range(steps):
        params, state, stop_state, loss = step(params, state, stop_state)
        rows.append((float(loss), float(stop_state.emotion.scalar), bool(stop_state.is_quiet)))
        on_step()
        if stop_state.should_stop and stopped is None:
            stopped, best = index + 1, accuracy(params)
            if not go_on:
                break
    return _training(rows, stopped, best, accuracy(params))


def train_with_torch(
    digits: Digits, steps: int, seed: int, go_on: bool, on_step: Callable[[], None]
) -> Training:
    """Trains with `torch.optim.AdamW` until the monitor says stop, or past that with `go_on`."""
    images = torch.from_numpy(digits.train_images).reshape(-1, 64)
    labels = torch.from_numpy(digits.train_labels)
    params = {name: torch.nn.Parameter(torch.from_numpy(weight)) for name, weight in start(seed).items()}
    # Optax' usual weight decay, which is a hundredth of PyTorch's.
    optimizer = torch.optim.AdamW(params.values(), lr=LEARNING_RATE, weight_decay=1e-4)
    stop = emo_torch.EarlyStop()

    def scores(images: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(images @ params["hidden"] + params["hidden_bias"])
        return hidden @ params["output"] + params["output_bias"]

    @torch.no_grad()
    def accuracy() -> float:
        guesses = scores(torch.from_numpy(digits.test_images).reshape(-1, 64)).argmax(dim=-1)
        return float(np.mean(guesses.numpy() == digits.test_labels))

    rows, stopped, best = [], None, None
    for index in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(scores(images), labels)
        loss.backward()
        optimizer.step()
        stop.update(loss)  # The monitor's line.
        rows.append((loss.item(), float(stop.emotion.scalar), stop.is_quiet))
        on_step()
        if stop.should_stop and stopped is None:
            stopped, best = index + 1, accuracy()
            if not go_on:
                break
    return _training(rows, stopped, best, accuracy())


def _training(
    rows: list[tuple[float, float, bool]], stopped: int | None, accuracy: float | None, last: float
) -> Training:
    loss, scalar, is_quiet = (np.asarray(column) for column in zip(*rows, strict=True))
    return Training(loss, scalar, is_quiet, stopped, last if accuracy is None else accuracy, last)


def draw(trainings: dict[str, Training], output: Path) -> None:
    """Draws losses and scalars, and where the monitor said stop."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    losses, scalars = figure.subplots(2, 1, sharex=True)
    for (name, training), colour, style in zip(
        trainings.items(), ("#8ec5ea", "#08355c"), ("-", "--"), strict=True
    ):
        steps = np.arange(1, len(training.loss) + 1)
        losses.plot(steps, training.loss, style, color=colour, linewidth=2.5, label=f"AdamW of {name}")
        scalars.plot(steps, training.scalar, style, color=colour, linewidth=2.5, label=name)
        if training.stopped is not None:
            for axes in (losses, scalars):
                axes.axvline(training.stopped, color="#f0a63c", linewidth=2, linestyle=style)
    losses.set_yscale("log")
    losses.set_title("The loss goes down, and the orange line is where the monitor says stop", fontsize=14)
    losses.set_ylabel("Loss", fontsize=12)
    scalars.set_title("The emotion scalar has been small, and steady, for 32 steps there", fontsize=14)
    scalars.set_ylabel("Emotion scalar", fontsize=12)
    scalars.set_xlabel("Step", fontsize=12)
    for axes in (losses, scalars):
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(framealpha=0.9, edgecolor="none", fontsize=12)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)


def conclude(name: str, training: Training, steps: int) -> str:
    """Returns the result of a training in one sentence."""
    if training.stopped is None:
        return f"{name}: never quiet in {steps} steps; test accuracy {training.accuracy:.1%}."
    sentence = (
        f"{name}: quiet at step {training.stopped} of {steps}, at a loss of "
        f"{training.loss[training.stopped - 1]:.4f} and a test accuracy of {training.accuracy:.1%}"
    )
    if len(training.loss) > training.stopped:
        sentence += f"; {training.last_accuracy:.1%} at the end"
    return f"{sentence}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example with the given command-line arguments, or with the arguments of the process."""
    parser = options()
    given = parser.parse_args(arguments)
    console = Console()
    digits = data.load("float32")
    trainings = {}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bars:
        for name, train in zip(NAMES, (train_with_optax, train_with_torch), strict=True):
            task = bars.add_task(name, total=given.steps)

            def advance(task: Any = task) -> None:
                bars.advance(task)

            trainings[name] = train(digits, given.steps, given.seed, given.go_on, advance)
    draw(trainings, given.output)
    for name, training in trainings.items():
        console.print(conclude(name, training, given.steps), highlight=False)
    print(given.output)  # Not by rich, which would break a long path into lines.
    return 0


if __name__ == "__main__":
    sys.exit(main())
