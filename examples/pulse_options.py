"""The effect of `steady`, `spike_limit` and `loss_unit` on the pulse of the third generation.

Run with `python -m examples.pulse_options`, in some seconds. Losses are made, not trained: a flat loss with
1 % noise and one spike, a falling loss in several units, and losses that are not finite. `python -m
examples.expectations` prints the same tables at its end.
"""

import argparse

from examples.command import answer_early, positive_int


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m examples.pulse_options", description=__doc__)
    parser.add_argument(
        "--seeds", type=positive_int, default=5, help="of the noise; shows medians (default 5)"
    )
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("torch", "rich"))

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import emo_torch

CHOICES: dict[str, dict[str, Any]] = {
    "as published": {},
    "steady": {"steady": True},
    "steady, spike_limit=3": {"steady": True, "spike_limit": 3.0},
}
SPIKES = (2.5, 3.0, 6.0, 30.0)
AT = 300
"""The step of the spike."""
BEHIND = (-1, 0, 20, 300)
"""The steps that are shown, counted from the spike."""
UNITS = (1e-6, 1e-3, 1.0, 1e3)


def flat(seed: int, steps: int = 601) -> list[float]:
    """Returns a loss of 1 with 1 % noise."""
    generator = torch.Generator().manual_seed(seed)
    noise: list[float] = (
        1.0 + 0.01 * torch.randn(steps, generator=generator, dtype=torch.float64)
    ).tolist()
    return noise


def falling(seed: int, steps: int = 601) -> list[float]:
    """Returns a loss that falls from 1 to 0.02, with 1 % noise."""
    return [noise * (0.02 + 0.98 * 0.98**step) for step, noise in enumerate(flat(seed, steps))]


def pulses(losses: Sequence[float], **choice: Any) -> list[emo_torch.PulseState]:
    """Returns the state of the pulse behind each loss, at a scope of 1."""
    state = emo_torch.init_pulse(torch.float64)
    states = []
    for loss in losses:
        state = emo_torch.feel_pulse(state, torch.tensor(loss, dtype=torch.float64), **choice)
        states.append(state)
    return states


def spikes_table(seeds: int) -> Table:
    """Shows the learning rate before, at and behind one spike of a flat loss."""
    table = Table(title="Pulse before, at, 20 and 300 steps behind one spike of a flat loss")
    table.add_column("spike")
    for name in CHOICES:
        table.add_column(name)
    for spike in SPIKES:
        cells = []
        for choice in CHOICES.values():
            runs = []
            for seed in range(seeds):
                losses = flat(seed)
                losses[AT] *= spike
                states = pulses(losses, **choice)
                runs.append([float(states[AT + step].pulse) for step in BEHIND])
            cells.append(" ".join(f"{statistics.median(column):.1e}" for column in zip(*runs, strict=True)))
        table.add_row(f"x {spike:g}", *cells)
    return table


def first_stop(states: Sequence[emo_torch.PulseState]) -> str:
    """Returns the first step with a stop signal, or "never"."""
    stops = (str(step) for step, state in enumerate(states) if bool(state.should_stop))
    return next(stops, "never")


def units_table() -> Table:
    """Shows the first stop signal, and how far pulses differ, for a falling loss in several units."""
    table = Table(title="A falling loss in several units: first stop signal, pulses differ by at most")
    table.add_column("loss_unit")
    for unit in UNITS:
        table.add_column(f"loss x {unit:g}")
    for loss_unit in (None, "first"):
        plain = pulses(falling(0), loss_unit=loss_unit)
        cells = []
        for unit in UNITS:
            states = pulses([unit * loss for loss in falling(0)], loss_unit=loss_unit)
            pairs = zip(states, plain, strict=True)
            differ = max(abs(float(state.pulse / other.pulse) - 1.0) for state, other in pairs)
            cells.append(f"step {first_stop(states)}, {differ:.0e}")
        table.add_row(repr(loss_unit), *cells)
    return table


def not_finite_table() -> Table:
    """Shows that a loss that is not finite leaves the pulse of the other losses as it is."""
    table = Table(title="One loss that is not finite, at step 300 of a falling loss")
    for heading in ("loss", "held", "finite pulses", "final pulse", "without that loss"):
        table.add_column(heading)
    losses = falling(0)
    without = pulses(losses)[-1]
    for wrong in (float("nan"), float("inf"), -float("inf")):
        states = pulses([*losses[:AT], wrong, *losses[AT:]])
        finite = sum(bool(torch.isfinite(state.pulse)) for state in states)
        row = (str(wrong), str(int(states[-1].held)), f"{finite} of {len(states)}")
        table.add_row(*row, f"{float(states[-1].pulse):.6e}", f"{float(without.pulse):.6e}")
    return table


def print_tables(console: Console, seeds: int) -> None:
    """Prints all tables."""
    for table in (spikes_table(seeds), units_table(), not_finite_table()):
        console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints all tables, with the given command-line arguments or with the arguments of the process."""
    given = options().parse_args(arguments)
    print_tables(Console(width=112), given.seeds)


if __name__ == "__main__":
    main()
