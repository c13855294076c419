"""The results as pictures: paths and maps of every surface, and the quality on every task."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator
from numpy.typing import NDArray

from examples.digits.report import DARK_BLUE, ORANGE, PALE_BLUE
from examples.yardstick.optimizers import contenders
from examples.yardstick.plan import Cell, Settings
from examples.yardstick.standings import standings_on
from examples.yardstick.store import Store
from examples.yardstick.surfaces import SURFACES, Surface
from examples.yardstick.sweeps import GRIDS
from examples.yardstick.tasks import tasks

PANELS_PER_ROW = 5
DPI = 80
GREY = "#8a8a8a"
GREEN = "#009e73"


def draw_all(settings: Settings, names: list[str], store: Store, folder: Path) -> list[Path]:
    """Draws every picture into a folder, and returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {name: store.get(Cell("surfaces", name, settings.surface_steps).key) for name in names}
    figures = {"quality.png": _draw_quality(settings, names, store)}
    for surface in SURFACES:
        of = {name: result[surface] for name, result in results.items()}
        figures[f"paths_{surface}.png"] = _draw_paths(SURFACES[surface], of)
        figures[f"tolerance_{surface}.png"] = _draw_maps(SURFACES[surface], of)
    for name, figure in figures.items():
        # Without the version of the library that draws, so that the same results give the same file.
        figure.savefig(folder / name, format="png", dpi=DPI, metadata={"Software": None})
    return [folder / name for name in figures]


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: a figure of one's own needs no display and leaves nothing behind.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_paths(surface: Surface, results: dict[str, Any]) -> Figure:
    """Draws one panel an optimizer: contours, the path of the best and of the default learning rate."""
    rows = math.ceil(len(results) / PANELS_PER_ROW)
    figure = _figure(13.0, 2.55 * rows + 0.7)
    figure.suptitle(
        f"{surface.title}: {surface.formula}\nBlue: the best learning rate, orange: the default. "
        "Circle: the start, star: the minimum, square: the end",
        fontsize=13,
        fontweight="bold",
    )
    panels = figure.subplots(rows, PANELS_PER_ROW, squeeze=False).flatten()
    across = np.linspace(-1.1 * surface.corner, 1.1 * surface.corner, 121)
    x, y = np.meshgrid(across, across)
    values = np.asarray(surface.value(x, y), np.float64) - surface.lowest
    contours = _levels(values)
    # A valley is narrow: the star needs a finer grid than the contours.
    fine = np.linspace(across[0], across[-1], 1501)
    heights = np.asarray(surface.value(*np.meshgrid(fine, fine)))
    lowest = fine[list(np.unravel_index(heights.argmin(), heights.shape))][::-1]
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    for axes, (name, result) in zip(panels, results.items(), strict=False):
        axes.contour(x, y, values, levels=contours, colors=GREY, linewidths=0.4)
        for which, color, width in (("best", DARK_BLUE, 1.4), ("default", ORANGE, 2.6)):
            path = np.asarray(result["paths"][which])
            # A path that runs away is only drawn near the picture.
            near = np.clip(path, -50.0 * surface.corner, 50.0 * surface.corner)
            order = 3 if which == "best" else 2
            axes.plot(*near.T, color=color, linewidth=width, marker="o", markersize=1.5, zorder=order)
            axes.plot(*near[-1], color=color, marker="s", markersize=6, markeredgecolor="white", zorder=4)
        axes.plot(*lowest, "*", color=GREEN, markersize=12, markeredgecolor="white", zorder=5)
        axes.plot(*near[0], "o", color="black", markersize=6, markeredgecolor="white", zorder=5)
        axes.set_xlim(across[0], across[-1])
        axes.set_ylim(across[0], across[-1])
        title = f"{contenders()[name].title}\n{result['best_rate']:.2g} and {result['default_rate']:.2g}"
        axes.set_title(title, fontsize=9, color=DARK_BLUE if contenders()[name].is_family else "black")
        axes.tick_params(labelsize=8)
    figure.supxlabel("x")
    figure.supylabel("y")
    return figure


