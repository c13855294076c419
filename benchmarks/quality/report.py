"""The table and the picture: losses over those of AdamW at its best learning rate."""

import math
import statistics
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.quality.plan import Cell, Plan
from benchmarks.quality.training import CONTENDERS

DIVERGED = 1e3
"""The ratio that stands for a run that diverged, and the largest that counts in a mean."""

Losses = dict[Cell, float | None]


def ratios(losses: Losses, plan: Plan) -> dict[tuple[str, str, float], float]:
    """Returns, by task, contender and rate, the mean loss over that of AdamW at its best rate."""
    means: dict[tuple[str, str, float], float] = {}
    for task in plan.tasks:
        for name in CONTENDERS:
            for rate in plan.rates:
                found = [losses[Cell(task, name, rate, seed, plan.steps)] for seed in plan.seeds]
                known = [loss for loss in found if loss is not None]
                means[task, name, rate] = statistics.fmean(known) if len(known) == len(found) else math.inf
    best = {task: min(means[task, "adamw", rate] for rate in plan.rates) for task in plan.tasks}
    return {key: min(mean / best[key[0]], DIVERGED) for key, mean in means.items()}


def over_tasks(found: dict[tuple[str, str, float], float], plan: Plan) -> dict[tuple[str, float], float]:
    """Returns the geometric mean over the tasks, by contender and rate."""
    return {
        (name, rate): statistics.geometric_mean(found[task, name, rate] for task in plan.tasks)
        for name in CONTENDERS
        for rate in plan.rates
    }


def table(losses: Losses, plan: Plan) -> str:
    """Returns the table as a Markdown page."""
    mean = over_tasks(ratios(losses, plan), plan)
    count = f"{len(plan.tasks)} tasks, {len(plan.seeds)} seeds, {plan.steps} steps"
    call = "python -m benchmarks.quality" + (" --fast" if plan.is_fast else "")
    lines = [
        "# Quality over learning rates",
        "",
        f"Written by `{call}`: {count}. A number is",
        "the loss on test data over that of AdamW at its best learning rate, as a geometric mean over the",
        f"tasks; {DIVERGED:g} stands for a run that diverged. Less is better. EmoPilot is evaluated with",
        f"its averaged weights. The tasks are {', '.join(plan.tasks)}.",
        "",
        "| optimizer | " + " | ".join(f"{rate:g}" for rate in plan.rates) + " | best | default |",
        "|---|" + "---:|" * (len(plan.rates) + 2),
    ]
    for name, contender in CONTENDERS.items():
        row = [mean[name, rate] for rate in plan.rates]
        cells = [f"{value:.3g}" for value in (*row, min(row), mean[name, contender.default])]
        lines.append(f"| {contender.title} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def draw(losses: Losses, plan: Plan, path: Path) -> None:
    """Draws the same as curves over the learning rate into a PNG."""
    mean = over_tasks(ratios(losses, plan), plan)
    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, (name, contender) in enumerate(CONTENDERS.items()):
        values = [mean[name, rate] for rate in plan.rates]
        width, style = (3.0, "-") if index == 0 else (1.5, ("--", "-.", ":")[index % 3])
        axes.plot(plan.rates, values, style, linewidth=width, marker="o", label=contender.title)
    axes.axhline(1.0, color="#999999", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("test loss / AdamW's at its best rate")
    axes.set_title(f"Final loss over learning rates, {len(plan.tasks)} tasks")
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.legend()
    figure.savefig(path, format="png")
