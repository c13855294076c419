"""The results as Markdown: bounds first, then everything that was measured."""

import statistics
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.step_time.members import MEMBERS
from benchmarks.step_time.plan import (
    BOUNDS,
    COMPILED,
    GROUPS,
    MOST_COMPILATION,
    MOST_OF_COUSIN,
    MOST_TEMPORARIES,
    Bound,
    Cell,
    Variant,
    floor_of,
)
from benchmarks.step_time.problems import PROBLEMS
from benchmarks.step_time.rounds import BUSY, is_quiet
from benchmarks.step_time.store import Found, Store

Place = tuple[str, str, str, int]
"""A framework, a device, a problem and a number of threads."""
FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX"}
NOT_MEASURED = "not measured"
NO_GPU = "open: no GPU was seen"
BUSY_MACHINE = "open: the machine was busy"
NOTHING = "–"  # noqa: RUF001


class Ratio(NamedTuple):
    """How a row's time compares with another's in the same rounds.

    Attributes:
        median: the median of the ratios.
        lower: their first quartile.
        upper: their third quartile.
        rounds: how many rounds.
        is_quiet: whether they were quiet, all of them.
    """

    median: float
    lower: float
    upper: float
    rounds: int
    is_quiet: bool

    def __str__(self) -> str:
        mark = "" if self.is_quiet else "*"
        return f"{self.median:.3g}{mark} [{self.lower:.3g}, {self.upper:.3g}]"


def chosen_rounds(found: Found, wanted: int) -> list[int]:
    """Returns the rounds that count: the quiet ones, or all where those are too few."""
    external = found["external"]
    quiet = [index for index, cores in enumerate(external) if is_quiet(cores)]
    return quiet if len(quiet) >= wanted else list(range(len(external)))


def ratio(found: Found, row: str, against: str, wanted: int) -> Ratio:
    """Returns how one row compares with another, round by round.

    Args:
        found: what was found for their cell.
        row: the row.
        against: the row that it is divided by.
        wanted: how many quiet rounds were asked for.
    """
    rounds = chosen_rounds(found, wanted)
    times, others = (np.array(found["seconds"][name])[rounds] for name in (row, against))
    lower, median, upper = np.quantile(times / others, [0.25, 0.5, 0.75])
    quiet = all(is_quiet(found["external"][index]) for index in rounds)
    return Ratio(float(median), float(lower), float(upper), len(rounds), quiet)


class Line(NamedTuple):
    """A row of a table, wherever it was measured.

    Attributes:
        variant: what was measured.
        size: the size of the emotion scalar.
        key: the row's name.
        group: the name of the group that counts for it.
    """

    variant: Variant
    size: float | None
    key: str
    group: str


def lines(framework: str) -> list[Line]:
    """Returns the lines of a framework's tables, each once."""
    found: dict[str, Line] = {}
    for name, group in GROUPS[framework].items():
        for variant in group.variants:
            for key, size in variant.rows():
                found.setdefault(key, Line(variant, size, key, name))
    return list(found.values())


class Results:
    """What was found, looked up by what it is about.

    Args:
        done: the cells that are finished.
        store: what was found for them.
    """

    def __init__(self, done: Sequence[Cell], store: Store) -> None:
        self.done = list(done)
        self._store = store

    def found(self, cell: Cell) -> Found:
        """Returns what was found for a cell."""
        return self._store.get(cell)

    def of_kind(self, kind: str) -> list[Cell]:
        """Returns the cells of a kind."""
        return [cell for cell in self.done if cell.kind == kind]

    def threads(self) -> list[int]:
        """Returns all numbers of threads."""
        return sorted({cell.threads for cell in self.done})

    def steps(self, framework: str, device: str, problem: str, threads: int, group: str) -> Cell | None:
        """Returns the cell of a group, if it is finished."""
        wanted = (framework, device, threads, "steps", problem, group)
        return next((cell for cell in self.done if cell[:-1] == wanted), None)

    def ratio(
        self, framework: str, device: str, problem: str, threads: int, key: str, against: str | None = None
    ) -> Ratio | None:
        """Returns how a row compares with its baseline, or with another row that ran beside it."""
        for name, group in GROUPS[framework].items():
            cell = self.steps(framework, device, problem, threads, name)
            seconds = self.found(cell)["seconds"] if cell else {}
            base = against or group.variants[0].name
            if cell and key in seconds and base in seconds:
                return ratio(self.found(cell), key, base, cell.rounds)
        return None


