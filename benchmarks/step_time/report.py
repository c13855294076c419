"""The results as Markdown: bounds first, then everything that was measured."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.step_time.members import MEMBERS, THIRD
from benchmarks.step_time.plan import (
    BOUNDS,
    MOST_OF_COUSIN,
    MOST_OF_THIRD,
    MOST_TEMPORARIES,
    Bound,
    Cell,
    floor_of,
)
from benchmarks.step_time.problems import PROBLEMS
from benchmarks.step_time.results import Line, Place, Results, lines
from benchmarks.step_time.rounds import BUSY, is_quiet
from benchmarks.step_time.store import CODE, Store
from benchmarks.step_time.tables import (
    FRAMEWORKS,
    NO_GPU,
    NOT_MEASURED,
    NOTHING,
    compilation,
    donation,
    graphs,
    holds,
    row_name,
    share_of_floor,
    steps_tables,
    table,
    temporaries_share,
    threads_in_words,
    traces,
    wrap,
)


def write(path: Path, done: Sequence[Cell], store: Store) -> str:
    """Writes all tables into a file, and returns its text."""
    results = Results(done, store)
    parts = [
        "# The cost of a step",
        wrap(
            "Written by `python -m benchmarks.step_time`. Its option `--help` lists further measurements."
        ),
        _introduction(results, store.environment),
        "## The bounds",
        bounds(done, store),
        *_family(results),
        "![Ratios of every row](ratios.png)",
        *steps_tables(results),
        *compilation(results),
        *traces(results),
        *donation(results),
        *graphs(results),
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
    packages = CODE.values()
    names = {
        name: f"with digest {value}" if name in packages else value for name, value in environment.items()
    }
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
            wrap(f"Machine and versions: {machine}. Devices: {', '.join(devices) or 'none'}."),
            wrap(
                "A ratio is the median, with quartiles, over rounds of a step's time over that of the "
                "baseline (`torch.optim.AdamW(fused=True)`, `optax.adamw`) in the same round. All rows of "
                "a group run in one process, in another order each round, each on parameters and state of "
                "its own and on the same gradients. Every framework and number of threads has its own "
                "process. The family is made with its defaults; JAX's steps are jitted, with parameters "
                "and state donated, and copied elsewhere between rounds: where XLA's arrays lie decides up "
                "to a fifth of a step's time. `emotion` is the size of the scalar, for which the loss is "
                "chosen; at 0.4 and 0.8 shadows blend. `of floor` is the time of a kernel that only "
                "touches the streams that the rule reads and writes, over the step's: 1 is as good as it "
                "gets. `temporaries` is the memory that a step takes beyond parameters, gradients and "
                "state, as a share of the parameters."
            ),
            wrap(
                f"{load}{busy}: other processes used at most {BUSY} cores. If too few rounds were quiet, "
                f"all rounds count, and * marks the ratio.{no_floor}"
            ),
        ]
    )


def bounds(done: Sequence[Cell], store: Store) -> str:
    """Returns the table of the bounds of full steps, and whether they hold."""
    results = Results(done, store)
    threads = results.threads() or [1]
    head = (
        "full step",
        "against",
        "on",
        "tensors",
        "at least",
        "aim",
        *map(threads_in_words, threads),
        "of floor",
    )
    rows = [
        (
            *(bound.title, bound.against, f"{FRAMEWORKS[bound.framework]}, {bound.device}"),
            *(PROBLEMS[bound.problem].title, f"{bound.at_least:g}", f"{bound.aim:g}"),
            *(_verdict(results, bound, count) for count in threads),
            ", ".join(share_of_floor(results, _place(bound, count), _line(bound)) for count in threads),
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
    return f"{found} {holds(found.median, bound.at_least, quiet=found.is_quiet)}"


def _place(bound: Bound, threads: int) -> Place:
    return bound.framework, bound.device, bound.problem, threads


def _line(bound: Bound) -> Line:
    return next(line for line in lines(bound.framework) if line.key == bound.row)


def _most_temporaries(results: Results, problem: str, threads: int) -> str:
    shares = {}
    for line in lines("torch"):
        cell = results.steps("torch", "cpu", problem, threads, line.group)
        if cell and line.variant.is_family and "foreach" not in line.variant.options:
            share = temporaries_share(results.found(cell), line.variant, problem)
            if share is not None:
                shares[line.variant.name] = share
    if not shares:
        return NOT_MEASURED
    name = max(shares, key=lambda name: shares[name])
    return f"{shares[name]:.3f} ({name}) {holds(shares[name], MOST_TEMPORARIES)}"


def _family(results: Results) -> Iterator[str]:
    threads = results.threads()
    measured = results.of_kind("steps")
    places = dict.fromkeys((cell.framework, cell.device, cell.problem) for cell in measured)
    rows = []
    for framework, device, problem in places:
        for make, member in MEMBERS.items():
            if member.cousin is not None:
                wheres = [(framework, device, problem, count) for count in threads]
                found = [_of_cousin(results, where, make) for where in wheres]
                bytes_alone = ", ".join(_bytes_alone(results, where, make) for where in wheres)
                names = [row_name(framework, name) for name in (make, member.cousin)]
                place = (f"{FRAMEWORKS[framework]}, {device}", PROBLEMS[problem].title)
                rows.append((*names, *place, bytes_alone, *found))
    if not rows:
        return
    yield "## The rest of the family"
    yield wrap(
        "The time of each member over that of its cousin, at the emotion at which the member is slowest: "
        "in the same rounds if both ran in one group, otherwise the quotient of their ratios. "
        "`bytes alone` is the same for two kernels that only move the bytes of both steps. "
        "EmoTion and EmoVoid read all parameters once before the step, for the sum of their norms. "
        f"The bound is {MOST_OF_COUSIN:g}, and {MOST_OF_THIRD:g} for the third generation. The "
        "cousin is the member of the second generation that has the same rule. "
        "For a member with several rules, or with its own rule, it is the nearest member: EmoClan's "
        "rule for a small |s| is EmoSens' rule, EmoNeco steps by signs of a momentum like EmoCats, EmoZeal "
        "by factors like EmoAiry, RefAdamWMiniScheduleFree has Adam's moments like EmoSens."
    )
    head = ("member", "cousin", "on", "tensors", "bytes alone", *map(threads_in_words, threads))
    yield table(head, rows, left=4)


def _slowest(results: Results, where: Place, make: str) -> tuple[Line, bool] | None:
    """Returns the slowest line of a member, and whether all rounds of all its lines were quiet."""
    measured = [line for line in lines(where[0]) if line.variant.make == make]
    found = [(line, results.ratio(*where, line.key)) for line in measured]
    known = [(line, ratio) for line, ratio in found if ratio is not None]
    if not known:
        return None
    slowest, _ = max(known, key=lambda pair: pair[1].median)
    return slowest, all(ratio.is_quiet for _, ratio in known)


def _quotient(results: Results, where: Place, row: str, other: str) -> float | None:
    """Returns the time of a row over that of another row: of the same rounds, if they ran in one group."""
    together = results.ratio(*where, row, other)
    if together is not None:
        return together.median
    own, theirs = results.ratio(*where, row), results.ratio(*where, other)
    return None if own is None or theirs is None else own.median / theirs.median


def _cousin_line(framework: str, make: str) -> Line:
    """Returns the line of the cousin of a member."""
    cousin = MEMBERS[make].cousin
    assert cousin is not None
    return next(line for line in lines(framework) if line.variant.make == cousin)


def _of_cousin(results: Results, where: Place, make: str) -> str:
    cousin = _cousin_line(where[0], make)
    base, found = results.ratio(*where, cousin.key), _slowest(results, where, make)
    if base is None or found is None:
        return NOT_MEASURED
    line, is_quiet = found
    times = _quotient(results, where, line.key, cousin.key)
    assert times is not None
    at = "" if line.size is None else f" at {line.size}"
    most = MOST_OF_THIRD if make in THIRD else MOST_OF_COUSIN
    return f"{times:.2f}{at} {holds(times, most, quiet=base.is_quiet and is_quiet)}"


def _bytes_alone(results: Results, where: Place, make: str) -> str:
    """Returns the time to move the bytes of a member's step over that of its cousin's step."""
    cousin, found = _cousin_line(where[0], make), _slowest(results, where, make)
    if found is None:
        return NOTHING
    floors = [floor_of(line.variant, line.size) for line in (found[0], cousin)]
    times = _quotient(results, where, *floors)
    return NOTHING if times is None else f"{times:.2f}"
