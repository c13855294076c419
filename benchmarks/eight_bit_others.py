"""Memory and time of a step with moments in 8 bits, beside the 8-bit AdamW of torchao and of bitsandbytes.

`python -m benchmarks.eight_bit --others` calls this module. All optimizers step the same matrices in
float32, on the CPU, with one thread, interleaved in one process.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import emo_torch
from benchmarks.step_time.problems import Shape, fill
from benchmarks.step_time.store import environment
from benchmarks.step_time.tables import table

NEEDS = ("torchao", "bitsandbytes")
"""The packages that the comparison needs beside those of this project."""
EXTRA = "trainers"
SHAPES: tuple[Shape, ...] = ((768, 768),) * 24
LEARNING_RATE = 1e-6
WARM = 3
HEAD = ("optimizer", "moments, bytes a weight", "a step, ms", "over AdamW(fused=True)")


class Measured(NamedTuple):
    """The result for one optimizer: bytes of its state for each weight, and seconds of its steps."""

    bytes_each: float
    seconds: list[float]


def makers() -> dict[str, Callable[[list[Any]], Any]]:
    """Returns functions that make the optimizers to compare, the baseline first."""
    import bitsandbytes
    import torchao.optim

    return {
        **own_makers(),
        f"torchao {torchao.__version__}, AdamW8bit": lambda params: torchao.optim.AdamW8bit(
            params, lr=LEARNING_RATE
        ),
        f"bitsandbytes {bitsandbytes.__version__}, AdamW8bit": lambda params: bitsandbytes.optim.AdamW8bit(
            params, lr=LEARNING_RATE
        ),
    }


def own_makers() -> dict[str, Callable[[list[Any]], Any]]:
    """Returns functions that make AdamW and the optimizers of this project."""

    def member(name: str, kept: str | None) -> Callable[[list[Any]], Any]:
        return lambda params: emo_torch.create_optimizer(name, params, lr=LEARNING_RATE, moment_dtype=kept)

    return {
        "AdamW(fused=True)": lambda params: torch.optim.AdamW(params, lr=LEARNING_RATE, fused=True),
        "EmoSens": member("emo_sens", None),
        'EmoSens, moment_dtype="8bit"': member("emo_sens", "8bit"),
        'EmoCats, moment_dtype="8bit"': member("emo_cats", "8bit"),
    }


def _made(shapes: tuple[Shape, ...]) -> list[Any]:
    params = [torch.nn.Parameter(torch.from_numpy(array)) for array in fill(shapes, 0.02, 0)]
    for param, array in zip(params, fill(shapes, 1e-3, 1), strict=True):
        param.grad = torch.from_numpy(array)
    return params


def bytes_of(value: Any) -> int:
    """Returns the bytes of a tensor, also of one that is made of several tensors."""
    if not isinstance(value, Tensor):
        return 0
    if hasattr(value, "__tensor_flatten__"):
        return sum(bytes_of(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return value.numel() * value.element_size()


def measure(
    made: dict[str, Callable[[list[Any]], Any]], rounds: int, shapes: tuple[Shape, ...] = SHAPES
) -> dict[str, Measured]:
    """Returns the bytes and the times of each optimizer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        optimizers = {title: make(_made(shapes)) for title, make in made.items()}
        seconds: dict[str, list[float]] = {title: [] for title in made}
        for index in range(WARM + rounds):
            for title, optimizer in optimizers.items():
                given = {"loss": 1.0 + 0.01 * (index % 7)} if "Emo" in title else {}
                start = time.process_time()
                optimizer.step(**given)
                if index >= WARM:
                    seconds[title].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return {title: Measured(_bytes_each(own), seconds[title]) for title, own in optimizers.items()}


def _bytes_each(optimizer: Any) -> float:
    """Returns the bytes of the state for each weight. Tables that several tensors share count once."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    # Some optimizers put one table into all states.
    kept = {id(value): bytes_of(value) for state in optimizer.state.values() for value in state.values()}
    return sum(kept.values()) / float(sum(param.numel() for param in params))


def report(found: dict[str, Measured]) -> str:
    """Returns the page."""
    medians = {title: statistics.median(own.seconds) for title, own in found.items()}
    baseline = next(iter(medians.values()))
    rows = [
        (
            title,
            f"{own.bytes_each:.3f}",
            f"{1e3 * medians[title]:.3g}",
            f"{medians[title] / baseline:.2f}",
        )
        for title, own in found.items()
    ]
    machine = ", ".join(f"{name} {value}" for name, value in environment().items() if "ja" not in name)
    return "\n\n".join(
        [
            "# Moments in 8 bits, beside other packages",
            "Written by `python -m benchmarks.eight_bit --others`. 24 matrices of 768 x 768 in float32, on "
            "the CPU, one thread, all optimizers in turn in one process. Times are medians of the "
            "processor's time. torchao compiles its step by `torch.compile` at the first step, which is "
            "not counted. torchao and bitsandbytes are made for GPUs first; the table says nothing about "
            "a GPU.",
            table(HEAD, rows, left=1),
            f"Machine and versions: {machine}.",
        ]
    )
