"""Why a row of low precision, wrappers and small networks misses its bound: the floor, part by part.

Each part is a function that runs in the same rounds as the baseline. Its cost is its time over the time of
the baseline.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.step_time.row_steps import (
    FOUR,
    GPT2,
    LARGE,
    ROUNDS,
    THIRTY,
    THREADS,
    TINY,
    Result,
    Row,
    Steps,
    Times,
    baseline_of,
    jax_arrays,
    jax_optimizers,
    jax_runner,
    jax_update,
    measure,
    ratio_of,
    stepper,
    torch_optimizer,
    torch_params,
)


class Part(NamedTuple):
    """A part of a step, with its cost.

    Attributes:
        title: what the part does.
        ratio: its time over the baseline's.
        microseconds: the median of its time.
        in_floor: whether every step of this kind has this part, so that the floor has it.
    """

    title: str
    ratio: float
    microseconds: float
    in_floor: bool


class Why(NamedTuple):
    """The floor of a row: its parts, and what they mean."""

    result: Result
    parts: list[Part]
    sentence: str


def why(result: Result, rounds: int | None = None) -> Why | None:
    """Measures the floor of a row; `None` if no floor is known for such a row."""
    found = _steps_of(result.row, result.tensors)
    if found is None:
        return None
    steps, in_floor, sentence = found
    times = measure(steps, rounds or ROUNDS[result.tensors])
    parts = [
        _part(title, own, times[""], in_floor=title in in_floor) for title, own in times.items() if title
    ]
    return Why(result, parts, sentence)


def _part(title: str, times: list[Times], baseline: list[Times], *, in_floor: bool) -> Part:
    (ratio, _, _), _, _ = ratio_of(times, baseline)
    seconds = sorted(one.process for one in times)[len(times) // 2]
    return Part(title, ratio, 1e6 * seconds, in_floor)


_Found = tuple[Steps, tuple[str, ...], str]


def _steps_of(row: Row, tensors: str) -> _Found | None:
    if row.is_compile:
        return None
    if row.against:
        return _passing(row, tensors)
    if row.make == "emotional":
        return _around_inner(row, tensors)
    if tensors in (FOUR, THIRTY, TINY):
        return _small(row, tensors)
    if tensors in (LARGE, GPT2) and row.dtype == "float32":
        return _memory(row, tensors)
    return None


# PyTorch.

HOOKS = "the hooks and the record of `torch.optim.Optimizer.step`, around an empty step (only the baseline)"
CALL = "the call of compiled code, with the whole update"
CHECKS = "the comparison of all tensors with the plan (replaced, moved, other dtype or shape)"
LOSS = "the loss: checked, and the emotion updated"
GRADS = "reading the gradient of each parameter in Python"
SEARCH = "the search for small gradients: one pass over the gradients"
INNER = "the step of the inner optimizer"


def _small(row: Row, tensors: str) -> _Found:
    """The parts of a step of few small tensors."""
    import torch

    class Empty(torch.optim.Optimizer):
        """An optimizer that does nothing: only the hooks and the record of a step are left."""

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            """Does nothing."""

    torch.set_num_threads(THREADS.get(tensors, 1))
    optimizer = torch_optimizer(row, tensors)
    step = stepper(optimizer)
    for _ in range(8):
        step()
    params = optimizer.param_groups[0]["params"]
    known = optimizer._known_tensors()
    ready = known[0].params.layout.prepared["ready"]
    values = ready._numbers[:]
    loss = torch.tensor(1.0)
    steps: Steps = {
        "": torch_optimizer(baseline_of(row), tensors).step,
        "the whole step": step,
        CALL: lambda: ready.run(known[0].params, values),
        CHECKS: optimizer._known_tensors,
        LOSS: lambda: optimizer.update_memory(loss),
        GRADS: lambda: [param.grad for param in params],
        HOOKS: Empty(torch_params(tensors, row.dtype), {}).step,
    }
    sentence = (
        "Every step needs the call of compiled code, the comparison of the tensors and the emotion. The "
        "emotion has one value for the whole optimizer, so its cost does not shrink with the tensors, and "
        "AdamW has no such part."
    )
    return steps, (CALL, CHECKS, LOSS), sentence


def _around_inner(row: Row, tensors: str) -> _Found:
    """The parts of a step of `Emotional`."""
    import torch

    from emo_torch._kernels.least import which_are_below

    torch.set_num_threads(THREADS.get(tensors, 1))
    optimizer = torch_optimizer(row, tensors)
    grads = [param.grad for param in optimizer.param_groups[0]["params"]]
    loss = torch.tensor(1.0)
    free = torch_optimizer(row, tensors)
    free.param_groups[0]["theta"] = 0.0
    steps: Steps = {
        "": torch_optimizer(baseline_of(row), tensors).step,
        "the whole step": stepper(optimizer),
        "the whole step with `theta=0`, without the search": stepper(free),
        INNER: optimizer.inner.step,
        SEARCH: lambda: which_are_below(grads, 1e-12),
        LOSS: lambda: optimizer.update_memory(loss),
    }
    sentence = (
        "The inner optimizer is foreign code, and only its whole step can be called. Whether an element "
        "of a gradient is small must be known before that step, so the gradients are read once more; this "
        "search runs alone here, with the gradients outside the cache."
    )
    return steps, (INNER, SEARCH, LOSS), sentence


def _memory(row: Row, tensors: str) -> _Found | None:
    """The time to move the bytes of a step, and the bytes of AdamW."""
    from benchmarks.step_time.floor import Floor, touch_function
    from benchmarks.step_time.problems import fill
    from benchmarks.step_time.row_steps import SHAPES

    if touch_function() is None:
        return None
    threads = THREADS.get(tensors, 1)
    shapes = SHAPES[tensors]
    is_factored, kept = row.make == "emo_airy", row.options.get("moment_dtype")
    if not (is_factored or kept):
        return None
    # Two moments of bfloat16 are as many bytes as one array of float32. The moments of EmoAiry and codes of
    # 8 bits are small.
    streams = 2 if kept == "bfloat16" else 1
    total = 8 * streams + 4
    grads = fill(shapes, 1e-3, 1)
    ours = Floor(grads, [fill(shapes, 0.02, seed) for seed in range(streams)], threads)
    steps: Steps = {
        "": torch_optimizer(baseline_of(row), tensors).step,
        f"a kernel that only moves the {total} bytes of a weight": ours.touch,
        "the whole step": stepper(torch_optimizer(row, tensors)),
    }
    if is_factored:
        again = Floor(grads, [fill(shapes, 0.02, 0)], threads, 1)
        steps[f"a kernel that reads the gradient twice and moves {total + 4} bytes"] = again.touch
        sentence = "The second reading of the gradient finds only a part of it in the cache."
    elif kept == "8bit":
        sentence = (
            "The first part leaves out the codes, 2 bytes for each moment. The rest is arithmetic: each "
            "moment is decoded, and the largest of a block is known only after all, so that the codes are "
            "searched in a second pass over the block in the cache."
        )
    else:
        theirs = Floor(grads, [fill(shapes, 0.02, seed) for seed in range(3)], threads)
        steps["a kernel that only moves the 28 bytes of AdamW"] = theirs.touch
        sentence = (
            "The bytes alone are the first part. The rest is arithmetic: each moment is widened to "
            "float32 and rounded back to bfloat16, which AdamW in float32 does not do."
        )
    return steps, tuple(title for title in steps if "only moves" in title and str(total) in title), sentence


# JAX.


def _passing(row: Row, tensors: str) -> _Found:
    """The time to pass the arrays of a step in and out of a compiled program, and of what must be added."""
    import jax
    import jax.numpy as jnp

    baseline, ours = jax_optimizers(row)
    params, _, _ = jax_arrays(tensors)

    def touch(params: Any, state: Any, grads: Any, loss: Any) -> Any:
        moved = [param + 0.5 * grad + loss for param, grad in zip(params, grads, strict=True)]
        return moved, jax.tree.map(lambda leaf: ~leaf if leaf.dtype == bool else leaf + 1, state)

    step = jax_update(baseline)

    def filtered(params: Any, state: Any, grads: Any, loss: Any) -> Any:
        scale, least = 1.0 - 0.5 * jnp.abs(loss), 1e-12 * loss
        moved, state = step(params, state, grads, loss)
        moved = [
            jnp.where(jnp.abs(grad) >= least, old + scale * (new - old), old)
            for old, new, grad in zip(params, moved, grads, strict=True)
        ]
        return moved, state

    def count(optimizer: Any) -> int:
        return len(jax.tree.leaves((params, optimizer.init(params))))

    def runner(update: Callable[..., Any], optimizer: Any) -> Callable[[], Any]:
        arrays, _, _ = jax_arrays(tensors)
        return jax_runner(update, optimizer.init(arrays), tensors)

    passed = f"a program that passes on {count(ours)} arrays as in the row, one addition each"
    bare = f"a program that passes on {count(baseline)} arrays as in the baseline, one addition each"
    extra = "the baseline with a filter and a scale, without an emotion"
    steps: Steps = {
        "": runner(step, baseline),
        "the whole step": runner(jax_update(ours), ours),
        passed: runner(touch, ours),
        bare: runner(touch, baseline),
        extra: runner(filtered, baseline),
    }
    sentence = (
        f"A step of the row passes on {count(ours)} arrays, one of the baseline {count(baseline)}; each "
        "costs the same whatever its size. The public state has one array for each number of the emotion."
    )
    if tensors == LARGE:
        sentence = (
            "The filter reads the gradients beside the moments, and XLA runs it in the same loop: the "
            "baseline with a filter and a scale is the floor."
        )
        return steps, (extra,), sentence
    return steps, (passed,), sentence


def section(found: Sequence[Why | None], missed: Sequence[Result]) -> str:
    """Returns the section of the page: a table for each row that misses its bound."""
    if not missed:
        return "## Why a row misses\n\nEvery row is within its bound."
    lines = ["## Why a row misses", ""]
    lines.append(
        "Each part runs alone, in the same rounds as the baseline; its cost is its time over the "
        "baseline's. A row's floor is the sum of the parts that no such step can do without."
    )
    known = {(own.result.row.title, own.result.row.dtype, own.result.tensors): own for own in found if own}
    for result in missed:
        title = f"{result.row.title}, {result.row.dtype}, {result.tensors}"
        lines += ["", f"### {title}", ""]
        own = known.get((result.row.title, result.row.dtype, result.tensors))
        if own is None:
            lines.append(f"Ratio {result.ratio[0]:.2f}, at most {result.bound}. No floor is measured.")
            continue
        lines += ["| part | over the baseline | microseconds | in the floor |"]
        lines += ["| --- | ---: | ---: | --- |"]
        for part in own.parts:
            cells = f"{part.ratio:.2f} | {part.microseconds:.3g} | {'yes' if part.in_floor else ''}"
            lines.append(f"| {part.title} | {cells} |")
        floor = sum(part.ratio for part in own.parts if part.in_floor)
        lines += [
            "",
            f"Ratio {result.ratio[0]:.2f}, at most {result.bound}, floor {floor:.2f}. {own.sentence}",
        ]
    return "\n".join(lines)
