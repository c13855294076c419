"""`python -m benchmarks.step_time.rows`: low precision, `Emotional` and small networks against bounds.

Every row has a baseline that takes the same tensors in the same dtype: `torch.optim.AdamW(fused=True)`
where the row names no other. All optimizers of a group run interleaved in one process, in another order
each round, with one thread. A round in which the process had the processor for less than 95 % of a step's
time is disturbed. A ratio is the ratio of wall times in quiet rounds. If fewer than half of the rounds are
quiet, it is the ratio of CPU times, and is marked by *.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.step_time.problems import Shape, fill, lora_shapes
from examples.command import answer_early

QUIET = 0.95
"""The share of a step's time for which a process has the processor in a quiet round."""
LEARNING_RATE = 1e-6

SHAPES: dict[str, tuple[Shape, ...]] = {
    "24 x 768x768": ((768, 768),) * 24,
    "LoRA": lora_shapes(),
    "4 tensors": ((64, 64), (64,)) * 2,
    "30 tensors": ((128, 128), (128,)) * 15,
    "tiny": ((16, 12), (12,)),
}
LARGE, LORA, FOUR, THIRTY, TINY = SHAPES


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_time.rows", description=__doc__)
    parser.add_argument("--framework", choices=("torch", "jax", "all"), default="all")
    parser.add_argument("--tensors", choices=tuple(SHAPES), action="append", help="default: all but tiny")
    parser.add_argument("--rounds", type=int, help="default: by the kind of tensors")
    parser.add_argument("--output", type=Path, help="a folder, for rows.md")
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("torch", "jax", "rich"))

from benchmarks.step_time.store import environment


class Row(NamedTuple):
    """One optimizer against its baseline.

    Attributes:
        title: the name of the optimizer in tables.
        make: a member of the family, or "emotional" around the baseline.
        bounds: the largest ratio on each kind of tensors.
        dtype: the dtype of parameters and gradients.
        options: the options of the member; the dtype of moments is a name.
    """

    title: str
    make: str
    bounds: dict[str, float]
    dtype: str = "float32"
    options: dict[str, Any] = {}  # noqa: RUF012


_NARROW = {"moment_dtype": "bfloat16"}
ROWS = (
    Row("EmoSens", "emo_sens", {LARGE: 1.7, LORA: 1.2}, "bfloat16"),
    Row("EmoSens, moments of bfloat16", "emo_sens", {LARGE: 1.15, LORA: 0.9}, "bfloat16", _NARROW),
    Row('EmoSens, rounding="kahan"', "emo_sens", {LARGE: 2.0}, "bfloat16", {"rounding": "kahan"}),
    Row('EmoSens, rounding="stochastic"', "emo_sens", {LARGE: 2.2}, "bfloat16", {"rounding": "stochastic"}),
    Row("EmoCats", "emo_cats", {LARGE: 1.2}, "bfloat16"),
    Row("EmoAiry", "emo_airy", {LARGE: 1.0}, "bfloat16"),
    Row("EmoSens, moments of bfloat16", "emo_sens", {LARGE: 0.8}, "float32", _NARROW),
    Row("Emotional(AdamW(fused=True))", "emotional", {LARGE: 1.15, THIRTY: 1.3, LORA: 1.3}),
    Row("EmoSens", "emo_sens", {FOUR: 1.3, THIRTY: 1.05}),
    Row("EmoCats", "emo_cats", {FOUR: 1.3}),
    Row("EmoAiry", "emo_airy", {FOUR: 1.3}),
)
JAX_ROWS = (
    Row("emo_cats against optax.lion", "lion", {FOUR: 1.1}),
    Row("emotional(optax.adamw) against optax.adamw", "adamw", {FOUR: 1.05, LARGE: 1.05}),
)
ROUNDS = {LARGE: 15, LORA: 15, FOUR: 600, THIRTY: 300, TINY: 3}


class Times(NamedTuple):
    """The seconds of one step: on the wall, and of this process on all processors."""

    wall: float
    process: float


class Result(NamedTuple):
    """The ratio of a row on one kind of tensors, with its quartiles.

    Attributes:
        row: the row.
        tensors: the kind of tensors.
        ratio: the median, and the quartiles.
        milliseconds: the median of the processor's time for a step.
        quiet: the share of quiet rounds.
        is_wall: whether the ratio is that of wall times.
    """

    row: Row
    tensors: str
    ratio: tuple[float, float, float]
    milliseconds: float
    quiet: float
    is_wall: bool


def measure(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Times]]:
    """Returns the times of each function, called once in each round, in a new order."""
    order, times = list(steps), {name: [] for name in steps}  # type: ignore[var-annotated]
    for step in steps.values():
        for _ in range(4):
            step()
    shuffled = random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            wall, process = time.perf_counter(), time.process_time()
            steps[name]()
            times[name].append(Times(time.perf_counter() - wall, time.process_time() - process))
    return times


def ratio_of(
    times: Sequence[Times], baseline: Sequence[Times]
) -> tuple[tuple[float, float, float], float, bool]:
    """Returns median and quartiles, the share of quiet rounds, and whether wall times were compared."""
    pairs = list(zip(times, baseline, strict=True))
    quiet = [pair for pair in pairs if all(one.process >= QUIET * one.wall for one in pair)]
    is_wall = 2 * len(quiet) >= len(pairs)
    own = [a.wall / b.wall for a, b in quiet] if is_wall else [a.process / b.process for a, b in pairs]
    low, middle, high = statistics.quantiles(own, n=4) if len(own) > 1 else own * 3
    return (middle, low, high), len(quiet) / len(pairs), is_wall


