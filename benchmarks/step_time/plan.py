"""The plan of measurements: the optimizers, their rivals, the repetitions and the bounds."""

import itertools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.step_time.members import (
    FACTORED,
    MEMBERS,
    MIDDLING,
    NO_EMOTION,
    OTHERS,
    QUIET,
    SECOND,
    SHADOW_GROUP,
    STEERED,
    SWITCHED,
    THIRD,
    WHOLE,
    read_before,
    written,
)
from benchmarks.step_time.problems import PROBLEMS

STANDSTILL = "standstill"
"""Who makes a step that returns parameters, and a state like `optax.lion`'s, as they were given (JAX)."""

LEARNING_RATE = 1e-6
"""So small that nothing moves far."""

Options = Mapping[str, Any]
NO_OPTIONS: Options = MappingProxyType({})


class Variant(NamedTuple):
    """One optimizer as it is measured, or a floor.

    Attributes:
        name: its name in tables.
        make: the name of a member, the name of an optimizer in `torch.optim` or `optax`, "floor" or
            `STANDSTILL`.
        options: its arguments besides parameters and learning rate.
        sizes: the sizes of the emotion scalar to measure at; `None` for who has no emotion.
        shadow: whether it has a shadow, so that it must blend where |s| > 0.1.
        donate: whether parameters and state are donated (JAX).
        written: how many streams a floor reads and writes, beside the gradient that it reads.
        before: how many streams a pass of a floor reads before that.
    """

    name: str
    make: str
    options: Options = NO_OPTIONS
    sizes: tuple[float | None, ...] = (None,)
    shadow: bool = False
    donate: bool = True
    written: int = 0
    before: int = 0

    @property
    def is_family(self) -> bool:
        """Whether it is a member of the family."""
        return self.make in MEMBERS

    def rows(self) -> list[tuple[str, float | None]]:
        """Returns the name of each of its rows, with the size of the scalar."""
        several = len(self.sizes) > 1
        return [(f"{self.name} at {size}" if several else self.name, size) for size in self.sizes]


class Group(NamedTuple):
    """Variants that run interleaved, the first of them the baseline: as many as fit into memory.

    Attributes:
        variants: the variants.
        is_slow: whether fewer rounds will do, as it is shown for contrast.
        problems: where it is measured.
    """

    variants: tuple[Variant, ...]
    is_slow: bool = False
    problems: tuple[str, ...] = tuple(PROBLEMS)


def _member(make: str, framework: str) -> Variant:
    member = MEMBERS[make]
    name = member.title if framework == "torch" else make
    return Variant(name, make, sizes=member.sizes, shadow=member.shadow)


def _floor(written: int, before: int = 0) -> Variant:
    name = f"floor: {before + written + 1} read, {written} written"
    return Variant(name, "floor", written=written, before=before)


def floor_of(variant: Variant, size: float | None) -> str:
    """Returns the name of the floor under a variant: that of the streams that its rule reads and writes."""
    if variant.written or variant.make == STANDSTILL:
        return variant.name
    blends = variant.shadow and size is not None and size > 0.1
    averages = variant.make in STEERED and variant.options.get("average", True)
    return _floor(written(variant.make, size) + blends + averages, read_before(variant.make)).name


_FUSED = Variant("AdamW(fused=True)", "AdamW", MappingProxyType({"fused": True}))
_SHADOW = MappingProxyType({"use_shadow": True})
_NO_AVERAGE = MappingProxyType({"average": False})
# The default rate: the squares of the weights are needed if a ceiling can be below the learning rate.
_USUAL_RATE = MappingProxyType({"lr": 1e-2})
_FOREACH, _FOR_LOOP = MappingProxyType({"foreach": True}), MappingProxyType({"foreach": False})
_ADAMW, _LION, _SGD, _ADAFACTOR = (
    Variant(f"optax.{name}", name) for name in ("adamw", "lion", "sgd", "adafactor")
)


def _members(framework: str, *makes: str) -> tuple[Variant, ...]:
    return tuple(_member(make, framework) for make in makes)


def _cousins(*makes: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(cousin for make in makes if (cousin := MEMBERS[make].cousin)))