def write(path: Path, done: Sequence[Cell], store: Store) -> str:
    """Writes all tables into a file, and returns its text."""
    results = Results(done, store)
    parts = [
        "# What a step costs",
        _wrap(
            "Written by `python -m benchmarks.step_time`, which says with `--help` what else it measures."
        ),
        _introduction(results, store.environment),
        "## The bounds",
        bounds(done, store),
        *_family(results),
        "![Ratios of every row](ratios.png)",
        *_tables(results),
        *_compilation(results),
        *_traces(results),
        *_donation(results),
        *_graphs(results),
    ]
    text = "\n\n".join(parts) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return text


def _introduction(results: Results, environment: dict[str, str]) -> str:
    measured = results.of_kind("steps")
    founds = [results.found(cell) for cell in measured]
    loads = [found["load"] for found in founds if found["load"] is not None]
    external = [cores for found in founds for cores in found["external"]]
    quiet = sum(map(is_quiet, external))
    names = {**environment, "code": f"digest {environment.get('code', '')}"}
    machine = "; ".join(f"{name} {value}" for name, value in names.items())
    devices = sorted({found["device"] for found in founds})
    load = f"The load average was {min(loads):.1f} to {max(loads):.1f}. " if loads else ""
    known = any(cores is not None for cores in external)
    busy = f"{quiet} of {len(external)} rounds were quiet" if known else "Who else was at work is not known"
    floor = any(key.startswith("floor") for found in founds for key in found["seconds"])
    no_floor = (
        "" if floor else " There was no C compiler (or a GPU was measured), and so there is no floor."
    )
    return "\n\n".join(
        [
            _wrap(f"Machine and versions: {machine}. Devices: {', '.join(devices) or 'none'}."),
            _wrap(
                "A ratio is the median, with quartiles, over rounds of a step's time over that of the "
                "baseline (`torch.optim.AdamW(fused=True)`, `optax.adamw`) in the same round. All rows of "
                "a group run in one process, in another order each round, each on parameters and state of "
                "its own and on the same gradients. Every framework and number of threads has its own "
                "process. The family is made with its defaults; JAX's steps are jitted, with parameters "
                "and state donated, and copied elsewhere between rounds: where XLA's arrays lie decides up "
                "to a fifth of a step's time. `emotion` is the size of the scalar, for which the loss is "
                "chosen; at 0.4 and 0.8 shadows blend. `of floor` is the time of a kernel that only "
                "touches the streams that the rule reads and writes, over the step's: 1 is as good as it "
                "gets. `temporaries` is what a step takes of memory beyond parameters, gradients and "
                "state, as a share of the parameters."
            ),
            _wrap(
                f"{load}{busy}: others used at most {BUSY} cores. Others count only where quiet ones were "
                f"too few; * marks those.{no_floor}"
            ),
        ]
    )


def bounds(done: Sequence[Cell], store: Store) -> str:
    """Returns the table of what a full step is held to, and whether it holds."""
    results = Results(done, store)
    threads = results.threads() or [1]
    head = ("full step", "against", "on", "tensors", "at least", "aim", *map(_threads, threads), "of floor")
    rows = [
        (
            *(bound.title, bound.against, f"{FRAMEWORKS[bound.framework]}, {bound.device}"),
            *(PROBLEMS[bound.problem].title, f"{bound.at_least:g}", f"{bound.aim:g}"),
            *(_verdict(results, bound, count) for count in threads),
            ", ".join(_of_floor(results, _place(bound, count), _line(bound)) for count in threads),
        )
        for bound in BOUNDS
    ]
    # Of the path that is the default; XLA's are in the tables below.
    for problem in ("gpt2", "lora"):
        found = [_most_temporaries(results, problem, count) for count in threads]
        place = ("PyTorch, cpu", PROBLEMS[problem].title, f"{MOST_TEMPORARIES:g}", "0")
        rows.append(("the family's largest temporaries", "the parameters", *place, *found, NOTHING))
    return table(head, rows, left=4)


def _verdict(results: Results, bound: Bound, threads: int) -> str:
    found = results.ratio(*_place(bound, threads), bound.row, bound.against)
    if found is None:
        return NO_GPU if bound.device == "cuda" else NOT_MEASURED
    return f"{found} {_holds(found.median, bound.at_least, quiet=found.is_quiet)}"


def _place(bound: Bound, threads: int) -> Place:
    return bound.framework, bound.device, bound.problem, threads


def _line(bound: Bound) -> Line:
    return next(line for line in lines(bound.framework) if line.key == bound.row)


def _of_floor(results: Results, place: Place, line: Line) -> str:
    """Returns the floor's time over the step's."""
    own, floor = results.ratio(*place, line.key), results.ratio(*place, floor_of(line.variant, line.size))
    return f"{floor.median / own.median:.2f}" if own and floor else NOTHING


def _holds(value: float, bound: float, *, quiet: bool = True) -> str:
    if not quiet:
        return BUSY_MACHINE
    return "pass" if value <= bound else "**fail**"