def torch_results(tensors: str, rows: Sequence[Row], rounds: int) -> list[Result]:
    """Measures rows of PyTorch that have the same kind of tensors and the same dtype."""
    import torch

    import emo_torch

    torch.set_num_threads(1)
    dtype = getattr(torch, rows[0].dtype)

    def made() -> list[Any]:
        params = [
            torch.nn.Parameter(torch.from_numpy(array).to(dtype))
            for array in fill(SHAPES[tensors], 0.02, 0)
        ]
        for param, array in zip(params, fill(SHAPES[tensors], 1e-3, 1), strict=True):
            param.grad = torch.from_numpy(array).to(dtype)
        return params

    def adamw() -> Any:
        return torch.optim.AdamW(made(), lr=LEARNING_RATE, fused=True)

    steps: dict[str, Callable[[], Any]] = {"": adamw().step}
    for index, row in enumerate(rows):
        options = {
            name: getattr(torch, value) if name == "moment_dtype" else value
            for name, value in row.options.items()
        }
        optimizer: Any = (
            emo_torch.Emotional(adamw())
            if row.make == "emotional"
            else emo_torch.create_optimizer(row.make, made(), lr=LEARNING_RATE, **options)
        )
        steps[str(index)] = _stepper(optimizer)
    return _results(tensors, rows, measure(steps, rounds))


def _stepper(optimizer: Any) -> Callable[[], Any]:
    losses = iter(range(10**9))
    # A loss that moves a little, as it does in training.
    return lambda: optimizer.step(loss=1.0 + 0.01 * (next(losses) % 7))


def jax_results(tensors: str, rows: Sequence[Row], rounds: int) -> list[Result]:
    """Measures rows of JAX on one kind of tensors, each against its own baseline."""
    import optax

    import emo_optax

    found = []
    for row in rows:
        baseline = getattr(optax, row.make)(LEARNING_RATE)
        ours = emo_optax.emo_cats(LEARNING_RATE) if row.make == "lion" else emo_optax.emotional(baseline)
        steps = {"": _jax_step(baseline, tensors), "0": _jax_step(ours, tensors)}
        found += _results(tensors, [row], measure(steps, rounds))
    return found


def _jax_step(optimizer: Any, tensors: str) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.with_extra_args_support(optimizer)

    def step(params: Any, state: Any, grads: Any, loss: Any) -> Any:
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    params = list(map(jnp.asarray, fill(SHAPES[tensors], 0.02, 0)))
    kept = [(params, optimizer.init(params))]
    grads, loss = list(map(jnp.asarray, fill(SHAPES[tensors], 1e-3, 1))), jnp.float32(1.0)

    def once() -> None:
        kept[0] = jax.block_until_ready(jitted(*kept[0], grads, loss))

    return once


def _results(tensors: str, rows: Sequence[Row], times: dict[str, list[Times]]) -> list[Result]:
    found = []
    for index, row in enumerate(rows):
        own = times[str(index)]
        ratio, quiet, is_wall = ratio_of(own, times[""])
        milliseconds = 1e3 * statistics.median(one.process for one in own)
        found.append(Result(row, tensors, ratio, milliseconds, quiet, is_wall))
    return found


def table(results: Sequence[Result]) -> str:
    """Returns the results as a table in Markdown."""
    lines = [
        "| full step | dtype | tensors | at least | ratio | a step, ms | quiet rounds |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        middle, low, high = result.ratio
        bound = result.row.bounds.get(result.tensors)
        verdict = "" if bound is None else " pass" if middle <= bound else " **fail**"
        lines.append(
            f"| {result.row.title} | {result.row.dtype} | {result.tensors} | {bound or ''} | "
            f"{middle:.2f}{'' if result.is_wall else '*'} [{low:.2f}, {high:.2f}]{verdict} | "
            f"{result.milliseconds:.3g} | {result.quiet:.0%} |"
        )
    return "\n".join(lines)


def run(kinds: Sequence[str], framework: str, rounds: int | None = None) -> list[Result]:
    """Measures all rows of a framework that have a bound on one of some kinds of tensors."""
    found: list[Result] = []
    rows, results = (ROWS, torch_results) if framework == "torch" else (JAX_ROWS, jax_results)
    for kind in kinds:
        for dtype in dict.fromkeys(row.dtype for row in rows):
            own = [row for row in rows if row.dtype == dtype and (kind in row.bounds or kind == TINY)]
            if own:
                found += results(kind, own, rounds or ROUNDS[kind])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, and writes it where `--output` says."""
    given = options().parse_args(arguments)
    kinds = given.tensors or [kind for kind in SHAPES if kind != TINY]
    frameworks = ("torch", "jax") if given.framework == "all" else (given.framework,)
    found = [result for framework in frameworks for result in run(kinds, framework, given.rounds)]
    said = ", ".join(f"{name} {value}" for name, value in environment().items())
    head = "# Low precision, wrappers and small networks\n\n"
    head += "Written by `python -m benchmarks.step_time.rows`.\n"
    text = f"{head}\n{(__doc__ or '').partition(chr(10) * 2)[2].strip()}\n\n{said}.\n\n{table(found)}\n"
    print(table(found))
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "rows.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