GROUPS: dict[str, dict[str, Group]] = {
    "torch": {
        "second generation": Group(
            (
                *(_FUSED, *_members("torch", *SECOND)),
                *(_floor(3), _floor(2), _floor(1)),
            )
        ),
        "shadow": Group(
            (
                *(
                    _FUSED,
                    Variant("EmoSens with shadow", "emo_sens", _SHADOW, (QUIET, MIDDLING), shadow=True),
                ),
                *(*_members("torch", *SHADOW_GROUP), _floor(4)),
            )
        ),
        "third generation": Group(
            # The members that the third generation is held to run beside it, and so do their floors.
            (
                *(_FUSED, *_members("torch", *THIRD, *_cousins(*THIRD))),
                *(_floor(2, 1), _floor(1, 1), _floor(3), _floor(2), _floor(1)),
            )
        ),
        "steered": Group(
            (
                *(_FUSED, *(each._replace(options=_USUAL_RATE) for each in _members("torch", *STEERED))),
                Variant(
                    "EmoPilot(average=False)", "emo_pilot", MappingProxyType({**_NO_AVERAGE, **_USUAL_RATE})
                ),
                Variant(
                    "EmoPilot(average=False, lr=1e-3)",
                    "emo_pilot",
                    MappingProxyType({**_NO_AVERAGE, "lr": 1e-3}),
                ),
                *(_floor(4, 1), _floor(3, 1)),
            )
        ),
        "first generation": Group((_FUSED, *_members("torch", *OTHERS))),
        "switched rules": Group((_FUSED, *_members("torch", *SWITCHED))),
        "no emotion": Group((_FUSED, *_members("torch", *NO_EMOTION))),
        "contrast": Group(
            (
                _FUSED,
                Variant("AdamW(foreach=True)", "AdamW", _FOREACH),
                Variant("AdamW(foreach=False)", "AdamW", _FOR_LOOP),
                Variant("Adafactor", "Adafactor"),
                Variant("EmoSens(foreach=True)", "emo_sens", _FOREACH, (QUIET,)),
                Variant("EmoSens(foreach=False)", "emo_sens", _FOR_LOOP, (QUIET,)),
            ),
            is_slow=True,
        ),
    },
    "jax": {
        "second generation": Group(
            # optax.sgd without a momentum is the least that a step under XLA can do: one loop a leaf.
            (
                *(_ADAMW, _LION, _SGD, Variant("a step that does nothing", STANDSTILL)),
                *(*_members("jax", *WHOLE), _floor(3), _floor(2)),
            )
        ),
        "factors": Group((_ADAMW, _ADAFACTOR, *_members("jax", *FACTORED), _floor(1))),
        "shadow": Group(
            (
                *(
                    _ADAMW,
                    Variant("emo_sens with shadow", "emo_sens", _SHADOW, (QUIET, MIDDLING), shadow=True),
                ),
                *(*_members("jax", *SHADOW_GROUP), _floor(4)),
            )
        ),
        "third generation": Group((_ADAMW, *_members("jax", *THIRD), _floor(2, 1), _floor(1, 1))),
        "steered": Group(
            (
                *(_ADAMW, *_members("jax", *STEERED)),
                *(Variant("emo_pilot, no average", "emo_pilot", _NO_AVERAGE), _floor(4, 1), _floor(3, 1)),
            )
        ),
        "first generation": Group((_ADAMW, *_members("jax", *OTHERS))),
        "switched rules": Group((_ADAMW, *_members("jax", *SWITCHED))),
        "no emotion": Group((_ADAMW, *_members("jax", *NO_EMOTION))),
        "donation": Group(
            (
                *(_ADAMW, _ADAMW._replace(name="optax.adamw, not donated", donate=False)),
                *_members("jax", "emo_sens"),
                _member("emo_sens", "jax")._replace(name="emo_sens, not donated", donate=False),
            ),
            problems=("gpt2", "tiny"),
        ),
    },
}
"""For each framework the groups by name. Who is in several of them counts, in tables, in the first."""

COMPILED = ("adamw", "emo_sens", "emo_cats", "emo_airy")
"""Whose compilation is timed on its own, the baseline first (JAX)."""
TRACED = ("adamw", "lion", "adafactor", *MEMBERS)
"""Whose traces are counted while learning rate, loss and step change (JAX)."""
GRAPHS = ("emo_sens", "emo_cats", "emo_airy")
"""The members whose graphs under `torch.compile` are counted."""


class Bound(NamedTuple):
    """The bound of a full step.

    Attributes:
        title: the name of the measurement.
        framework: "torch" or "jax".
        device: "cpu" or "cuda".
        problem: the name of a problem.
        row: the row that is held.
        against: the row that it is divided by.
        at_least: the bound of the ratio.
        aim: the wanted ratio.
    """

    title: str
    framework: str
    device: str
    problem: str
    row: str
    against: str
    at_least: float
    aim: float


def _torch_bounds() -> Iterator[Bound]:
    for row, bounds in {
        "EmoSens": {"gpt2": (1.10, 0.98), "lora": (0.65, 0.40)},
        "EmoCats": {"gpt2": (0.80, 0.71), "lora": (0.50, 0.35)},
        "EmoAiry": {"gpt2": (0.85, 0.57), "lora": (0.65, 0.42)},
        f"EmoSens with shadow at {MIDDLING}": {"gpt2": (1.6, 1.29)},
        # Streams: 5 read and 3 written, and one more of each for the average; AdamW has 4 and 3.
        "EmoPilot": {"gpt2": (1.75, 1.43)},
        "EmoPilot(average=False)": {"gpt2": (1.35, 1.14), "lora": (0.70, 0.46)},
    }.items():
        for problem, numbers in bounds.items():
            title = row.replace(f" at {MIDDLING}", ", blending")
            yield Bound(title, "torch", "cpu", problem, row, _FUSED.name, *numbers)


