"""Moments in 8 bits in the kernels for CUDA: the codes and scales are those of the readable way.

Triton's interpreter runs the kernels without a GPU, and `triton_test.py` compiles them. The last tests need
a GPU.
"""

import json
import sys
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_shared.eight_bit import BLOCK, SIGNED, UNSIGNED
from emo_torch._kernels import coded_test, cuda, triton_test
from emo_torch._rules.eight_bit import encode
from emo_torch._step import loss_optimizer as _emotional
from emo_torch._step.sync_test import NoSync

SHAPES = ((70, 61), (4097,), (7,))
"""Blocks of 256 elements, short last blocks, and a small parameter, whose moments are not in codes."""
LOSSES = (2.0, 9.0, float("nan"))
CASES: dict[str, dict[str, Any]] = {
    # With these decay rates and bfloat16 gradients, products are exact, and all ways have equal moments.
    "emo_sens": {"betas": (0.5, 0.5), "theta": 0.3, "use_shadow": True},
    "emo_cats": {"betas": (0.5, 0.5), "weight_decay_mode": "absolute", "maximize": True},
    "emo_neco": {"betas": (0.5, 0.5), "weight_decay_mode": "l2"},
    "emo_tion": {"use_shadow": True},
}
KINDS = (*((name, "float32") for name in CASES), ("emo_sens", "bfloat16"), ("emo_sens", "float64"))
FEW = coded_test.FEW
"""The share of codes that may be higher or lower by 1 where products are rounded."""


