"""Draws the pictures of the site: `python -m website.pictures`.

Runs of a small network on made-up data, a few seconds each, in PyTorch on one thread. The pictures of
`docs/pictures` show what the emotion does, and `docs/members` has a run of each member.
"""

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY, RED = "#0072b2", "#d55e00", "#009e73", "#7f7f7f", "#b2182b"
"""The palette of all pictures here; colour-blind readers can tell the colours apart."""
STEPS = 300
BAD_BATCH = 200
QUANTITIES = {
    "emotion/drive": ("emoDrive", "factor of a step (emoDrive)"),
    "emotion/scalar": ("scalar s", "scalar s, from -1 to 1"),
    "pulse/pulse": ("pulse", "pulse: learning rate of a step"),
    "pilot/learning_rate": ("step length", "learning rate of a step"),
}
"""What a member makes of the loss: the name in `get_metrics`, in the legend, and at the axis."""


class Run(NamedTuple):
    """A training run.

    Attributes:
        loss: the loss of the batch of each step.
        metrics: what `get_metrics` returned after each step; empty for an optimizer without an emotion.
    """

    loss: list[float]
    metrics: list[dict[str, float]]


def train(make: Any, *, bad_batch: int | None = None) -> Run:
    """Trains a network 8-32-1 on noisy batches of 32, always the same ones.

    Args:
        make: from parameters to an optimizer.
        bad_batch: the step whose targets are ten times as large.
    """
    import torch

    import emo_torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = make(model.parameters())
    is_ours = isinstance(optimizer, emo_torch.LossOptimizer)
    run = Run([], [])
    for step in range(STEPS):
        x = torch.randn(32, 8)
        y = 2.0 * torch.sin(x.sum(1, keepdim=True) / 2) + 0.2 * torch.randn(32, 1)
        y = 10.0 * y if step == bad_batch else y
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step(**({"loss": loss} if is_ours else {}))
        run.loss.append(loss.item())
        try:
            run.metrics.append(dict(emo_torch.get_metrics(optimizer)))
        except TypeError:
            continue
    return run


def figure(width: float, height: float) -> "Figure":
    """Returns an empty figure in which type can be read at half its size."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    mpl.rcParams.update({"font.size": 12, "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 1.8})
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(made: "Figure", path: Path) -> None:
    """Writes a picture as a small PNG of 64 colours."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    whole = io.BytesIO()
    made.savefig(whole, dpi=80)
    Image.open(whole).convert("RGB").quantize(64).save(path, optimize=True)
    print(path, flush=True)


def smooth(values: list[float]) -> list[float]:
    """Returns running means over the last 20 values."""
    return [sum(values[max(0, i - 19) : i + 1]) / min(i + 1, 20) for i in range(len(values))]


