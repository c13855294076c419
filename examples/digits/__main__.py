"""`python -m examples.digits`: trains, compares, draws."""

import argparse
import math
from pathlib import Path

from examples.command import answer_early, one_of, positive_int, seed_number
from examples.digits.settings import OPTIMIZERS, TRAIN_COUNT, Settings


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _batch_size(text: str) -> int:
    value = positive_int(text)
    if value > TRAIN_COUNT:
        raise argparse.ArgumentTypeError(f"there are only {TRAIN_COUNT} digits to learn from")
    return value


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.digits",
        description="Learn handwritten digits in Flax NNX and in PyTorch from the same weights and "
        "show how little the two differ, and train with AdamW beside them.",
    )
    usual = Settings()
    rates = ", ".join(f"{family.learning_rate:g} for {name}" for name, family in OPTIMIZERS.items())
    parser.add_argument(
        "--optimizer",
        type=one_of(lambda: OPTIMIZERS),
        metavar="NAME",
        default=usual.optimizer,
        help=f"which optimizer trains, of {', '.join(OPTIMIZERS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--shadow",
        action="store_true",
        help="let the optimizer pull the weights back to their shadow; learns more slowly",
    )
    parser.add_argument(
        "--learning-rate", type=_positive_float, help=f"the learning rate (default: {rates})"
    )
    parser.add_argument(
        "--epochs",
        type=positive_int,
        default=usual.epochs,
        help="how often every digit is seen (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=_batch_size,
        default=usual.batch_size,
        help=f"how many digits make one step, at most {TRAIN_COUNT} (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=seed_number,
        default=usual.seed,
        help="decides the first weights and the order of the digits (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float64"],
        default=usual.dtype,
        help="the numbers to compute with; float64 shows that rounding explains the difference, which "
        "becomes about a billion times smaller (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/digits.png"),
        help="where the picture, a PNG, is written (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("jax", "optax", "torch", "flax", "matplotlib", "rich", "sklearn"))

import sys
from collections.abc import Sequence

from rich.console import Console

from examples.digits.comparison import compare
from examples.digits.report import LiveReport, conclude, draw, summary
from examples.digits.rivals import train_rivals


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo with the given command-line arguments, or with the arguments of the process."""
    settings, output = parse(arguments)
    console = Console()
    report = LiveReport(console, settings)
    with report.bars:
        comparison = compare(settings, report.on_step, report.on_epoch)
        rivals = train_rivals(settings, report.on_rival_step)
    console.print(summary(comparison, rivals, settings))
    with console.status("Drawing"):
        draw(comparison, rivals, settings, output)
    console.print(conclude(comparison), highlight=False)
    print(output)  # Not by rich, which would break a long path into lines.
    return 0


def parse(arguments: Sequence[str] | None) -> tuple[Settings, Path]:
    """Returns the options of the command line: how to train, and where the picture goes."""
    parser = options()
    given = parser.parse_args(arguments)
    family = OPTIMIZERS[given.optimizer]
    if given.shadow and family.memory == "pilot":
        parser.error(f"argument --shadow: {family.title} has no shadow; choose another --optimizer")
    settings = Settings(
        optimizer=given.optimizer,
        learning_rate=given.learning_rate or OPTIMIZERS[given.optimizer].learning_rate,
        use_shadow=given.shadow,
        epochs=given.epochs,
        batch_size=given.batch_size,
        seed=given.seed,
        dtype=given.dtype,
    )
    return settings, given.output


if __name__ == "__main__":
    sys.exit(main())
