"""The plan of runs: the cells of each study, each one compiled program."""

from typing import NamedTuple

from benchmarks.quality.contenders import BOUNDED, CONTENDERS, DIRECTIONS, FIRST, LEFT_OUT
from benchmarks.quality.tasks import tasks
from benchmarks.quality.training import NO_TROUBLE, Trouble

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
STEPS = 300
LONG = 10_000
FEW = ("emo_pilot", "adamw")


class Cell(NamedTuple):
    """One program: a task and a contender, with all its learning rates and seeds.

    Attributes:
        study: the study that it belongs to, one of `STUDIES`.
        task: the name of a task.
        contender: the name of a contender.
        rates: the learning rates.
        seeds: the seeds of first weights and batches.
        steps: how many steps a run takes.
        troubles: the disturbances, by name.
        batch_size: how many examples make one step; 0 for the usual number of the task.
    """

    study: str
    task: str
    contender: str
    rates: tuple[float, ...] = RATES
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = STEPS
    troubles: tuple[tuple[str, Trouble], ...] = (("none", NO_TROUBLE),)
    batch_size: int = 0

    @property
    def key(self) -> str:
        """The name of the cell in the store."""
        size = f", batch {self.batch_size}" if self.batch_size else ""
        runs = f"{len(self.seeds)} seeds, {self.steps} steps{size}"
        return f"{self.study}: {self.task}, {self.contender}, {runs}"


TROUBLES = (
    ("none", NO_TROUBLE),
    ("one gradient x 100", Trouble(spike_step=150.0, spike=100.0)),
    ("20 batches of random labels", Trouble(first=150.0, last=170.0)),
    ("one bad batch: inputs x 30, random labels", Trouble(first=150.0, last=151.0, loud=30.0)),
    ("2 % of the losses and gradients are NaN", Trouble(missing=0.02)),
    ("loss x 0.001", Trouble(unit=1e-3)),
    ("loss x 0.01", Trouble(unit=1e-2)),
    ("loss x 10", Trouble(unit=10.0)),
    ("loss x 100", Trouble(unit=100.0)),
)
SPIKES = TROUBLES[:4]
"""The run without trouble, and the disturbances that gate and cut are for."""

BATCH_SIZES = (4, 16, 64, 256)


LOSSES_OVER_RATES = ("yardstick", "other")
"""The kinds of tasks of the study over learning rates."""

HELD_BACK = ("held back", "held back later")
"""The kinds of tasks that nobody looked at before the rule was fixed."""


def cells(*, held_back: bool = False) -> list[Cell]:
    """Returns all cells, the most telling first.

    Args:
        held_back: whether to run the tasks that were held back; once, after the rule is fixed.
    """
    kinds = LOSSES_OVER_RATES + (HELD_BACK if held_back else ())
    names = [name for name, task in tasks().items() if task.kind in kinds]
    # Tasks that take long to train come last.
    names.sort(key=lambda name: name in {"cnn", "transformer", "lora", "recurrent", "patches"})
    rivals = [name for name in CONTENDERS if name not in FEW and not name.startswith("emo_")]
    members = [name for name in CONTENDERS if name not in FEW and name.startswith("emo_")]
    first, rest = (
        [Cell("rates", task, contender) for contender in some for task in names]
        for some in (FEW, (*rivals, *members))
    )
    others = [*_long(), *_troubles(), *_fine_tuning(), *_left_out(), *_directions(), *_large()]
    others += [Cell("first version", task, FIRST, (1e-4, 1e-3, 1e-2, 1e-1)) for task in names]
    return [*first, *others, *(_many_seeds() if held_back else ()), *rest]


def _many_seeds() -> list[Cell]:
    # A single run of this task ends anywhere between half and twice the mean.
    return [Cell("seeds", "patches", name, seeds=tuple(range(12))) for name in FEW]


def _long() -> list[Cell]:
    rates = (1e-4, 1e-3, 1e-2, 1e-1)
    return [Cell("long", "noisy", name, rates, (0,), LONG) for name in FEW]


def _troubles() -> list[Cell]:
    found = []
    for name in FEW:
        found.append(Cell("troubles", "mlp", name, (1e-3, 1e-2), troubles=TROUBLES))
        found += [Cell("batches", "mlp", name, (1e-3, 1e-2), batch_size=size) for size in BATCH_SIZES]
    return found


def _fine_tuning() -> list[Cell]:
    rates = (1e-5, 1e-4, 1e-3, 1e-2)
    return [Cell("fine-tuning", "finetune", name, rates, (0,)) for name in (*FEW, *BOUNDED)]


def _left_out() -> list[Cell]:
    rates, some = (1e-4, 1e-3, 1e-2, 1e-1), ("mlp", "autoencoder", "teacher", "factors", "wave")
    calm = [Cell("left out", task, name, rates, (0, 1)) for name in LEFT_OUT for task in some]
    rough = [Cell("left out, spikes", "mlp", name, (1e-3, 1e-2), troubles=SPIKES) for name in LEFT_OUT]
    return calm + rough


def _directions() -> list[Cell]:
    rates = (1e-4, 1e-3, 1e-2, 1e-1)
    names = [name for name, task in tasks().items() if task.kind in LOSSES_OVER_RATES]
    return [Cell("directions", task, name, rates, (0, 1)) for name in DIRECTIONS for task in names]


def _large() -> list[Cell]:
    # One learning rate at a time: batches of products of matrices are slow on a CPU.
    rates = {"adamw": (3e-4, 1e-3, 3e-3), "emo_pilot": (1e-3, 1e-2)}
    return [Cell(f"large, {rate:g}", "large", name, (rate,), (0,)) for name in FEW for rate in rates[name]]
