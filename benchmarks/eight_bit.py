"""The cost of moments in 8 bits in quality, and their savings in memory.

    python -m benchmarks.eight_bit --output docs/yardstick

writes `eight_bit.md`. Each of the four tasks of the yardstick is trained with float32 moments and with
moments in 8 bits, from the same weights, on the same batches. All moments are in 8 bits here, also of
tensors that are too small for it: in these tasks most are. A third run has a naive code, 256 values at
equal distances, to show that the choice of the values matters.

    python -m benchmarks.eight_bit --others --output docs/yardstick

writes `eight_bit_others.md`: memory and time of a step, beside the 8-bit AdamW of torchao and bitsandbytes.
"""

import argparse
from pathlib import Path

from examples.command import answer_early, one_of


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eight_bit", description=__doc__)
    parser.add_argument(
        "--task", type=one_of(lambda: TASKS), metavar="NAME", action="append", help="default: all four"
    )
    parser.add_argument("--steps", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="the folder to write the page to")
    parser.add_argument("--others", action="store_true", help="compare with other packages")
    parser.add_argument("--rounds", type=int, default=9, help="steps to measure with --others (default: 9)")
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("jax", "optax", "sklearn", "rich"))

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.markdown import Markdown

import emo_optax
from benchmarks.quality.contenders import Contender
from benchmarks.quality.tasks import tasks
from benchmarks.quality.training import train
from benchmarks.step_time.tables import table
from emo_optax._rules import eight_bit
from emo_shared.eight_bit import BLOCK, UNSIGNED, block_count
from examples.progress import track

TASKS = ("mlp", "cnn", "transformer", "lora")
MEASURED = {"emo_sens": 1e-3, "emo_cats": 3e-4}
"""Members with one and with two moments, and their learning rates."""
CODES = ("float32", "8bit", "linear")
AT_MOST = 0.01
"""How much larger the loss on the test data may be with moments in 8 bits, as a share."""


def _linear_encode(values: jax.Array, values_of: eight_bit.Table) -> eight_bit.CodedMoment:
    rows, size = _rows(values.astype(jnp.float32))
    scale = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    shares = rows / jnp.where(scale > 0.0, scale, 1.0)
    codes = 255.0 * shares if values_of == UNSIGNED else 127.0 * shares + 127.0
    codes = jnp.round(codes).astype(jnp.uint8).reshape(-1)[:size]
    return eight_bit.CodedMoment(codes.reshape(values.shape), scale.reshape(-1))


def _linear_decode(moment: eight_bit.CodedMoment, values_of: eight_bit.Table) -> jax.Array:
    rows, size = _rows(moment.codes.astype(jnp.float32))
    shares = rows / 255.0 if values_of == UNSIGNED else (rows - 127.0) / 127.0
    values: jax.Array = (shares * moment.scales[:, None]).reshape(-1)[:size]
    return values.reshape(moment.codes.shape)


def _rows(values: jax.Array) -> tuple[jax.Array, int]:
    blocks = block_count(values.size)
    flat = jnp.pad(values.reshape(-1), (0, blocks * BLOCK - values.size))
    return flat.reshape(blocks, BLOCK), values.size


@contextmanager
def _coded(code: str) -> Iterator[None]:
    """Lets all moments be coded, in the dynamic code or in the naive one."""
    with mock.patch("emo_optax._rules.moments.is_coded", return_value=True):
        if code != "linear":
            yield
            return
        with (
            mock.patch.object(eight_bit, "encode", _linear_encode),
            mock.patch.object(eight_bit, "decode", _linear_decode),
        ):
            yield


def measure(task: str, member: str, code: str, steps: int, seeds: int) -> float:
    """Returns the loss on the test data, the mean over seeds."""
    kept = None if code == "float32" else "8bit"

    def make(rate: Any, _: int) -> Any:
        return emo_optax.create_optimizer(member, lambda _: rate, moment_dtype=kept)

    contender = Contender(member, MEASURED[member], make, {code: lambda _, params: params})
    with _coded(code):
        found = train(tasks()[task], contender, [MEASURED[member]], range(seeds), steps)
    return float(found[code].mean())


def bytes_per_weight(member: str, kept: str | None) -> float:
    """Returns the bytes of the moments of a matrix, for each weight."""
    param = jax.ShapeDtypeStruct((768, 768), jnp.float32)
    state = jax.eval_shape(emo_optax.create_optimizer(member, 1e-3, moment_dtype=kept).init, param)
    large = [leaf for leaf in jax.tree.leaves(state) if leaf.size >= block_count(param.size)]
    return float(sum(leaf.size * leaf.dtype.itemsize for leaf in large) / param.size)


def report(found: dict[tuple[str, str, str], float]) -> str:
    """Returns the page: a row for each task and member."""
    titles = {name: task.title for name, task in tasks().items()}
    rows = []
    for task, member in dict.fromkeys((task, member) for task, member, _ in found):
        wide, coded, linear = (found[task, member, code] for code in CODES)
        more = coded / wide - 1.0
        verdict = "pass" if more <= AT_MOST else "**fail**"
        losses = f"{wide:.4f}", f"{coded:.4f}", f"{more:+.2%}", verdict, f"{linear:.4f}"
        rows.append((titles[task], member, *losses, f"{linear / wide - 1.0:+.1%}"))
    heads = ("task", "member", "float32", "8 bits", "change", "bound", "linear code", "its change")
    kept = [
        (member, *(f"{bytes_per_weight(member, kind):.3f}" for kind in (None, "bfloat16", "8bit")))
        for member in MEASURED
    ]
    return "\n\n".join(
        [
            "# Moments in 8 bits",
            "Written by `python -m benchmarks.eight_bit`. Losses on the test data after training, means "
            "over the seeds, with float32 moments, with moments in 8 bits, and with a naive code of 256 "
            "values at equal distances. All moments are coded here, also those of small tensors. The loss "
            f"with 8 bits may be {AT_MOST:.0%} above the loss with float32.",
            table(heads, rows, left=2),
            "Bytes of the moments for each weight of a matrix of 768 x 768:",
            table(("member", "float32", "bfloat16", "8 bits"), kept, left=1),
        ]
    )


def compare(rounds: int, output: Path | None) -> int:
    """Measures, prints and writes the comparison with other packages; 2 if one of them is missing."""
    from benchmarks import eight_bit_others

    console = Console()
    missing = [name for name in eight_bit_others.NEEDS if find_spec(name) is None]
    if missing:
        extras = f"examples,{eight_bit_others.EXTRA}"
        console.print(
            f"{' and '.join(missing)} missing. Install with pip install 'emo-optimizers[{extras}]', or "
            f"from a clone with pip install -e '.[{extras}]'",
            markup=False,
        )
        return 2
    page = eight_bit_others.report(eight_bit_others.measure(eight_bit_others.makers(), rounds))
    console.print(Markdown(page))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "eight_bit_others.md").write_text(page + "\n")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints and writes; returns 1 if a loss with 8 bits is above its bound."""
    given = options().parse_args(arguments)
    if given.others:
        return compare(given.rounds, given.output)
    names = given.task or TASKS
    jobs = [(task, member, code) for task in names for member in MEASURED for code in CODES]
    console = Console()
    found = {
        job: measure(*job, given.steps, given.seeds)
        for job in track(jobs, "runs", console=console, transient=True)
    }
    page = report(found)
    console.print(Markdown(page))
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "eight_bit.md").write_text(page + "\n")
        console.print(f"written: {given.output / 'eight_bit.md'}")
    return 1 if "**fail**" in page else 0


if __name__ == "__main__":
    sys.exit(main())
