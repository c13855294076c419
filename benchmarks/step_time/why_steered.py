"""The floor of rows with EmoPilot: what a step reads before the first weight can move."""

from collections.abc import Callable
from typing import Any

from benchmarks.step_time.row_steps import (
    SHAPES,
    THREADS,
    Row,
    Steps,
    baseline_of,
    jax_arrays,
    jax_optimizers,
    jax_runner,
    jax_update,
    stepper,
    torch_optimizer,
)

Found = tuple[Steps, dict[str, int], str]
"""The parts of a step, the parts that belong to the floor, and what they mean."""
TWICE = (
    "The length of a step needs the norm of all gradients before the first weight moves. So gradients are "
    "read twice. A gradient that is not finite must leave all moments as they are, to the bit, so that no "
    "pass can move them earlier."
)
IN_JAX = (
    TWICE + " The products with the first moments could be computed while the moments move; XLA makes one "
    "loop for each sum and for each array that a step returns, and reads the first moments and the weights "
    "once more."
)


def in_torch(row: Row, tensors: str) -> Found | None:
    """Returns kernels that only move the bytes of a step of EmoPilot, and of AdamW."""
    import torch

    from benchmarks.step_time.floor import Floor, touch_function
    from benchmarks.step_time.problems import fill

    if touch_function() is None:
        return None
    threads = THREADS.get(tensors, 1)
    torch.set_num_threads(threads)
    shapes = SHAPES[tensors]
    grads = fill(shapes, 1e-3, 1)
    written = 3 + row.options.get("average", True)
    ours = Floor(grads, [fill(shapes, 0.02, seed) for seed in range(written)], threads, 1)
    theirs = Floor(grads, [fill(shapes, 0.02, seed) for seed in range(3)], threads)
    least = f"a kernel that reads 1 array, and then reads {written + 1} and writes {written}"
    steps: Steps = {
        "": torch_optimizer(baseline_of(row), tensors).step,
        least: ours.touch,
        "the whole step": stepper(torch_optimizer(row, tensors)),
        "a kernel that reads 4 arrays and writes 3, as AdamW": theirs.touch,
    }
    return steps, {least: 1}, TWICE


def in_jax(row: Row, tensors: str) -> Found:
    """Returns the baseline again, and programs that only read four arrays and only move an average."""
    import jax
    import jax.numpy as jnp

    baseline, ours = jax_optimizers(row)
    params, grads, _ = jax_arrays(tensors)
    moments = [jax.tree.map(jnp.copy, grads) for _ in range(2)]
    read = jax.jit(lambda *trees: [jnp.sum(leaf) for leaf in jax.tree.leaves(trees)])

    def move(params: Any, state: Any, *_: Any) -> Any:
        return params, [a + 0.1 * (p - a) for a, p in zip(state, params, strict=True)]

    def runner(update: Callable[..., Any], state: Any) -> Callable[[], Any]:
        return jax_runner(update, state, tensors)

    step, again = jax_update(baseline), "the baseline again: EmoPilot has the same moments"
    sums, average = "a program that only adds up the elements of four arrays", "the average of the weights"
    steps: Steps = {
        "": runner(step, baseline.init(params)),
        "the whole step": runner(jax_update(ours), ours.init(params)),
        again: runner(step, baseline.init(params)),
        sums: lambda: jax.block_until_ready(read(params, grads, moments)),
        average: runner(move, jax.tree.map(jnp.copy, params)),
    }
    return steps, dict.fromkeys((again, sums, average), 1), IN_JAX