def draw_losses(axes: "Axes", runs: dict[str, tuple[Run, str]]) -> None:
    """Draws losses: pale for each batch, in full colour the mean of the last 20; start and end marked."""
    for label, (run, colour) in runs.items():
        line = smooth(run.loss)
        axes.plot(run.loss, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(line, color=colour, label=label)
        axes.plot(0, line[0], "o", color=colour)
        axes.plot(len(line) - 1, line[-1], "s", color=colour)
        axes.annotate(
            f"{line[-1]:.2g}", (len(line) - 1, line[-1]), (6, 0), textcoords="offset points", va="center"
        )
    axes.set(yscale="log", xlabel="step", ylabel="loss (mean squared error)")
    axes.margins(x=0.09)
    axes.legend(loc="best")


def member(name: str, rival: Run) -> "Figure":
    """Draws a run of a member: its loss beside AdamW's, and its number made from the loss."""
    import emo_torch
    from emo_torch._members.by_name import MEMBERS

    run = train(lambda params: emo_torch.create_optimizer(name, params))
    title = MEMBERS[name].make.__name__
    made = figure(10, 4) if run.metrics else figure(6, 4)
    panels = made.subplots(1, 2 if run.metrics else 1, squeeze=False)[0]
    draw_losses(panels[0], {f"{title}, defaults": (run, BLUE), "AdamW, lr 1e-3": (rival, GREY)})
    made.suptitle(title)
    if run.metrics:
        key = next(key for key in QUANTITIES if key in run.metrics[0])
        values = [metrics[key] for metrics in run.metrics]
        panels[1].plot(values, color=ORANGE, label=QUANTITIES[key][0])
        panels[1].set(xlabel="step", ylabel=QUANTITIES[key][1])
        if key == "emotion/scalar":
            panels[1].set_ylim(-1.05, 1.05)
            panels[1].axhline(0, color="black", linewidth=0.8)
        panels[1].legend(loc="best")
    return made


def emotion() -> "Figure":
    """Draws the way from the loss to the step scale, with one bad batch."""
    import emo_torch

    run = train(lambda params: emo_torch.EmoSens(params, lr=3e-3, gain=1.0), bad_batch=BAD_BATCH)
    made = figure(9, 8)
    top, middle, bottom = made.subplots(3, 1, sharex=True)
    top.plot(run.loss, color=GREY, alpha=0.5, linewidth=1, label="loss of the batch")
    top.plot(
        [m["emotion/short"] for m in run.metrics], color=BLUE, label="short average (30 % of each loss)"
    )
    top.plot(
        [m["emotion/long"] for m in run.metrics], color=ORANGE, label="long average (1 % of each loss)"
    )
    top.set(yscale="log", ylabel="loss")
    middle.plot(
        [m["emotion/scalar"] for m in run.metrics], color=RED, label="s = tanh(gain (short - long))"
    )
    middle.axhline(0, color="black", linewidth=0.8)
    middle.set(ylabel="scalar s", ylim=(-1.05, 1.05))
    bottom.plot([m["emotion/step_scale"] for m in run.metrics], color=GREEN, label="step scale 1 - |s|")
    bottom.set(ylabel="factor of the step", xlabel="step", ylim=(-0.05, 1.05))
    for axes in (top, middle, bottom):
        axes.axvline(BAD_BATCH, color="black", linestyle=":", label="bad batch" if axes is top else None)
        axes.legend(loc="best")
    made.suptitle("EmoSens, lr 3e-3, gain 1: from the loss to the step")
    return made


def gain() -> "Figure":
    """Draws the step scale over the difference of the averages, and runs with three gains."""
    import numpy as np

    import emo_torch

    made = figure(11, 4.4)
    left, right = made.subplots(1, 2)
    difference = np.linspace(-2, 2, 401)
    rival = train(lambda params: __import__("torch").optim.AdamW(params, lr=1e-3))
    runs: dict[str, tuple[Run, str]] = {"AdamW": (rival, GREY)}
    for value, colour in ((5.0, RED), (0.5, ORANGE), (0.05, BLUE)):
        left.plot(difference, 1 - abs(np.tanh(value * difference)), color=colour, label=f"gain {value:g}")
        runs[f"EmoSens, gain {value:g}"] = (
            train(lambda params, value=value: emo_torch.EmoSens(params, lr=1e-3, gain=value)),
            colour,
        )
    left.set(
        xlabel="short average - long average (unit of the loss)",
        ylabel="step scale 1 - |s|",
        ylim=(0, 1.05),
    )
    left.legend(loc="center right")
    draw_losses(right, runs)
    right.set_title("all at a learning rate of 1e-3", fontsize=12)
    return made


def pilot() -> "Figure":
    """Draws EmoPilot and AdamW from four learning rates."""
    import torch

    import emo_torch

    made = figure(11, 4.4)
    left, right = made.subplots(1, 2)
    rates = (1e-4, 1e-3, 1e-2, 1e-1)
    ends: dict[str, list[float]] = {"EmoPilot": [], "AdamW": []}
    for rate, colour in zip(rates, (BLUE, GREEN, ORANGE, RED), strict=True):
        run = train(lambda params, rate=rate: emo_torch.EmoPilot(params, lr=rate))
        rival = train(lambda params, rate=rate: torch.optim.AdamW(params, lr=rate))
        ends["EmoPilot"].append(smooth(run.loss)[-1])
        ends["AdamW"].append(smooth(rival.loss)[-1])
        lengths = [metrics["pilot/learning_rate"] for metrics in run.metrics]
        left.plot(lengths, color=colour, label=f"start at {rate:g}")
        left.plot(0, lengths[0], "o", color=colour)
    left.set(
        xlabel="step",
        ylabel="learning rate that EmoPilot takes",
        yscale="log",
        title="The step length finds its place",
    )
    left.legend(loc="best")
    for (label, values), colour, marker in zip(ends.items(), (BLUE, GREY), "os", strict=True):
        right.plot(rates, values, marker=marker, color=colour, label=label)
    right.set(xlabel="learning rate at the start", ylabel="loss, mean of the last 20 steps")
    right.set(xscale="log", yscale="log", title=f"The loss after {STEPS} steps")
    right.legend(loc="best")
    return made


def digits(make: Any, steps: int = 400) -> tuple[list[float], float]:
    """Trains a network 64-32-10 on handwritten digits; returns the losses, and the loss of the test."""
    import torch
    from sklearn.datasets import load_digits

    import emo_torch

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
    train, test = torch.randperm(len(x)).split([1437, 360])
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = make(model.parameters())
    losses = []
    for _ in range(steps):
        batch = train[torch.randint(len(train), (64,))]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step(**({"loss": loss} if isinstance(optimizer, emo_torch.LossOptimizer) else {}))
        losses.append(loss.item())
    if isinstance(optimizer, emo_torch.EmoPilot):
        optimizer.eval()
    with torch.no_grad():
        return losses, torch.nn.functional.cross_entropy(model(x[test]), y[test]).item()


def why() -> "Figure":
    """Draws EmoPilot and AdamW on handwritten digits: training from two rates, and the test over rates."""
    import torch

    import emo_torch

    rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    pilot = {rate: digits(lambda params, rate=rate: emo_torch.EmoPilot(params, lr=rate)) for rate in rates}
    adamw = {rate: digits(lambda params, rate=rate: torch.optim.AdamW(params, lr=rate)) for rate in rates}
    made = figure(11, 4.4)
    left, right = made.subplots(1, 2)
    for label, runs, colour in (("EmoPilot", pilot, BLUE), ("AdamW", adamw, GREY)):
        for rate, line in ((1e-4, ":"), (1e-3, "-")):
            values = smooth(runs[rate][0])
            left.plot(values, color=colour, linestyle=line, label=f"{label}, from {rate:g}")
            left.plot(0, values[0], "o", color=colour)
        marker = "o" if label == "EmoPilot" else "s"
        right.plot(rates, [runs[rate][1] for rate in rates], marker=marker, color=colour, label=label)
    left.set(xlabel="step", ylabel="loss (cross-entropy)", yscale="log", title="Training")
    right.set(xlabel="learning rate at the start", ylabel="test loss after 400 steps", title="Test")
    right.set(xscale="log", yscale="log")
    left.legend(loc="best")
    right.legend(loc="best")
    made.suptitle("Handwritten digits")
    return made


CONCEPTS = {"why": why, "emotion": emotion, "gain": gain, "pilot": pilot}


def main(arguments: list[str] | None = None) -> int:
    """Draws the pictures that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m website.pictures", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the pages")
    parser.add_argument(
        "--only",
        nargs="*",
        help="names of members (emo_sens or EmoSens) or of concepts (why, emotion, gain, pilot)",
    )
    given = parser.parse_args(arguments)
    import torch

    from emo_shared.names import plain_name
    from emo_torch._members.by_name import MEMBERS

    wanted = None if given.only is None else {plain_name(name) for name in given.only}
    unknown = (wanted or set()) - {plain_name(name) for name in (*MEMBERS, *CONCEPTS)}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    for name, draw in CONCEPTS.items():
        if wanted is None or name in wanted:
            save(draw(), given.output / "pictures" / f"{name}.png")
    rival = train(lambda params: torch.optim.AdamW(params, lr=1e-3))
    for name in MEMBERS:
        if wanted is None or plain_name(name) in wanted:
            save(member(name, rival), given.output / "members" / f"{name}.png")
    print(f"the pictures: {given.output / 'pictures'} and {given.output / 'members'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
