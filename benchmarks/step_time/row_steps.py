"""The rows of low precision, wrappers and small networks: the steps to measure, and their ratios."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from benchmarks.step_time.problems import Shape, fill, gpt2_shapes, lora_shapes

QUIET = 0.95
"""The share of a step's time for which a process has the processor in a quiet round."""
LEARNING_RATE = 1e-6
SHAPES: dict[str, tuple[Shape, ...]] = {
    "24 x 768x768": ((768, 768),) * 24,
    "LoRA": lora_shapes(),
    "4 tensors": ((64, 64), (64,)) * 2,
    "30 tensors": ((128, 128), (128,)) * 15,
    "GPT-2, 2 threads": gpt2_shapes(),
    "tiny": ((16, 12), (12,)),
}
LARGE, LORA, FOUR, THIRTY, GPT2, TINY = SHAPES
THREADS = {GPT2: 2}
"""The number of threads, for the kinds of tensors that are measured with more than one."""
ROUNDS = {LARGE: 15, LORA: 15, FOUR: 600, THIRTY: 300, GPT2: 11, TINY: 3}
Steps = dict[str, Callable[[], Any]]


class Row(NamedTuple):
    """One optimizer against its baseline.

    Attributes:
        title: the name of the optimizer in tables.
        make: a member of the family, or "emotional" around the baseline.
        bounds: the largest ratio on each kind of tensors.
        dtype: the dtype of parameters and gradients.
        options: the options of the member; a dtype of moments is a name.
        against: the baseline in Optax; empty in PyTorch.
        is_compile: whether the time to compile a step is compared, and not the time of a step.
    """

    title: str
    make: str
    bounds: dict[str, float]
    dtype: str = "float32"
    options: dict[str, Any] = {}  # noqa: RUF012
    against: str = ""
    is_compile: bool = False