def _jax_bounds() -> Iterator[Bound]:
    for row, (against, *numbers) in {
        "emo_sens": (_ADAMW.name, 1.10, 1.00),
        "emo_cats": (_LION.name, 0.5, 0.35),
        "emo_airy": (_ADAFACTOR.name, 0.8, 0.65),
        "emo_pilot": (_ADAMW.name, 1.4, 1.4),
    }.items():
        for problem in ("gpt2", "lora"):
            yield Bound(row, "jax", "cpu", problem, row, against, *numbers)


def _cuda_bounds() -> Iterator[Bound]:
    for row, numbers in {"EmoSens": (1.10, 1.00), "EmoCats": (0.80, 0.71), "EmoAiry": (0.75, 0.57)}.items():
        yield Bound(row, "torch", "cuda", "gpt2", row, _FUSED.name, *numbers)
    pairs = {"emo_sens": _ADAMW.name, "emo_cats": _LION.name, "emo_airy": _ADAFACTOR.name}
    for row, against in pairs.items():
        yield Bound(row, "jax", "cuda", "gpt2", row, against, 1.05, 0.95)


BOUNDS = (*_torch_bounds(), *_jax_bounds(), *_cuda_bounds())
MOST_TEMPORARIES = 0.02
"""The memory that a step may take beyond the state, as a share of the parameters."""
MOST_OF_COUSIN = 2.0
"""How many times its cousin's ratio a member's may be."""
MOST_OF_THIRD = 1.1
"""The same for a member of the third generation."""
MOST_COMPILATION = 1.25
"""How many times the baseline's the compile time of a member may be."""


class Settings(NamedTuple):
    """The options of the command line.

    Attributes:
        frameworks: of "torch" and "jax".
        threads: numbers of threads.
        problems: names of problems.
        device: "cpu" or "cuda".
        rounds: how many rounds to measure, not counting those in which the machine was busy.
        slow_rounds: the same for the rows that are shown for contrast.
        leaves: numbers of leaves to time compilation with (JAX).
        compilations: how often each is compiled for that.
        traced: whose traces to count, of `TRACED` (JAX).
        graphs: whether to count the graphs of `torch.compile`.
        full: whether JAX's rows without a bound are measured with every number of threads, too, and
            not just with the most: compiling them takes minutes.
        groups: names of groups, of which alone the steps are measured; empty for all that there is.
    """

    frameworks: tuple[str, ...]
    threads: tuple[int, ...]
    problems: tuple[str, ...]
    device: str
    rounds: int
    slow_rounds: int
    leaves: tuple[int, ...]
    compilations: int
    traced: tuple[str, ...]
    graphs: bool
    full: bool
    groups: tuple[str, ...] = ()


class Cell(NamedTuple):
    """A unit of measuring and storing.

    Attributes:
        framework: "torch" or "jax".
        device: "cpu" or "cuda".
        threads: the number of threads.
        kind: "steps", "compilation", "traces" or "graphs".
        problem: the name of a problem; a number of leaves for "compilation".
        group: the name of a group, for "steps"; of an optimizer, for "traces".
        rounds: how many rounds.
    """

    framework: str
    device: str
    threads: int
    kind: str
    problem: str
    group: str
    rounds: int

    @property
    def key(self) -> str:
        """The key of the cell in the store."""
        return ", ".join(str(field) for field in self if field != "")

    @property
    def process(self) -> tuple[str, str, int]:
        """The settings that cells of one process share."""
        return self.framework, self.device, self.threads


def cells(settings: Settings) -> list[Cell]:
    """Returns all cells to measure, the cells of one process in a row."""
    result = []
    for framework, threads in itertools.product(settings.frameworks, settings.threads):
        here = (framework, settings.device, threads)
        for problem in settings.problems:
            for name, group in GROUPS[framework].items():
                if problem not in group.problems or (settings.groups and name not in settings.groups):
                    continue
                if framework == "jax" and threads != max(settings.threads) and not settings.full:
                    keys = {key for variant in group.variants for key, _ in variant.rows()}
                    if not any({bound.row, bound.against} <= keys for bound in BOUNDS):
                        continue
                rounds = settings.slow_rounds if group.is_slow else settings.rounds
                more = 1 if group.is_slow else PROBLEMS[problem].more_rounds
                result.append(Cell(*here, "steps", problem, name, more * rounds))
        if threads != max(settings.threads) or settings.groups:
            continue
        if framework == "jax":
            result += [Cell(*here, "traces", "tiny", name, 1) for name in settings.traced]
            for leaves in settings.leaves:
                result.append(Cell(*here, "compilation", str(leaves), "", settings.compilations))
        elif settings.graphs:
            result.append(Cell(*here, "graphs", "tiny", "", 1))
    return result
