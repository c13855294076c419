"""A picture of the stored results: the final loss over learning rates."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.quality.contenders import ADAMW, AVERAGED, PILOT
from benchmarks.quality.plan import HELD_BACK, LOSSES_OVER_RATES, RATES
from benchmarks.quality.ratios import losses_over_rates, mean_over_tasks, over_adamw, shared
from examples.yardstick.store import Store

STYLES = {
    PILOT: ("#c2255c", "-", 4.0),
    ADAMW: ("#1864ab", "-", 2.2),
    AVERAGED: ("#1864ab", "--", 2.2),
    "AdamW + cosine": ("#4dabf7", ":", 2.2),
    "AdamW, schedule-free": ("#2b8a3e", "-", 2.2),
    "MoMo-Adam": ("#e67700", "-", 2.2),
    "Prodigy": ("#5f3dc4", "-.", 2.2),
    "Muon": ("#868e96", "-", 2.2),
    "EmoSens": ("#212529", ":", 2.2),
}
"""Colour, line and width by row; the rows that the picture shows."""


def draw(store: Store, path: Path) -> None:
    """Draws the final loss over learning rates, the mean over the tasks that every shown row has."""
    ratios = over_adamw(losses_over_rates(store))
    names, rows = shared(ratios, (*LOSSES_OVER_RATES, *HELD_BACK), tuple(STYLES))
    figure = Figure(figsize=(10, 6.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, (colour, line, width) in STYLES.items():
        mean = mean_over_tasks(ratios, row, names)
        if mean is not None and row in rows:
            # Later rows below earlier ones: EmoPilot stays visible.
            order = 10.0 - list(STYLES).index(row)
            options: dict[str, Any] = {"color": colour, "linestyle": line, "linewidth": width}
            axes.plot(RATES, mean, label=row, marker="o", markersize=width + 2, zorder=order, **options)
    axes.axhline(1.0, color="#495057", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.6, 150.0)
    ticks = (0.7, 1, 2, 5, 10, 20, 50)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.tick_params(labelsize=15)
    axes.set_xlabel("learning rate", fontsize=17)
    axes.set_ylabel("test loss / AdamW's at its best rate", fontsize=17)
    axes.set_title(f"Final loss over learning rates, mean of {len(names)} small tasks", fontsize=18)
    axes.grid(color="#dee2e6", linewidth=0.8)
    axes.legend(fontsize=14, ncols=2, loc="upper center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