_NARROW, _EIGHT = {"moment_dtype": "bfloat16"}, {"moment_dtype": "8bit"}
# The default rate: the squares of the weights are needed if a ceiling can be below the learning rate.
_PILOT, _ALONE = {"lr": 1e-2}, {"average": False}
ROWS = (
    Row("EmoSens", "emo_sens", {LARGE: 1.7, LORA: 1.2}, "bfloat16"),
    Row("EmoSens, moments of bfloat16", "emo_sens", {LARGE: 1.15, LORA: 0.9}, "bfloat16", _NARROW),
    Row('EmoSens, rounding="kahan"', "emo_sens", {LARGE: 2.0}, "bfloat16", {"rounding": "kahan"}),
    Row('EmoSens, rounding="stochastic"', "emo_sens", {LARGE: 2.2}, "bfloat16", {"rounding": "stochastic"}),
    Row("EmoCats", "emo_cats", {LARGE: 1.2}, "bfloat16"),
    Row("EmoAiry", "emo_airy", {LARGE: 1.0}, "bfloat16"),
    Row("EmoSens, moments of bfloat16", "emo_sens", {LARGE: 0.8}, "float32", _NARROW),
    Row("EmoSens, moments of 8 bits", "emo_sens", {LARGE: 0.75}, "float32", _EIGHT),
    Row("EmoCats, moments of 8 bits", "emo_cats", {LARGE: 0.65}, "float32", _EIGHT),
    Row("EmoPilot", "emo_pilot", {LARGE: 1.75}, options=_PILOT),
    Row("EmoPilot, average=False", "emo_pilot", {LARGE: 1.35, LORA: 0.7}, options={**_PILOT, **_ALONE}),
    Row("EmoPilot, average=False, lr=1e-3", "emo_pilot", {LARGE: 1.35}, options={"lr": 1e-3, **_ALONE}),
    Row("Emotional(AdamW(fused=True))", "emotional", {LARGE: 1.15, THIRTY: 1.3, LORA: 1.3}),
    Row("EmoSens", "emo_sens", {FOUR: 1.3, THIRTY: 1.05}),
    Row("EmoCats", "emo_cats", {FOUR: 1.3}),
    Row("EmoAiry", "emo_airy", {FOUR: 1.3, GPT2: 0.65}),
)
_STEP, _COMPILE = {FOUR: 1.05, LARGE: 1.05}, {FOUR: 1.25, THIRTY: 1.25}
JAX_ROWS = (
    Row("emo_cats against optax.lion", "emo_cats", {FOUR: 1.1}, against="lion"),
    Row("emo_pilot against optax.adamw", "emo_pilot", {LARGE: 1.4}, against="adamw"),
    Row(
        "emotional(optax.adamw) against optax.adamw",
        "emotional",
        {FOUR: 1.05, LARGE: 1.05},
        against="adamw",
    ),
    Row("compile emo_airy, against optax.adamw", "emo_airy", _COMPILE, against="adamw", is_compile=True),
    Row("compile emotional(optax.adamw)", "emotional", _COMPILE, against="adamw", is_compile=True),
)
COMPILE_ROUNDS = 5


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
        is_wall: whether the ratio is that of wall times in quiet rounds.
    """

    row: Row
    tensors: str
    ratio: tuple[float, float, float]
    milliseconds: float
    quiet: float
    is_wall: bool

    @property
    def bound(self) -> float | None:
        """The largest ratio; `None` without a bound."""
        return self.row.bounds.get(self.tensors)

    @property
    def is_judged(self) -> bool:
        """Whether the ratio says something: with two threads, only if most rounds were quiet."""
        return self.bound is not None and (self.is_wall or THREADS.get(self.tensors, 1) == 1)

    @property
    def misses(self) -> bool:
        """Whether the ratio is above its bound."""
        return self.is_judged and self.bound is not None and self.ratio[0] > self.bound


def measure(steps: Steps, rounds: int, warm: int = 4) -> dict[str, list[Times]]:
    """Returns the times of each function, called once in each round, in a new order.

    Args:
        steps: the functions.
        rounds: the number of rounds.
        warm: how often each function is called before the first round.
    """
    order, times = list(steps), {name: [] for name in steps}  # type: ignore[var-annotated]
    for step in steps.values():
        for _ in range(warm):
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
    times: Sequence[Times], baseline: Sequence[Times], threads: int = 1
) -> tuple[tuple[float, float, float], float, bool]:
    """Returns median and quartiles, the share of quiet rounds, and whether these rounds were compared."""
    pairs = list(zip(times, baseline, strict=True))
    # A step of several threads has parts for one thread; threads that wait use the processor, too.
    least = QUIET * (1.0 + 0.9 * (threads - 1))
    quiet = [pair for pair in pairs if all(one.process >= least * one.wall for one in pair)]
    is_wall = 2 * len(quiet) >= len(pairs)
    if is_wall or threads > 1:
        own = [a.wall / b.wall for a, b in (quiet if is_wall else pairs)]
    else:
        own = [a.process / b.process for a, b in pairs]
    low, middle, high = statistics.quantiles(own, n=4) if len(own) > 1 else own * 3
    return (middle, low, high), len(quiet) / len(pairs), is_wall


def results_of(tensors: str, rows: Sequence[Row], times: dict[str, list[Times]]) -> list[Result]:
    """Returns the results of rows, whose times have their indices as names; the baseline's name is ""."""
    found = []
    for index, row in enumerate(rows):
        own = times[str(index)]
        ratio, quiet, is_wall = ratio_of(own, times[""], THREADS.get(tensors, 1))
        milliseconds = 1e3 * statistics.median(one.process for one in own)
        found.append(Result(row, tensors, ratio, milliseconds, quiet, is_wall))
    return found


# PyTorch.


def torch_params(tensors: str, dtype: str) -> list[Any]:
    """Returns new parameters with gradients."""
    import torch

    kind = getattr(torch, dtype)
    params = [
        torch.nn.Parameter(torch.from_numpy(array).to(kind)) for array in fill(SHAPES[tensors], 0.02, 0)
    ]
    for param, array in zip(params, fill(SHAPES[tensors], 1e-3, 1), strict=True):
        param.grad = torch.from_numpy(array).to(kind)
    return params


