"""Writes the page of the comparison: a table in Markdown and a plot of the differences."""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from parity_tests.closed_loop import ClosedLoop
from parity_tests.compare import Difference
from parity_tests.roundings import Decision
from parity_tests.tolerances import CLOSED_LOOP, LOCKSTEP, VISIBLE

LEAVES = {
    "parameters": ("param/",),
    "compensated": ("compensated/",),
    "moments": ("exp_avg/", "navi_exp_avg/", "fact_exp_avg/", "lynx_exp_avg/"),
    "norms": ("exp_avg_norm/",),
    "squares": ("exp_avg_sq/", "navi_exp_avg_sq/", "fact_exp_avg_sq/"),
    "factors": ("row/", "column/", "fact_row/", "fact_column/"),
    "shadow": ("shadow/",),
    "averages": ("emotion/short", "emotion/long", "divergence/previous"),
    "scalars": ("emotion/scalar", "emotion/history", "emotion/shadow_ratio"),
    "decisions": (
        *("emotion/felt", "emotion/held", "emotion/should_stop", "emotion/shadow_exists"),
        *("divergence/felt", "divergence/held", "divergence/level", "divergence/diverging"),
        *("divergence/suppressed", "divergence/injects"),
    ),
}
"""How leaves of the state are put together in a table."""


def rows(results: Iterable[Any]) -> list[tuple[str, ...]]:
    """Returns the rows of the table: one for each optimizer, dtype and kind of leaf."""
    gathered: dict[tuple[str, str, str], Difference] = {}
    for result in results:
        for kind, prefixes in LEAVES.items():
            for prefix in prefixes:
                gap = result.lockstep.over(prefix)
                key = (result.case.optimizer, result.case.dtype, kind)
                if gap.values:
                    gathered[key] = gathered.get(key, Difference()).join(gap)
    return [
        (
            *key,
            f"{gap.absolute:.1e}",
            f"{gap.relative:.1e}",
            f"{gap.ulp:.3g}",
            f"{100 * gap.equal / gap.values:.2f}%",
            f"{gap.excess:.3f}",
        )
        for key, gap in gathered.items()
    ]


LOOP_COLUMNS = ("optimizer", "dtype", "steps", "loss", "weight", "of band", "visible from step")


def loop_rows(loops: Iterable[ClosedLoop]) -> list[tuple[str, ...]]:
    """Returns a row for each training in both frameworks, as `LOOP_COLUMNS` heads them."""
    return [
        (
            loop.optimizer,
            loop.dtype,
            str(len(loop.gap)),
            f"{loop.gap.max():.1e}",
            f"{loop.weights.max():.1e}",
            f"{loop.of_band:.4f}",
            "never" if loop.first_visible is None else str(loop.first_visible),
        )
        for loop in loops
    ]


def write(
    path: Path,
    results: list[Any],
    loops: list[ClosedLoop],
    decided: list[Decision],
    devices: Mapping[str, str],
    gpu: str | None,
    versions: Mapping[str, str],
) -> None:
    """Writes the page to `path` and the plot beside it."""
    picture = path.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    plot(picture, results)
    exceeded = [result for result in results if result.lockstep.first_excess is not None]
    head = "| optimizer | dtype | leaf | absolute | relative | ulp | bit-equal | of bound |"
    steps = max(result.case.steps for result in results)
    lines = [
        "# Parity of emo_optax and emo_torch",
        "",
        f"{len(results)} comparisons of up to {steps} steps; {len(exceeded)} beyond a bound.",
        "Written by `python -m parity_tests --report`. The bounds and their reasons stand in",
        "`parity_tests/tolerances.py`; `of bound` is the largest difference in units of it.",
        "",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        ", ".join(f"{side}: {name}" for side, name in devices.items()) + ".",
        f"GPU: {gpu}." if gpu else "No GPU was seen.",
        "",
        head,
        "|---|---|---|---:|---:|---:|---:|---:|",
        *("| " + " | ".join(row) + " |" for row in rows(results)),
        "",
        f"![Largest difference of parameters over the steps]({picture.name})",
        "",
        *_loop_lines(path, loops, decided),
    ]
    for result in exceeded:
        step, leaf = result.lockstep.first_excess
        lines.append(f"- beyond its bound: {result.case}, {result.pair}: {leaf} at step {step}")
    path.write_text("\n".join(lines).rstrip() + "\n")


