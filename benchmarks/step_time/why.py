"""Why a row of low precision, wrappers and small networks misses its bound: the floor, part by part.

Each part is a function that runs in the same rounds as the baseline. Its cost is its time over the time of
the baseline.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.step_time import why_steered
from benchmarks.step_time.memory_floor import EITHER, memory
from benchmarks.step_time.row_steps import (
    COMPILE_ROUNDS,
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
    compiler,
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

SIGNS = {0: "", 1: "yes", -1: "subtracted", EITHER: "the largest of these"}


class Part(NamedTuple):
    """A part of a step, with its cost.

    Attributes:
        title: what the part does.
        ratio: its time over the baseline's.
        microseconds: the median of its time.
        in_floor: 1 if every step of this kind has this part, so that the floor has it; -1 if the floor has
            it twice, so that it is subtracted; `EITHER` for parts that run side by side, of which the floor
            has the largest; otherwise 0.
    """

    title: str
    ratio: float
    microseconds: float
    in_floor: int


def floor_of(parts: Sequence[Part]) -> float:
    """Returns the floor: the sum of the parts of every step, and the largest of the parts side by side."""
    alone = sum(part.in_floor * part.ratio for part in parts if part.in_floor != EITHER)
    return alone + max((part.ratio for part in parts if part.in_floor == EITHER), default=0.0)


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
    given = rounds or ROUNDS[result.tensors]
    if result.row.is_compile:
        times = measure(steps, min(given, COMPILE_ROUNDS), 1)
    else:
        times = measure(steps, given)
    threads = THREADS.get(result.tensors, 1)
    parts = [
        _part(title, own, times[""], in_floor.get(title, 0), threads)
        for title, own in times.items()
        if title
    ]
    return Why(result, parts, sentence)


def _part(title: str, times: list[Times], baseline: list[Times], in_floor: int, threads: int) -> Part:
    (ratio, _, _), _, _ = ratio_of(times, baseline, threads)
    seconds = sorted(one.process for one in times)[len(times) // 2]
    return Part(title, ratio, 1e6 * seconds, in_floor)


_Found = tuple[Steps, dict[str, int], str]


def _steps_of(row: Row, tensors: str) -> _Found | None:
    if row.is_compile:
        return _compiling(row, tensors)
    if row.make == "emo_pilot":
        return why_steered.in_jax(row, tensors) if row.against else why_steered.in_torch(row, tensors)
    if row.against:
        return _passing(row, tensors)
    if row.make == "emotional":
        return _around_inner(row, tensors)
    if tensors in (FOUR, THIRTY, TINY):
        return _small(row, tensors)
    if tensors in (LARGE, GPT2) and row.dtype == "float32":
        return memory(row, tensors)
    return None


# PyTorch.

HOOKS = "the hooks and the record of `torch.optim.Optimizer.step`, around an empty step (only the baseline)"
CALL = "the call of compiled code, with the whole update"
CHECKS = "the comparison of all tensors with the plan (replaced, moved, other dtype or shape)"
LOSS = "the loss: checked, and the emotion updated"
GRADS = "reading the gradient of each parameter in Python"
SEARCH = "the search for small gradients: one pass over the gradients"
RATE = "the learning rate: scaled by the emotion, and restored"
WHOLE = "the gradients of all parameters: none sparse or complex"
PLAIN = "the same, with the parameters: plain tensors on the CPU, of one dtype"
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
    values = ready._numbers[:4]
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
    return steps, dict.fromkeys((CALL, CHECKS, LOSS), 1), sentence


def _around_inner(row: Row, tensors: str) -> _Found:
    """The parts of a step of `Emotional`."""
    import torch

    from emo_torch._kernels.least import which_are_below
    from emo_torch._wrappers.inner_step import are_plain_on_cpu, scaled_rate

    torch.set_num_threads(THREADS.get(tensors, 1))
    optimizer = torch_optimizer(row, tensors)
    params = optimizer.param_groups[0]["params"]
    grads = [param.grad for param in params]

    def scale_rate() -> None:
        with scaled_rate(optimizer.param_groups, scalar):
            pass

    scalar = torch.tensor(0.5)
    loss = torch.tensor(1.0)
    free = torch_optimizer(row, tensors)
    free.param_groups[0]["theta"] = 0.0
    steps: Steps = {
        "": torch_optimizer(baseline_of(row), tensors).step,
        "the whole step": stepper(optimizer),
        "the whole step with `theta=0`, without the search": stepper(free),
        INNER: optimizer.inner.step,
        SEARCH: lambda: which_are_below(grads, 1e-12),
        WHOLE: optimizer._known_tensors,
        PLAIN: lambda: are_plain_on_cpu(params),
        RATE: scale_rate,
        LOSS: lambda: optimizer.update_memory(loss),
    }
    sentence = (
        "The inner optimizer is foreign code, and only its whole step can be called. Whether an element "
        "of a gradient is small must be known before that step, so the gradients are read once more; this "
        "search runs alone here, with the gradients outside the cache."
    )
    return steps, dict.fromkeys((INNER, SEARCH, WHOLE, PLAIN, RATE, LOSS), 1), sentence


# JAX.

SMALL = 40
"""The most elements of an array of an emotion."""
FILTERED = "the baseline with a filter and a scale, without an emotion"


def _filtered(baseline: Any) -> Callable[..., Any]:
    """Returns a step of the baseline with a filter and a scale, which depend on the loss."""
    import jax.numpy as jnp

    step = jax_update(baseline)

    def filtered(params: Any, state: Any, grads: Any, loss: Any) -> Any:
        scale, least = 1.0 - 0.5 * jnp.abs(loss), 1e-12 * loss
        moved, state = step(params, state, grads, loss)
        moved = [
            jnp.where(jnp.abs(grad) >= least, old + scale * (new - old), old)
            for old, new, grad in zip(params, moved, grads, strict=True)
        ]
        return moved, state

    return filtered


def _in_a_list(step: Callable[..., Any], state: Any) -> tuple[Callable[..., Any], Any]:
    """Returns a step whose state is a list of its arrays, without the nodes of a tree."""
    import jax

    leaves, tree = jax.tree.flatten(state)

    def step_of_leaves(params: Any, leaves: Any, grads: Any, loss: Any) -> Any:
        params, after = step(params, jax.tree.unflatten(tree, leaves), grads, loss)
        return params, jax.tree.leaves(after)

    return step_of_leaves, leaves


def _compiling(row: Row, tensors: str) -> _Found:
    """The time to compile the parts of a step."""
    import optax

    import emo_optax

    baseline, ours = jax_optimizers(row)
    emotion, nothing = "the emotion alone", "a program with next to nothing"
    steps: Steps = {
        "": compiler(jax_update(baseline), baseline, tensors),
        "the whole step": compiler(jax_update(ours), ours, tensors),
        emotion: _emotion_compiler(emo_optax.share_emotion(optax.identity())),
        nothing: _emotion_compiler(optax.identity()),
    }
    rule, factored = FILTERED, optax.adafactor(1e-3)
    if row.make == "emotional":
        steps[rule] = compiler(_filtered(baseline), baseline, tensors)
    else:
        rule = "the baseline again, for the rule of the row"
        steps[rule] = compiler(jax_update(baseline), baseline, tensors)
        title = "`optax.adafactor`, which has moments as averages of rows and columns, too"
        steps[title] = compiler(jax_update(factored), factored, tensors)
    sentence = (
        "The emotion is one more part of the program, whose compilation takes as long with four arrays "
        "as with thirty; the rule needs more loops for each array than the baseline has."
    )
    return steps, {rule: 1, emotion: 1, nothing: -1}, sentence


def _emotion_compiler(optimizer: Any) -> Callable[[], Any]:
    return compiler(jax_update(optimizer), optimizer, TINY)


def _passing(row: Row, tensors: str) -> _Found:
    """The time to pass the arrays of a step in and out of a compiled program, and of what must be added."""
    import jax

    baseline, ours = jax_optimizers(row)
    params, _, _ = jax_arrays(tensors)

    def passed_on(leaf: Any) -> Any:
        if leaf.size <= SMALL:  # The compiler removes the operation, and aliases the output to the input.
            return leaf & True if leaf.dtype == bool else leaf * 1
        return leaf + 1

    def touch(params: Any, state: Any, grads: Any, loss: Any) -> Any:
        moved = [param + 0.5 * grad + loss for param, grad in zip(params, grads, strict=True)]
        return moved, jax.tree.map(passed_on, state)

    step = jax_update(baseline)

    def count(optimizer: Any) -> int:
        return len(jax.tree.leaves((params, optimizer.init(params))))

    def runner(update: Callable[..., Any], optimizer: Any) -> Callable[[], Any]:
        arrays, _, _ = jax_arrays(tensors)
        return jax_runner(update, optimizer.init(arrays), tensors)

    passed = f"a program that passes on {count(ours)} arrays as in the row"
    bare = f"a program that passes on {count(baseline)} arrays as in the baseline"
    extra = FILTERED
    steps: Steps = {
        "": runner(step, baseline),
        "the whole step": runner(jax_update(ours), ours),
        passed: runner(touch, ours),
        bare: runner(touch, baseline),
        extra: runner(_filtered(baseline), baseline),
    }
    listed = "the whole step, with the arrays of its state in a list"
    steps[listed] = jax_runner(*_in_a_list(jax_update(ours), ours.init(params)), tensors)
    sentence = (
        f"A step of the row passes on {count(ours)} arrays, one of the baseline {count(baseline)}; each "
        "costs the same whatever its size. The emotion has two of them. The named tuples and the dictionary"
        " of the state cost time too, as the part with a list says."
    )
    if tensors == LARGE:
        sentence = (
            "The filter reads the gradients beside the moments, and XLA runs it in the same loop: the "
            "baseline with a filter and a scale is the floor."
        )
        return steps, {extra: 1}, sentence
    return steps, {passed: 1}, sentence


def section(found: Sequence[Why | None], missed: Sequence[Result]) -> str:
    """Returns the section of the page: a table for each row that misses its bound."""
    if not missed:
        return "## Why a row misses\n\nEvery row is within its bound."
    lines = ["## Why a row misses", ""]
    lines.append(
        "Each part runs alone, in the same rounds as the baseline; its cost is its time over the "
        "baseline's. A row's floor is the sum of the parts that no such step can do without; of parts "
        "that run side by side it has the largest."
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
            cells = f"{part.ratio:.2f} | {part.microseconds:.3g} | {SIGNS[part.in_floor]}"
            lines.append(f"| {part.title} | {cells} |")
        floor = floor_of(own.parts)
        lines += [
            "",
            f"Ratio {result.ratio[0]:.2f}, at most {result.bound}, floor {floor:.2f}. {own.sentence}",
        ]
    return "\n".join(lines)
