"""`python -m examples.tensorboard_logging`: the emotion of two small trainings, in TensorBoard.

One training in PyTorch and one in Flax, on the same data; each writes its loss and the metrics of its
optimizer. The lines that matter are marked.
"""

import argparse
from pathlib import Path

from examples.command import answer_early


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.tensorboard_logging",
        description="Train two small networks, in PyTorch and in Flax, and log the optimizers' emotion.",
    )
    parser.add_argument("--steps", type=int, default=300, help="steps each (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/tensorboard"),
        help="the folder that the events are written to (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    answer_early(options, "integrations", ("jax", "optax", "torch", "flax", "tensorboard"))

import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch.utils.tensorboard import SummaryWriter

import emo_optax
import emo_torch

LEARNING_RATE = 1e-2


def make_data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns points, and the sine of their sum to learn."""
    points = np.random.default_rng(seed).normal(size=(64, 4)).astype(np.float32)
    return points, np.sin(points.sum(axis=1, keepdims=True))


def train_with_torch(folder: Path, steps: int) -> None:
    """Trains a perceptron in PyTorch, and writes events to a folder."""
    points, targets = (torch.from_numpy(array) for array in make_data())
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = emo_torch.EmoSens(model.parameters(), lr=LEARNING_RATE)
    with SummaryWriter(str(folder)) as writer:
        for step in range(steps):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(points), targets)
            loss.backward()
            optimizer.step(loss=loss)
            if step % 10 == 0:  # Waits for the device, so not in every step.
                for name, value in {"loss": loss.item(), **emo_torch.get_metrics(optimizer)}.items():
                    writer.add_scalar(name, value, step)


def train_with_flax(folder: Path, steps: int) -> None:
    """Trains a perceptron in Flax, and writes events to a folder."""
    points, targets = (jnp.asarray(array) for array in make_data())
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(4, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 1, rngs=rngs))
    optimizer = nnx.Optimizer(model, emo_optax.emo_sens(LEARNING_RATE), wrt=nnx.Param)

    @nnx.jit
    def train_step(model: nnx.Sequential, optimizer: nnx.Optimizer[nnx.Sequential]) -> dict[str, jax.Array]:
        def mean_loss(model: nnx.Sequential) -> jax.Array:
            return jnp.mean((model(points) - targets) ** 2)

        loss, grads = nnx.value_and_grad(mean_loss)(model)
        optimizer.update(model, grads, value=loss)
        # Computed on the device, with the step.
        metrics = emo_optax.get_metrics(
            optimizer.opt_state, grads=grads, learning_rate=LEARNING_RATE, as_floats=False
        )
        return {"loss": loss, **metrics}

    with SummaryWriter(str(folder)) as writer:
        for step in range(steps):
            metrics = train_step(model, optimizer)
            if step % 10 == 0:  # Waits for the device, so not in every step.
                for name, value in jax.device_get(metrics).items():
                    writer.add_scalar(name, float(value), step)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example with the given command-line arguments, or with the arguments of the process."""
    parser = options()
    given = parser.parse_args(arguments)
    if given.steps < 1:
        parser.error(f"--steps must be at least 1, and is {given.steps}")
    for name, train in (("torch", train_with_torch), ("flax", train_with_flax)):
        train(given.output / name, given.steps)
        print(f"{name}: {given.steps} steps, written to {given.output / name}")
    print(f"Look at them: tensorboard --logdir {given.output}, and open http://localhost:6006")
    return 0


if __name__ == "__main__":
    sys.exit(main())