def _loop_lines(path: Path, loops: list[ClosedLoop], decided: list[Decision]) -> list[str]:
    if not loops:
        return []
    picture = path.with_name(f"{path.stem}_closed_loop.png")
    plot_loops(picture, loops)
    bands = " and ".join(
        f"{band.relative:g} of the loss plus {band.absolute:g} in {dtype}"
        for dtype, band in CLOSED_LOOP.items()
    )
    visible = " and ".join(f"{bound:.1e} in {dtype}" for dtype, bound in VISIBLE.items())
    return [
        "## Closed loop",
        "",
        "A convolutional network learns handwritten digits in Flax NNX and in PyTorch, from the same",
        "weights and batches, each side on its own gradients. The band of the losses is",
        f"{bands}. Rounding counts as visible",
        f"where some weight differs by more than {visible}.",
        "EmoClan, EmoNeco and EmoZeal choose their rule by the scalar. EmoLynx, EmoLynx36, EmoCats3 and",
        "EmoVoid take signs. EmoTion does so too, and divides by the difference of nearly equal sums. A",
        "rounding difference grows and in the end changes such a choice or such a quotient, and each",
        "processor rounds in its own way. The band holds only while no rounding can change it.",
        "The second table has these members. RefAdamWMiniScheduleFree has no emotion, and the example",
        "does not train it.",
        "",
        "| " + " | ".join(LOOP_COLUMNS) + " |",
        "|---|---|---:|---:|---:|---:|---:|",
        *("| " + " | ".join(row) + " |" for row in loop_rows(loops)),
        "",
        *_decision_lines(decided),
        f"![Loss in both frameworks, and the difference]({picture.name})",
        "",
    ]


def _decision_lines(decided: list[Decision]) -> list[str]:
    if not decided:
        return []
    return [
        "These members are held for less than all steps. The last column compares no frameworks: it is",
        "PyTorch against PyTorch, both in float64, one of them with noise of the size of the roundings of",
        "the dtype, on scores, gradients and the sum of the norms. Above 1, PyTorch leaves the band of its",
        "own training: the reason is the rule of the member, and not a difference of the packages.",
        "",
        "| optimizer | dtype | held for steps | PyTorch against itself, of band |",
        "|---|---|---:|---:|",
        *(f"| {name} | {dtype} | {steps} | {share:.3g} |" for name, dtype, steps, share in decided),
        "",
    ]


def plot_loops(path: Path, loops: list[ClosedLoop]) -> None:
    """Draws both losses over each other, and below them how far losses and weights are apart."""
    names = list(dict.fromkeys(loop.optimizer for loop in loops))
    rows, across = -(-len(names) // 3), min(3, len(names))
    figure = Figure(figsize=(3.6 * across, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 * rows, across, squeeze=False, sharex=True)
    for index, name in enumerate(names):
        above, below = panels[index // 3 * 2 :, index % 3][:2]
        own = [loop for loop in loops if loop.optimizer == name]
        above.plot(own[-1].flax_loss, color="#d55e00", linewidth=2.5, label="Flax")
        above.plot(own[-1].torch_loss, color="#0072b2", linewidth=1.0, label="PyTorch")
        for loop in own:
            style = "-" if loop.dtype == "float32" else ":"
            below.plot(np.maximum(loop.gap, 1e-17), style, color="#0072b2", label=f"loss, {loop.dtype}")
            below.plot(
                np.maximum(loop.weights, 1e-17), style, color="#d55e00", label=f"weight, {loop.dtype}"
            )
        above.set_title(name)
        below.set_yscale("log")
        below.set_ylim(1e-18, 1.0)
        for axes in (above, below):
            axes.grid(alpha=0.3)
    for place in range(len(names), rows * across):
        for axes in panels[place // 3 * 2 :, place % 3][:2]:
            axes.set_axis_off()
    for axes in panels[-1]:
        axes.set_xlabel("step")
    for row, axes in enumerate(panels[:, 0]):
        axes.set_ylabel("largest difference" if row % 2 else "loss")
    lines = [line for axes in panels[:2, 0] for line in axes.lines]
    figure.legend(handles=lines, loc="outside upper center", ncols=2 * across, fontsize="small")
    figure.savefig(path, dpi=80)


def plot(path: Path, results: list[Any]) -> None:
    """Draws the largest difference of parameters over the steps, a panel for each dtype."""
    dtypes = [dtype for dtype in LOCKSTEP if any(result.case.dtype == dtype for result in results)]
    names = list(dict.fromkeys(result.case.optimizer for result in results))
    # With more names than colours, the lines after the first ten are dashed.
    styles = list(itertools.product(("-", "--", ":"), matplotlib.color_sequences["tab10"]))
    figure = Figure(figsize=(4.2 * len(dtypes), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, dtype in zip(figure.subplots(1, len(dtypes), squeeze=False)[0], dtypes, strict=True):
        for name, (style, colour) in zip(names, itertools.cycle(styles), strict=False):
            runs = [
                [max(step.absolute, 1e-20) for step in result.lockstep.steps]
                for result in results
                if result.case.dtype == dtype and result.case.optimizer == name
            ]
            if runs:
                longest = itertools.zip_longest(*runs, fillvalue=0.0)  # Some runs are shorter.
                axes.plot([max(values) for values in longest], style, color=colour, label=name)
        axes.set_yscale("log")
        axes.set_title(dtype)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("largest difference of a parameter\n(zero is drawn as 1e-20)")
    lines = figure.axes[0].lines
    figure.legend(handles=lines, loc="outside lower center", ncols=2 * len(dtypes), fontsize="small")
    figure.savefig(path, dpi=120)