def _most_temporaries(results: Results, problem: str, threads: int) -> str:
    shares = {}
    for line in lines("torch"):
        cell = results.steps("torch", "cpu", problem, threads, line.group)
        if cell and line.variant.is_family and "foreach" not in line.variant.options:
            share = _temporaries(results.found(cell), line.variant, problem)
            if share is not None:
                shares[line.variant.name] = share
    if not shares:
        return NOT_MEASURED
    name = max(shares, key=lambda name: shares[name])
    return f"{shares[name]:.3f} ({name}) {_holds(shares[name], MOST_TEMPORARIES)}"


def _temporaries(found: Found, variant: Variant, problem: str) -> float | None:
    taken = found["costs"].get(variant.name, {}).get("temporaries")
    return None if taken is None else taken / (4 * PROBLEMS[problem].elements)


def _family(results: Results) -> Iterator[str]:
    threads = results.threads()
    measured = results.of_kind("steps")
    places = dict.fromkeys((cell.framework, cell.device, cell.problem) for cell in measured)
    rows = []
    for framework, device, problem in places:
        for make, member in MEMBERS.items():
            if member.cousin is not None:
                found = [_of_cousin(results, framework, device, problem, count, make) for count in threads]
                names = [_name(framework, name) for name in (make, member.cousin)]
                rows.append((*names, f"{FRAMEWORKS[framework]}, {device}", PROBLEMS[problem].title, *found))
    if not rows:
        return
    yield "## The rest of the family"
    yield _wrap(
        "How many times the ratio of its cousin each member's is, at the emotion at which it is slowest; "
        f"{MOST_OF_COUSIN:g} is the most. The cousin is the member of the second generation that has the "
        "same rule. For those with more than one rule, or one of their own, it is the nearest: EmoClan's "
        "rule in peace is EmoSens', EmoNeco steps by signs of a momentum like EmoCats, EmoZeal by factors "
        "like EmoAiry, RefAdamWMiniScheduleFree has Adam's moments like EmoSens."
    )
    yield table(("member", "cousin", "on", "tensors", *map(_threads, threads)), rows, left=4)


def _of_cousin(results: Results, framework: str, device: str, problem: str, threads: int, make: str) -> str:
    where = (framework, device, problem, threads)
    cousin = MEMBERS[make].cousin
    assert cousin is not None
    base = results.ratio(*where, _name(framework, cousin))
    found = {}
    for line in lines(framework):
        if line.variant.make == make:
            own = results.ratio(*where, line.key)
            if own is not None:
                found[line.size] = own
    if base is None or not found:
        return NOT_MEASURED
    size, slowest = max(found.items(), key=lambda item: item[1].median)
    times = slowest.median / base.median
    at = "" if size is None else f" at {size}"
    quiet = base.is_quiet and all(own.is_quiet for own in found.values())
    return f"{times:.2f}{at} {_holds(times, MOST_OF_COUSIN, quiet=quiet)}"


def _name(framework: str, make: str) -> str:
    return MEMBERS[make].title if framework == "torch" else make


def _tables(results: Results) -> Iterator[str]:
    places = dict.fromkeys((cell.framework, cell.device, cell.problem) for cell in results.of_kind("steps"))
    for framework, device, problem in places:
        title = PROBLEMS[problem]
        count = f"{len(title.shapes)} tensors, {title.elements / 1e6:.3g} million numbers"
        yield f"## {FRAMEWORKS[framework]}, {device}, {title.title}"
        yield f"{count}. Milliseconds are medians."
        yield steps_table(results, framework, device, problem)


def steps_table(results: Results, framework: str, device: str, problem: str) -> str:
    """Returns the table of all rows of a framework on a problem."""
    threads = [
        count
        for count in results.threads()
        if any(results.steps(framework, device, problem, count, group) for group in GROUPS[framework])
    ]
    head = ["optimizer", "emotion"]
    for count in threads:
        head += [f"ratio, {_threads(count)}", "ms", "of floor"]
    head += ["temporaries", "rounds"] + (["compiled in s", "programs"] if framework == "jax" else [])
    rows = []
    for line in lines(framework):
        cells = [results.steps(framework, device, problem, count, line.group) for count in threads]
        founds = [results.found(cell) if cell else None for cell in cells]
        if not any(found and line.key in found["seconds"] for found in founds):
            continue
        name = f"**{line.variant.name}**" if line.variant.is_family else line.variant.name
        row = [name, NOTHING if line.size is None else f"{line.size:g}"]
        counted = []
        for count, cell, found in zip(threads, cells, founds, strict=True):
            where = (framework, device, problem, count)
            own = results.ratio(*where, line.key)
            if cell is None or found is None or own is None:
                row += [NOT_MEASURED, NOTHING, NOTHING]
                continue
            rounds = chosen_rounds(found, cell.rounds)
            middle = statistics.median(found["seconds"][line.key][index] for index in rounds)
            row += [str(own), f"{1e3 * middle:.3g}", _of_floor(results, where, line)]
            counted.append(str(len(rounds)))
        last = next(found for found in reversed(founds) if found)
        share = _temporaries(last, line.variant, problem)
        row += [NOTHING if share is None else f"{share:.3f}", ", ".join(dict.fromkeys(counted))]
        if framework == "jax":
            costs = last["costs"].get(line.variant.name)
            row += [f"{costs['compilation']:.2g}", str(costs["programs"])] if costs else [NOTHING, NOTHING]
        rows.append(row)
    return table(head, rows, left=1)