def _levels(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # Few enough for the many hollows of an egg box.
    return np.quantile(values, [0.05, 0.3, 0.6, 0.85])


def _draw_maps(surface: Surface, results: dict[str, Any]) -> Figure:
    """Draws one row an optimizer: the final height over learning rates, one line a start."""
    figure = _figure(13.0, 0.42 * len(results) + 1.6)
    figure.suptitle(
        f"{surface.title}: the final height over the learning rate; 16 starts, one line each",
        fontsize=13,
        fontweight="bold",
    )
    panels = figure.subplots(len(results), len(GRIDS), squeeze=False)
    image = None
    for row, (name, result) in zip(panels, results.items(), strict=True):
        for axes, (grid, rates) in zip(row, GRIDS.items(), strict=True):
            heights = np.asarray(result["maps"][grid]).T
            image = axes.imshow(
                heights, aspect="auto", cmap="viridis_r", vmin=-4, vmax=4, interpolation="nearest"
            )
            axes.set_yticks([])
            is_last = row[0] is panels[-1][0]
            # Seven learning rates fit below each column.
            ticks = np.linspace(0, len(rates) - 1, 7 if len(rates) % 6 == 1 else 6)
            labels = [f"{rates[round(tick)]:.2g}" for tick in ticks]
            axes.set_xticks(ticks, labels if is_last else [""] * len(ticks), fontsize=8)
            axes.tick_params(bottom=is_last)
        row[0].set_ylabel(
            contenders()[name].title,
            rotation=0,
            ha="right",
            va="center",
            fontsize=9,
            color=DARK_BLUE if contenders()[name].is_family else "black",
        )
    for axes, grid in zip(panels[0], GRIDS, strict=True):
        axes.set_title(f"learning rates {grid}", fontsize=10)
    if image is not None:
        bar = figure.colorbar(
            image, ax=panels, location="bottom", shrink=0.5, aspect=50, pad=0.01, extend="both"
        )
        bar.set_label("decimal logarithm of the height above the lowest point; dark is high", fontsize=9)
    return figure


def _draw_quality(settings: Settings, names: list[str], store: Store) -> Figure:
    """Draws, for every task, the losses over AdamW's at its best."""
    figure = _figure(13.0, 0.27 * len(names) + 2.0)
    figure.suptitle(
        "Test loss over AdamW's at its best: filled at the best learning rate, hollow at the default",
        fontsize=13,
        fontweight="bold",
    )
    panels = figure.subplots(1, len(settings.task_steps), sharey=True, squeeze=False)[0]
    for axes, (task, steps) in zip(panels, settings.task_steps, strict=True):
        standings = standings_on(settings, names, store, task)
        for place, name in enumerate(reversed(names)):
            color = DARK_BLUE if contenders()[name].is_family else ORANGE
            best, default = standings[name].ratio, standings[name].default_ratio
            if math.isfinite(default) and math.isfinite(best):
                axes.plot([best, default], [place, place], color=PALE_BLUE, linewidth=1.5, zorder=1)
            axes.plot(default, place, "o", markersize=7, markerfacecolor="white", markeredgecolor=color)
            axes.plot(best, place, "o", markersize=7, color=color)
        axes.set_xlabel("test loss / AdamW's at its best")
        _finish_quality(axes, f"{tasks()[task].title}, {steps} steps", names)
    marks: dict[str, dict[str, Any]] = {
        "of the family, best rate": {"color": DARK_BLUE},
        "of the family, default": {"markerfacecolor": "white", "markeredgecolor": DARK_BLUE},
        "others, best rate": {"color": ORANGE},
        "others, default": {"markerfacecolor": "white", "markeredgecolor": ORANGE},
    }
    lines = [Line2D([], [], linestyle="", marker="o", label=label, **look) for label, look in marks.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=4)
    return figure


def _finish_quality(axes: Axes, title: str, names: list[str]) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0]))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(1.0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(names)), [contenders()[name].title for name in reversed(names)], fontsize=9)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