def _train(name: str, dtype: str, device: str, **options: Any) -> dict[str, Tensor]:
    """Returns parameters and states after some steps."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=generator) for shape in SHAPES]
    params = [torch.nn.Parameter(param.to(device, getattr(torch, dtype))) for param in drawn]
    made = emo_torch.create_optimizer(name, params, lr=1e-2, moment_dtype="8bit", **options)
    for number, loss in enumerate(LOSSES):
        for param in params:
            gradient = torch.randn(param.shape, generator=generator)
            # Gradients of many sizes, some of them 0; in the third step, one that is not finite.
            gradient *= 10.0 ** torch.randn(param.shape, generator=generator) * (gradient < 1)
            if number == 2:
                gradient.view(-1)[300 % param.numel()] = float("nan")
            param.grad = gradient.to(torch.bfloat16).to(device, param.dtype)
        with NoSync() if options.get("fused") and device == "cpu" else nullcontext():
            made.step(loss=torch.tensor(loss, device=device))
    found = {f"param {index}": param.detach() for index, param in enumerate(params)}
    for index, param in enumerate(params):
        found.update({f"{key} {index}": value for key, value in made.state[param].items()})
    return found


def _wrong(ours: dict[str, Tensor], theirs: dict[str, Tensor], *, is_exact: bool) -> list[str]:
    """Returns the names of tensors that differ by more than their bounds."""
    wrong = [] if ours.keys() == theirs.keys() else ["other tensors"]
    wrong += [] if any(value.dtype == torch.uint8 for value in ours.values()) else ["no codes"]
    for name, value in ours.items():
        other = theirs[name]
        if value.dtype == torch.uint8:
            apart = (value.int() - other.int()).abs()
            few = 0.0 if is_exact else FEW
            same = int(apart.max()) <= 1 and float((apart > 0).float().mean()) <= few
        elif "_scale" in name and is_exact:
            same = bool(((value == other) | (value.isnan() & other.isnan())).all())
        else:
            bound = 1e-2 if value.dtype == torch.bfloat16 else 1e-5
            same = torch.allclose(value.double(), other.double(), bound, bound, equal_nan=True)
        if not same:
            wrong.append(name)
    return wrong


def _stored(make: Any, moment: str, values: Tensor, table: tuple[float, ...]) -> list[str]:
    """Returns which of the codes and scales of a moment differ from those of the reference."""
    param = torch.nn.Parameter(torch.zeros(values.shape))
    # With decay rates of 0 the moment is the gradient, or its square.
    made = make([param], betas=(0.0, 0.0), moment_dtype="8bit", fused=True)
    param.grad = values.clone()
    made.step(loss=1.0)
    codes, scales = encode(values * values if table is UNSIGNED else values + 0.0, table)
    state = made.state[param]
    same = torch.allclose(state[f"{moment}_scale"], scales, rtol=0, atol=0, equal_nan=True)
    return [*([] if state[moment].equal(codes) else ["codes"]), *([] if same else ["scales"])]


def _interpret() -> None:
    """Runs all cases and prints the differences; in a process of its own that interprets kernels."""
    triton_test.patch_triton_once()
    cuda.DEVICES = ("cpu",)
    vars(_emotional)["check_fused"] = lambda *_, **__: None  # The check requires a GPU.
    step, left = cuda.step, []

    def count(*args: Any, **given: Any) -> list[int]:
        rest = step(*args, **given)
        left.append(len(rest))
        return rest

    found: dict[str, list[str]] = {}
    for name, dtype in KINDS:
        options = CASES[name]
        cuda.step = count
        ours = _train(name, dtype, "cpu", fused=True, **options)
        cuda.step = step
        theirs = _train(name, dtype, "cpu", foreach=False, fused=False, **options)
        found[f"{name}-{dtype}"] = _wrong(ours, theirs, is_exact="betas" in options)
    found["left to the other ways"] = [str(number) for number in left if number]
    # Interpreting takes long: of the 64 blocks near the midpoints, the 16 that are nearest.
    values = coded_test._odd(coded_test._near_midpoints(SIGNED, 1.0)[24 * BLOCK : 40 * BLOCK])
    found["first moments"] = _stored(emo_torch.EmoCats, "exp_avg", values, SIGNED)
    values = coded_test._odd(coded_test._near_midpoints(UNSIGNED, 2.0)[24 * BLOCK : 40 * BLOCK])
    found["second moments"] = _stored(emo_torch.EmoSens, "exp_avg_sq", values, UNSIGNED)
    print(json.dumps(found))


TITLES = [f"{name}-{dtype}" for name, dtype in KINDS]
TITLES += ["left to the other ways", "first moments", "second moments"]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(
        triton_test.run(__file__, "interpret", {"TRITON_INTERPRET": "1"})
    )
    return found


@triton_test.needs_triton
@pytest.mark.xdist_group("triton codes")
@pytest.mark.parametrize("title", TITLES)
def test_interpreted_kernels_give_the_codes_of_the_readable_way(
    title: str, interpreted: dict[str, list[str]]
) -> None:
    assert interpreted[title] == []


# On a GPU.

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU WAS FOUND")


@needs_gpu
@triton_test.needs_triton
@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_codes_on_a_gpu_are_those_of_the_readable_way(name: str, dtype: str) -> None:
    ours = _train(name, dtype, "cuda", fused=True, **CASES[name])
    theirs = _train(name, dtype, "cuda", foreach=False, fused=False, **CASES[name])
    assert _wrong(ours, theirs, is_exact="betas" in CASES[name]) == []


@needs_gpu
@triton_test.needs_triton
@pytest.mark.parametrize("name", CASES)
def test_a_captured_step_of_codes_replays_as_eager_steps(name: str) -> None:
    found = []
    for captures in (False, True):
        generator = torch.Generator(device="cuda").manual_seed(1)
        param = torch.nn.Parameter(torch.randn(70, 61, generator=generator, device="cuda"))
        param.grad = torch.randn(param.shape, generator=generator, device="cuda")
        loss = torch.tensor(2.0, device="cuda")
        made = emo_torch.create_optimizer(
            name, [param], lr=1e-2, moment_dtype="8bit", fused=True, capturable=True
        )
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            made.step(loss=loss)
            torch.cuda.set_sync_debug_mode("error")
            try:
                made.step(loss=loss)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if captures:
            with torch.cuda.graph(graph):
                made.step(loss=loss)
        for number in (2.0, 9.0, 3.0):
            loss.fill_(number)
            param.grad.copy_(torch.randn(param.shape, generator=generator, device="cuda"))
            if captures:
                graph.replay()
            else:
                made.step(loss=loss)
        found.append({"param": param.detach(), **made.state[param]})
    assert _wrong(found[1], found[0], is_exact=True) == []


if __name__ == "__main__":
    {"interpret": _interpret}[sys.argv[1]]()