def torch_optimizer(row: Row, tensors: str) -> Any:
    """Returns the optimizer of a row on new parameters; for the empty make, the baseline."""
    import torch

    import emo_torch

    params = torch_params(tensors, row.dtype)
    if row.make in ("", "emotional"):
        adamw = torch.optim.AdamW(params, lr=LEARNING_RATE, fused=True)
        return emo_torch.Emotional(adamw) if row.make else adamw
    options = {
        name: getattr(torch, value) if value == "bfloat16" else value for name, value in row.options.items()
    }
    return emo_torch.create_optimizer(row.make, params, **{"lr": LEARNING_RATE, **options})


def baseline_of(row: Row) -> Row:
    """Returns the baseline of a row of PyTorch."""
    return row._replace(make="", options={})


def stepper(optimizer: Any) -> Callable[[], Any]:
    """Returns a function that takes a step with a loss that moves a little, as in training."""
    losses = iter(range(10**9))
    return lambda: optimizer.step(loss=1.0 + 0.01 * (next(losses) % 7))


def torch_results(tensors: str, rows: Sequence[Row], rounds: int) -> list[Result]:
    """Measures rows of PyTorch that have the same kind of tensors and the same dtype."""
    import torch

    torch.set_num_threads(THREADS.get(tensors, 1))
    steps: Steps = {"": torch_optimizer(baseline_of(rows[0]), tensors).step}
    for index, row in enumerate(rows):
        steps[str(index)] = stepper(torch_optimizer(row, tensors))
    return results_of(tensors, rows, measure(steps, rounds))


# JAX.


def jax_optimizers(row: Row) -> tuple[Any, Any]:
    """Returns the baseline of a row, and the optimizer of the row."""
    import optax

    import emo_optax

    baseline = getattr(optax, row.against)(LEARNING_RATE)
    if row.make == "emotional":
        return baseline, emo_optax.emotional(baseline)
    return baseline, emo_optax.create_optimizer(row.make, LEARNING_RATE)


def jax_arrays(tensors: str) -> tuple[Any, Any, Any]:
    """Returns parameters, gradients and a loss."""
    import jax.numpy as jnp

    params, grads = (list(map(jnp.asarray, fill(SHAPES[tensors], scale, seed))) for scale, seed in _FILLS)
    return params, grads, jnp.float32(1.0)


_FILLS = ((0.02, 0), (1e-3, 1))


def jax_update(optimizer: Any) -> Callable[..., Any]:
    """Returns a whole step as a function of parameters, state, gradients and loss."""
    import optax

    optimizer = optax.with_extra_args_support(optimizer)

    def step(params: Any, state: Any, grads: Any, loss: Any) -> Any:
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    return step


def jax_runner(update: Callable[..., Any], state: Any, tensors: str) -> Callable[[], Any]:
    """Returns a function that runs a compiled step, which gets its own results again."""
    import jax

    jitted = jax.jit(update, donate_argnums=(0, 1))
    params, grads, loss = jax_arrays(tensors)
    kept = [(params, state)]

    def once() -> None:
        kept[0] = jax.block_until_ready(jitted(*kept[0], grads, loss))

    return once


def compiler(update: Callable[..., Any], optimizer: Any, tensors: str) -> Callable[[], Any]:
    """Returns a function that compiles a step without a cached program."""
    import jax

    params, grads, loss = jax_arrays(tensors)
    given = (params, optimizer.init(params), grads, loss)
    # A new function each time: JAX keeps the programs of functions that it knows.
    return lambda: jax.jit(lambda *args: update(*args)).lower(*given).compile()


@contextmanager
def without_cache() -> Iterator[None]:
    """Compiles without the cache on disk, if it is entered before the first compilation of the process."""
    import jax

    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def jax_results(tensors: str, rows: Sequence[Row], rounds: int) -> list[Result]:
    """Measures rows of JAX on one kind of tensors, each against its own baseline."""
    found = []
    for row in rows:
        pair = zip(("", "0"), jax_optimizers(row), strict=True)
        if row.is_compile:
            steps = {name: compiler(jax_update(own), own, tensors) for name, own in pair}
        else:
            params, _, _ = jax_arrays(tensors)
            steps = {
                name: jax_runner(jax_update(optimizer), optimizer.init(params), tensors)
                for name, optimizer in pair
            }
        times = measure(steps, min(rounds, COMPILE_ROUNDS), 1) if row.is_compile else measure(steps, rounds)
        found += results_of(tensors, [row], times)
    return found
