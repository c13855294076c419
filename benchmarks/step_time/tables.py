"""The tables of all measurements, in Markdown."""

import statistics
import textwrap
from collections.abc import Iterable, Iterator

from benchmarks.step_time.members import MEMBERS
from benchmarks.step_time.plan import (
    COMPILED,
    GROUPS,
    MOST_COMPILATION,
    Variant,
    floor_of,
)
from benchmarks.step_time.problems import PROBLEMS
from benchmarks.step_time.results import Line, Place, Results, chosen_rounds, lines, ratio
from benchmarks.step_time.store import Found

FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX"}
NOT_MEASURED = "not measured"
NO_GPU = "open: no GPU was seen"
BUSY_MACHINE = "open: the machine was busy"
NOTHING = "–"  # noqa: RUF001


def share_of_floor(results: Results, place: Place, line: Line) -> str:
    """Returns the floor's time over the step's."""
    own, floor = results.ratio(*place, line.key), results.ratio(*place, floor_of(line.variant, line.size))
    return f"{floor.median / own.median:.2f}" if own and floor else NOTHING


def holds(value: float, bound: float, *, quiet: bool = True) -> str:
    """Returns whether a value is within its bound, in words."""
    if not quiet:
        return BUSY_MACHINE
    return "pass" if value <= bound else "**fail**"


def temporaries_share(found: Found, variant: Variant, problem: str) -> float | None:
    """Returns the temporary memory of a step as a share of the parameters, if it is known."""
    taken = found["costs"].get(variant.name, {}).get("temporaries")
    return None if taken is None else taken / (4 * PROBLEMS[problem].elements)


def row_name(framework: str, make: str) -> str:
    """Returns the name of a member in the tables of a framework."""
    return MEMBERS[make].title if framework == "torch" else make


def steps_tables(results: Results) -> Iterator[str]:
    """Yields a heading and a table for each framework, device and problem."""
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
        head += [f"ratio, {threads_in_words(count)}", "ms", "of floor"]
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
            row += [str(own), f"{1e3 * middle:.3g}", share_of_floor(results, where, line)]
            counted.append(str(len(rounds)))
        last = next(found for found in reversed(founds) if found)
        share = temporaries_share(last, line.variant, problem)
        row += [NOTHING if share is None else f"{share:.3f}", ", ".join(dict.fromkeys(counted))]
        if framework == "jax":
            costs = last["costs"].get(line.variant.name)
            row += [f"{costs['compilation']:.2g}", str(costs["programs"])] if costs else [NOTHING, NOTHING]
        rows.append(row)
    return table(head, rows, left=1)


def compilation(results: Results) -> Iterator[str]:
    """Yields the table of how long the compilation of a jitted step takes."""
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
            row += [f"{per_leaf[name]:.2f}", f"{times:.2f}", holds(times, MOST_COMPILATION)]
        rows.append(row)
    yield "## Compile time"
    yield wrap(
        "Trace, lower and compile of a jitted step over LoRA's leaves, "
        f"{threads_in_words(cells[0].threads)}, interleaved; "
        "medians, and medians of the ratios to `optax.adamw` of the same round."
    )
    yield table(head, rows, left=0)


def traces(results: Results) -> Iterator[str]:
    """Yields how often each member is traced."""
    counts = {cell.group: results.found(cell) for cell in results.of_kind("traces")}
    if not counts:
        return
    retraced = [name for name, each in counts.items() if (each["traces"], each["programs"]) != (1, 1)]
    yield "## Retraces"
    yield wrap(
        "Traces of a jitted step, and programs compiled for it, over six steps between which the "
        "learning rate (under `optax.inject_hyperparams`), the loss and the step change. More than one "
        f"each: {', '.join(retraced) or 'none'}."
    )
    rows = [(name, str(each["traces"]), str(each["programs"])) for name, each in counts.items()]
    yield table(("optimizer", "traces", "programs"), rows, left=1)


def donation(results: Results) -> Iterator[str]:
    """Yields the savings by the donation of parameters and state."""
    rows = []
    for cell in results.of_kind("steps"):
        if (cell.framework, cell.group) != ("jax", "donation"):
            continue
        found = results.found(cell)
        group = GROUPS["jax"]["donation"]
        for variant in group.variants:
            own = ratio(found, variant.name, group.variants[0].name, cell.rounds)
            share = temporaries_share(found, variant, cell.problem)
            place = (PROBLEMS[cell.problem].title, str(cell.threads))
            rows.append((variant.name, *place, str(own), NOTHING if share is None else f"{share:.3f}"))
    if rows:
        yield "## Donation"
        yield wrap(
            "`jax.jit(step, donate_argnums=(0, 1))` gives the buffers of parameters and state back to the "
            "step, which then writes in place. Without it every step makes new ones: memory beyond the "
            "arguments, as a share of the parameters, and the time to fill it."
        )
        yield table(("optimizer", "tensors", "threads", "ratio", "new memory"), rows, left=2)


def graphs(results: Results) -> Iterator[str]:
    """Yields how many graphs and recompilations `torch.compile` makes."""
    for cell in results.of_kind("graphs"):
        counts = results.found(cell)["graphs"]
        yield "## torch.compile"
        yield wrap(
            "`torch.compile(optimizer.step)` on three tensors: the seconds of the first compiled step, and "
            "how many graphs there were then, and after six steps with other learning rates and losses."
        )
        rows = [
            (row_name("torch", name), f"{each['seconds']:.3g}", str(each["first"]), str(each["last"]))
            for name, each in counts.items()
        ]
        yield table(("optimizer", "s", "graphs", "at the end"), rows, left=1)


def threads_in_words(count: int) -> str:
    """Returns a number of threads in words."""
    return f"{count} thread{'s' * (count > 1)}"


def wrap(text: str) -> str:
    """Returns a paragraph in lines of at most 110 characters."""
    return "\n".join(textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False))


def table(head: Iterable[str], rows: Iterable[Iterable[str]], left: int) -> str:
    """Returns a table of which the first columns are aligned to the left."""
    head = list(head)
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *map(list, rows)))
