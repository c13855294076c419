"""The ratios as bars."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.step_time.plan import GROUPS, Cell
from benchmarks.step_time.problems import PROBLEMS
from benchmarks.step_time.results import Line, Ratio, Results, lines
from benchmarks.step_time.store import Store
from benchmarks.step_time.tables import FRAMEWORKS

COLORS = {
    "family": ("#8ec5ea", "#08355c"),
    "theirs": ("#f8d6a3", "#d9861a"),
    "floor": ("#dddddd", "#8a8a8a"),
}
"""Pale for the lower number of threads, dark for the higher one."""


def draw(path: Path, done: Sequence[Cell], store: Store) -> None:
    """Draws every row's ratio to its baseline, a panel for each framework and problem."""
    results = Results(done, store)
    places = list(dict.fromkeys((c.framework, c.device, c.problem) for c in results.of_kind("steps")))
    across = max(1, len({problem for _, _, problem in places}))
    down = max(1, -(-len(places) // across))
    figure = Figure(figsize=(6.6 * across, 6.8 * down + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(places) :]:
        axes.set_axis_off()
    for axes, place in zip(panels, places, strict=False):
        _draw_panel(axes, results, *place)
    counts = results.threads()
    legend = [
        Patch(color=color, label=f"{kind}, {count} thread{'s' * (count > 1)}")
        for kind, colors in COLORS.items()
        for count, color in zip(counts[-2:], colors[-len(counts[-2:]) :], strict=True)
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=3, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of the library that draws, so that the same results give the same file.
    figure.savefig(path, format="png", dpi=80, metadata={"Software": None})


def _draw_panel(axes: Axes, results: Results, framework: str, device: str, problem: str) -> None:
    counts = results.threads()[-2:]
    rows: list[tuple[Line, list[Ratio | None]]] = []
    for line in lines(framework):
        found = [results.ratio(framework, device, problem, count, line.key) for count in counts]
        if any(found):
            rows.append((line, found))
    height = 0.84 / len(counts)
    for place, (line, found) in enumerate(rows):
        kind = "floor" if line.variant.written else "family" if line.variant.is_family else "theirs"
        for index, each in enumerate(found):
            if each is None:
                continue
            middle = place + (index - (len(counts) - 1) / 2) * height
            color = COLORS[kind][-len(counts) :][index]
            axes.barh(middle, each.median - 1.0, height, left=1.0, color=color)
            axes.plot([each.lower, each.upper], [middle, middle], color="black", linewidth=0.8)
    axes.set_xscale("log")
    ends = [end for _, found in rows for each in found if each for end in (each.lower, each.upper)]
    axes.set_xlim(min(0.25, *ends) * 0.9, max(2.5, *ends) * 1.1)
    axes.set_yticks(np.arange(len(rows)), [line.key for line, _ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3, which="both")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=7)
    base = next(iter(GROUPS[framework].values())).variants[0].name
    title = f"{FRAMEWORKS[framework]}, {device}, {PROBLEMS[problem].title}: time of a step over {base}'s"
    axes.set_title(title, fontsize=9)
