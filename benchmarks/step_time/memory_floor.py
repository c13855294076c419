"""Why a row of many weights misses its bound: the bytes that a step moves, and its arithmetic."""

import math

from benchmarks.step_time.parts import part
from benchmarks.step_time.row_steps import (
    SHAPES,
    THREADS,
    Row,
    Steps,
    baseline_of,
    stepper,
    torch_optimizer,
)

EITHER = 2
"""The mark of parts that run side by side, of which the floor has the largest."""
ARITHMETIC = "its arithmetic alone: the same step on 1024 weights that stay in the first cache"


def memory(row: Row, tensors: str) -> tuple[Steps, dict[str, int], str] | None:
    """Returns the time to move the bytes of a step, its arithmetic, and the bytes of AdamW.

    A processor computes while it waits for memory: the floor is the larger one of bytes and arithmetic.
    """
    import torch

    from benchmarks.step_time.floor import Floor, touch_function
    from benchmarks.step_time.problems import fill

    if touch_function() is None:
        return None
    threads = THREADS.get(tensors, 1)
    torch.set_num_threads(threads)
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
    in_floor = {f"a kernel that only moves the {total} bytes of a weight": EITHER}
    if is_factored:
        again = Floor(grads, [fill(shapes, 0.02, 0)], threads, 1)
        steps[f"a kernel that reads the gradient twice and moves {total + 4} bytes"] = again.touch
        return steps, in_floor, "The second reading of the gradient finds only a part of it in the cache."
    rule, count = "lion" if row.make == "emo_cats" else "uncorrected_adam", sum(map(math.prod, shapes))
    # The names of parts.c, and what the parts do.
    parts = {"rule": "the rule alone, on moments of float32 in the first cache"}
    if kept == "8bit":
        parts |= {"coded step": ARITHMETIC, "decoding": "decoding alone, in the first cache"}
        parts["encoding"] = "finding the scales and the codes alone, in the first cache"
        sentence = (
            "The bytes leave out the codes, 2 bytes for each moment. The step decodes each moment. The "
            "largest of a block is known only after all others, so that the codes are found in a second "
            "pass over the block. AdamW has none of these parts."
        )
    else:
        parts["narrow step"] = ARITHMETIC
        theirs = Floor(grads, [fill(shapes, 0.02, seed) for seed in range(3)], threads)
        steps["a kernel that only moves the 28 bytes of AdamW"] = theirs.touch
        sentence = (
            "In the arithmetic each moment is widened to float32 and rounded back to bfloat16. AdamW in "
            "float32 has only the rule. A processor does not compute all of the time that it waits."
        )
    for name, title in parts.items():
        found = part(name, rule, count)
        if found is not None:
            steps[title] = found
    return steps, in_floor | {ARITHMETIC: EITHER}, sentence
