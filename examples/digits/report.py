"""The output of a comparison: bars and a table while it trains, a sentence and a picture at the end."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from examples.digits import data
from examples.digits.comparison import RUNS, Comparison
from examples.digits.rivals import Rival
from examples.digits.settings import ADAMW_RATES, OPTIMIZERS, Settings
from examples.progress import Progress

# A pale and a dark blue, and an orange: told apart with any kind of colour vision, and without colour.
PALE_BLUE = "#8ec5ea"
DARK_BLUE = "#08355c"
ORANGE = "#f0a63c"
RED = "#b3392b"

# The headings of the table, with the width of each column: all of them fit into 80 characters.
COLUMNS = (
    ("Epoch", 5),
    ("Loss\nFlax", 7),
    ("Loss\nPyTorch", 7),
    ("Accuracy\nFlax", 8),
    ("Accuracy\nPyTorch", 8),
    ("Emotion\nscalar", 7),
    ("Step\nscale", 6),
    ("Weights\ndiffer", 7),
    ("Control\ndiffers", 7),
)


HEADINGS = {"emotion": "Step\nscale", "drive": "emo-\nDrive", "pulse": "Pulse", "pilot": "Cou-\nrage"}
"""The heading of the column with the factor of a step."""
FORMATS = {"emotion": ".4f", "drive": ".4f", "pulse": ".0e", "pilot": ".4g"}
"""How that is printed."""


class LiveReport:
    """Bars that move with every step, below a table that grows with every epoch.

    Attributes:
        bars: the bars; a context, within which they show.
    """

    def __init__(self, console: Console, settings: Settings) -> None:
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        steps = settings.epochs * (data.TRAIN_COUNT // settings.batch_size)
        self._tasks = {name: self.bars.add_task(name, total=steps) for name in RUNS}
        self._rivals = self.bars.add_task("AdamW", total=steps * len(ADAMW_RATES))
        self._title = describe(settings)
        self._memory = settings.memory
        self._epochs = 0

    def on_step(self, name: str) -> None:
        """Moves the bar of one training on."""
        self.bars.advance(self._tasks[name])

    def on_rival_step(self) -> None:
        """Moves the bar of AdamW on."""
        self.bars.advance(self._rivals)

    def on_epoch(self, epoch: Comparison) -> None:
        """Prints a row: means over the epoch's steps for the losses, the last step's values else."""
        is_first = self._epochs == 0
        self._epochs += 1
        # A table of its own for every row, so that it can be printed above the bars at once.
        table = Table(
            title=self._title if is_first else None,
            show_header=is_first,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            box=box.SIMPLE_HEAD,
        )
        for heading, width in COLUMNS:
            own = HEADINGS[self._memory] if heading == "Step\nscale" else heading
            table.add_column(own, justify="right", width=width)
        table.add_row(
            str(self._epochs),
            f"{epoch.flax.loss.mean():.4f}",
            f"{epoch.torch.loss.mean():.4f}",
            f"{epoch.flax.accuracy[-1]:.1%}",
            f"{epoch.torch.accuracy[-1]:.1%}",
            f"{epoch.flax.scalar[-1]:+.3f}",
            f"{epoch.flax.step_scale[-1]:{FORMATS[self._memory]}}",
            f"{epoch.difference[-1]:.1e}",
            f"{epoch.control_difference[-1]:.1e}",
        )
        self.bars.console.print(table)


def describe(settings: Settings) -> str:
    """Returns the settings as a heading."""
    title = OPTIMIZERS[settings.optimizer].title
    if not settings.is_pilot:
        title += " with its shadow" if settings.use_shadow else " without a shadow"
    return f"{title}, learning rate {settings.learning_rate:g}, {settings.dtype}"


def summary(comparison: Comparison, rivals: list[Rival], settings: Settings) -> Table:
    """Returns a table of the results after the last epoch: both frameworks, and AdamW."""
    title = OPTIMIZERS[settings.optimizer].title
    averaged = ", averaged weights" if settings.is_pilot else ""
    table = Table(title="Test digits after the last epoch", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Optimizer")
    for heading in ("Learning rate", "Test loss", "Accuracy"):
        table.add_column(heading, justify="right")
    sides = (
        (f"{title}, Flax{averaged}", comparison.flax),
        (f"{title}, PyTorch{averaged}", comparison.torch),
    )
    rows = [(name, settings.learning_rate, side.test_loss[-1], side.accuracy[-1]) for name, side in sides]
    rows += [(each.title, each.learning_rate, each.test_loss[-1], each.accuracy[-1]) for each in rivals]
    for name, rate, loss, accuracy in rows:
        table.add_row(name, f"{rate:g}", f"{loss:.4f}", f"{accuracy:.1%}")
    return table


def conclude(comparison: Comparison) -> str:
    """Returns the result in one sentence."""
    difference = comparison.difference.max()
    control = comparison.control_difference.max()
    return (
        f"Over {len(comparison.difference)} steps the weights of Flax and PyTorch differed by at most "
        f"{difference:.1e}, those of PyTorch and its control, which started one rounding away, by at most "
        f"{control:.1e}: a ratio of {difference / control:.2g}."
    )


def draw(comparison: Comparison, rivals: list[Rival], settings: Settings, path: Path) -> None:
    """Draws losses, accuracy, emotion and differences into a PNG."""
    # Not pyplot: a figure of one's own needs no display and leaves nothing behind.
    rows = [["loss", "accuracy"], ["scalar", "scale"], ["test", "difference"]]
    if settings.use_shadow:
        rows.append(["shadow", "shadow"])
    figure = Figure(
        figsize=(13, 4 * len(rows)), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    )
    FigureCanvasAgg(figure)
    figure.suptitle(f"Handwritten digits: {describe(settings)}", fontsize=16, fontweight="bold")
    panels = figure.subplot_mosaic(rows)  # type: ignore[arg-type]
    flax, torch = comparison.flax, comparison.torch

    _draw_pair(panels["loss"], flax.loss, torch.loss)
    panels["loss"].set_yscale("log")
    _finish(panels["loss"], "Loss of each batch", "step", "cross-entropy")

    _draw_pair(panels["accuracy"], flax.accuracy, torch.accuracy)
    _draw_rivals(panels["accuracy"], [each.accuracy for each in rivals], rivals)
    panels["accuracy"].yaxis.set_major_formatter(PercentFormatter(1.0))
    _finish(
        panels["accuracy"], f"Accuracy on {data.TEST_COUNT} test digits", "epoch", "digits told rightly"
    )

    _draw_pair(panels["test"], flax.test_loss, torch.test_loss)
    _draw_rivals(panels["test"], [each.test_loss for each in rivals], rivals)
    panels["test"].set_yscale("log")
    _finish(panels["test"], f"Loss on {data.TEST_COUNT} test digits", "epoch", "cross-entropy")

    _draw_pair(panels["scalar"], flax.scalar, torch.scalar)
    panels["scalar"].set_ylim(-1.05, 1.05)
    side = "above" if settings.memory in ("drive", "pulse") else "below"
    _finish(panels["scalar"], f"Emotion: {side} 0 the loss is below its trend", "step", "emotion scalar s")

    _draw_pair(panels["scale"], flax.step_scale, torch.step_scale)
    if settings.is_pilot:
        panels["scale"].set_yscale("log")
        _finish(panels["scale"], "Courage: the factor on the step", "step", "courage k")
    elif settings.memory == "pulse":
        panels["scale"].set_yscale("log")
        _finish(panels["scale"], "Pulse: the learning rate of the step", "step", "pulse")
    elif settings.memory == "drive":
        panels["scale"].set_ylim(0.0, 6.6)
        _finish(panels["scale"], "emoDrive: the factor on the step", "step", "emoDrive e")
    else:
        panels["scale"].set_ylim(-0.03, 1.05)
        _finish(panels["scale"], "What the emotion leaves of a step", "step", "step scale 1 - |s|")

    if settings.use_shadow:
        _draw_pair(panels["shadow"], flax.shadow_ratio, torch.shadow_ratio)
        panels["shadow"].set_ylim(-0.03, 1.05)
        _finish(panels["shadow"], "How far a step pulls to the shadow", "step", "shadow ratio")

    _draw_difference(panels["difference"], comparison)
    _finish(panels["difference"], "How far apart the weights are", "step", "largest difference of a weight")

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _draw_pair(axes: Axes, flax: NDArray[Any], torch: NDArray[Any]) -> None:
    """Draws Flax pale and thick, and PyTorch dark and thin on top, so that both show where they agree."""
    marker = _marker(flax)
    where = np.arange(1, len(flax) + 1)
    axes.plot(where, flax, color=PALE_BLUE, linewidth=5, marker=marker, markersize=10, label="Flax NNX")
    axes.plot(where, torch, color=DARK_BLUE, linewidth=0.8, marker=marker, markersize=3, label="PyTorch")


def _draw_rivals(axes: Axes, values: list[NDArray[Any]], rivals: list[Rival]) -> None:
    for value, rival, color, style in zip(values, rivals, (ORANGE, RED), ("--", ":"), strict=True):
        label = f"{rival.title}, {rival.learning_rate:g}"
        axes.plot(
            np.arange(1, len(value) + 1), value, color=color, linestyle=style, linewidth=2, label=label
        )


def _draw_difference(axes: Axes, comparison: Comparison) -> None:
    difference, control = comparison.difference, comparison.control_difference
    marker = _marker(difference)
    steps = np.arange(1, len(difference) + 1)
    axes.plot(
        steps, control, color=ORANGE, linewidth=5, marker=marker, markersize=10, label="control and PyTorch"
    )
    axes.plot(
        steps,
        difference,
        color=DARK_BLUE,
        linewidth=1.5,
        marker=marker,
        markersize=3,
        label="Flax and PyTorch",
    )
    # A logarithmic axis has no place for a difference of 0.
    axes.set_yscale("log", nonpositive="mask")
    # Whole decades, or the axis would make much of little; a bit more, so that the outer ones show.
    both = np.concatenate([difference, control])
    lowest, highest = np.log10(both[both > 0].min()), np.log10(both.max())
    axes.set_ylim(0.9 * 10.0 ** np.floor(lowest), 1.1 * 10.0 ** np.ceil(highest + 0.2))
    axes.yaxis.set_major_locator(LogLocator(numticks=10))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _marker(values: NDArray[Any]) -> str:
    """Returns the mark of a point: none where there are so many that they would hide the line."""
    return "o" if len(values) <= 100 else ""


def _finish(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=14)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel(across, fontsize=12)
    axes.set_ylabel(up, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=12)