def _compilation(results: Results) -> Iterator[str]:
    cells = results.of_kind("compilation")
    if not cells:
        return
    base, *others = COMPILED
    head = ["leaves", "rounds", f"optax.{base}, ms a leaf"]
    for name in others:
        head += [f"{name}, ms a leaf", "ratio", f"at most {MOST_COMPILATION}"]
    rows = []
    for cell in cells:
        seconds = results.found(cell)["seconds"]
        leaves = int(cell.problem)
        per_leaf = {name: 1e3 * statistics.median(seconds[name]) / leaves for name in COMPILED}
        row = [str(leaves), str(len(seconds[base])), f"{per_leaf[base]:.2f}"]
        for name in others:
            pairs = zip(seconds[name], seconds[base], strict=True)
            times = statistics.median(own / theirs for own, theirs in pairs)
            row += [f"{per_leaf[name]:.2f}", f"{times:.2f}", _holds(times, MOST_COMPILATION)]
        rows.append(row)
    yield "## Compile time"
    yield _wrap(
        f"Trace, lower and compile of a jitted step over LoRA's leaves, {_threads(cells[0].threads)}, "
        "interleaved; medians, and medians of the ratios to `optax.adamw` of the same round."
    )
    yield table(head, rows, left=0)


def _traces(results: Results) -> Iterator[str]:
    counts = {cell.group: results.found(cell) for cell in results.of_kind("traces")}
    if not counts:
        return
    retraced = [name for name, each in counts.items() if (each["traces"], each["programs"]) != (1, 1)]
    yield "## Retraces"
    yield _wrap(
        "Traces of a jitted step, and programs compiled for it, over six steps between which the "
        "learning rate (under `optax.inject_hyperparams`), the loss and the step change. More than one "
        f"each: {', '.join(retraced) or 'none'}."
    )
    rows = [(name, str(each["traces"]), str(each["programs"])) for name, each in counts.items()]
    yield table(("optimizer", "traces", "programs"), rows, left=1)


def _donation(results: Results) -> Iterator[str]:
    rows = []
    for cell in results.of_kind("steps"):
        if (cell.framework, cell.group) != ("jax", "donation"):
            continue
        found = results.found(cell)
        group = GROUPS["jax"]["donation"]
        for variant in group.variants:
            own = ratio(found, variant.name, group.variants[0].name, cell.rounds)
            share = _temporaries(found, variant, cell.problem)
            place = (PROBLEMS[cell.problem].title, str(cell.threads))
            rows.append((variant.name, *place, str(own), NOTHING if share is None else f"{share:.3f}"))
    if rows:
        yield "## Donation"
        yield _wrap(
            "`jax.jit(step, donate_argnums=(0, 1))` gives the buffers of parameters and state back to the "
            "step, which then writes in place. Without it every step makes new ones: memory beyond the "
            "arguments, as a share of the parameters, and the time to fill it."
        )
        yield table(("optimizer", "tensors", "threads", "ratio", "new memory"), rows, left=2)


def _graphs(results: Results) -> Iterator[str]:
    for cell in results.of_kind("graphs"):
        counts = results.found(cell)["graphs"]
        yield "## torch.compile"
        yield _wrap(
            "`torch.compile(optimizer.step)` on three tensors: the seconds of the first compiled step, and "
            "how many graphs there were then, and after six steps with other learning rates and losses."
        )
        rows = [
            (_name("torch", name), f"{each['seconds']:.3g}", str(each["first"]), str(each["last"]))
            for name, each in counts.items()
        ]
        yield table(("optimizer", "s", "graphs", "at the end"), rows, left=1)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False))


def table(head: Iterable[str], rows: Iterable[Iterable[str]], left: int) -> str:
    """Returns a table of which the first columns are aligned to the left."""
    head = list(head)
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *map(list, rows)))
