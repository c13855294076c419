"""The kernels for CUDA without a GPU: Triton's interpreter runs them, and Triton's compiler accepts them.

`cuda_test.py` has the tests that need a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._checks.validation import check_fused
from emo_torch._kernels import cuda
from emo_torch._kernels import cuda_layouts as layouts
from emo_torch._members.by_name import MEMBERS as REGISTRY
from emo_torch._step import loss_optimizer as _emotional
from emo_torch._step import ways as _ways
from emo_torch._step.later_optimizers import DriveOptimizer, PulseOptimizer
from emo_torch._step.sync_test import NoSync

needs_triton = pytest.mark.skipif(not cuda.is_available(), reason="TRITON IS NOT INSTALLED")
BOUNDS = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 1e-2}
SHAPES = ((), (0,), (19, 10), (3, 4, 5), (70,))
LOSSES = (2.0, 9.0, 2.0)
# EmoNavi, EmoFact and EmoLynx have the rules of EmoClan.
MEMBERS = ("emo_sens", "emo_airy", "emo_cats", "emo_clan", "emo_neco", "emo_zeal")
KINDS = (("float32", "decoupled"), ("float32", "l2"), ("float64", "absolute"), ("bfloat16", "decoupled"))
LATER = tuple(
    name for name, member in REGISTRY.items() if issubclass(member.make, DriveOptimizer | PulseOptimizer)
)
"""The members of v3.6.1 and v3.9.1."""
NARROW = ("emo_sens", "emo_airy", "emo_cats")
"""Members whose moments are stored in bfloat16, with float32 weights."""
CASES = [(name, *kind) for name in MEMBERS for kind in KINDS]
CASES += [(name, "float64", "l2") for name in LATER]
CASES += [(name, "bfloat16", "decoupled") for name in ("emo_tion", "emo_void")]


def _train(name: str, dtype: str, spoils: bool, **options: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    params: list[Tensor] = [torch.nn.Parameter(param.to(getattr(torch, dtype))) for param in drawn]
    rate = 20.0 if REGISTRY[name].generation == 3 else 1e-2  # The pulse is about 1e-4 of the rate.
    optimizer = emo_torch.create_optimizer(name, params, lr=rate, **options)
    # The shadow begins at the second loss, and the third step blends it.
    for loss in LOSSES if options["use_shadow"] else LOSSES[:2]:
        for param in params:
            gradient = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            gradient *= torch.rand(param.shape, generator=generator) > 0.2
            if spoils and param.numel() > 3:
                gradient.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
            param.grad = gradient.to(param.dtype)
        before = params[2]._version
        with NoSync():
            optimizer.step(loss=loss)
        assert params[2]._version > before
    found = {**optimizer.named_memory(), **{f"param {i}": p.detach() for i, p in enumerate(params)}}
    for index, param in enumerate(params):
        found.update({f"{key} {index}": value for key, value in optimizer.state[param].items()})
    return found


def _differences(
    name: str, dtype: str, mode: str, *, is_plain: bool = False, bound: float | None = None, **more: Any
) -> list[str]:
    """Returns the names of the results in which interpreted kernels and the readable way differ."""
    options: dict[str, Any] = {
        "weight_decay_mode": mode,
        "maximize": mode == "absolute",
        "weight_decay": 0.1,
        **more,
    }
    options["use_shadow"] = not is_plain
    if not is_plain and name in ("emo_sens", "emo_airy", "emo_cats"):
        options["theta"] = 0.3  # The filter stops some elements.
    left: list[int] = []
    step = cuda.step

    def count(params: list[Tensor], *args: Any, **given: Any) -> list[int]:
        rest = step(params, *args, **given)
        left.append(len(rest) - sum(param.numel() == 0 for param in params))
        return rest

    cuda.step = count
    ours = _train(name, dtype, is_plain, fused=True, **options)
    cuda.step = step
    theirs = _train(name, dtype, is_plain, foreach=False, **options)
    bound = bound or BOUNDS[dtype]
    wrong = [
        key
        for key, value in ours.items()
        if not torch.allclose(value.double(), theirs[key].double(), bound, bound, equal_nan=True)
    ]
    steps = 2 if is_plain else len(LOSSES)
    return wrong if left == [0] * steps else [*wrong, f"left to the other ways: {left}"]


def patch_triton_once() -> None:
    """Makes Triton's interpreter patch its language once for a launch, not for each call in a kernel."""
    import triton.language as tl
    from triton.runtime import interpreter

    internals: dict[str, Any] = vars(interpreter)
    patch: Any = internals.get("_patch_lang")

    def patch_where_needed(function: Any) -> Any:
        seen = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        # Only a launch reads the result, and nothing is patched when a launch begins.
        return patch(function) if any(tl.core.is_builtin(module.load) for module in seen) else None

    if patch is not None:
        internals["_patch_lang"] = patch_where_needed


def _interpret() -> None:
    """Runs all cases and prints the differences; in a process of its own that interprets kernels."""
    patch_triton_once()
    cuda.DEVICES = ("cpu",)
    layouts.BLOCK, layouts.HEIGHT, layouts.WIDTH = 64, 8, 8  # Small, so that every tensor has several.
    vars(_emotional)["check_fused"] = lambda *_, **__: None  # The check requires a GPU.
    found = {"-".join(case): _differences(*case) for case in CASES}
    for name in (*MEMBERS, *LATER):
        found[f"{name} with plain options"] = _differences(name, "float32", "decoupled", is_plain=True)
    for name in NARROW:
        found[f"{name} with narrow moments"] = _differences(
            name, "float32", "decoupled", bound=BOUNDS["bfloat16"], moment_dtype=torch.bfloat16
        )
    print(json.dumps(found))


def _compile() -> None:
    """Compiles the kernels for a GPU; this needs no GPU."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from emo_torch._kernels import cuda_kernels as kernels

    floats = {"tolerance", "scale", "ratio", "lr", "weights", "share", "follow"}
    floats |= {"row_means", "column_means", "norms", "parts"}

    def compile_for_gpu(kernel: Any, wide: str, **constants: Any) -> None:
        types = {name: f"*{wide}" if name in floats else "*i64" for name in kernel.arg_names}
        types |= {"constants": "*fp64"} if "constants" in types else {}
        types |= {"numbers": "*fp32", "least": "*u8"} if "least" in types else {}
        signature = {**types, **dict.fromkeys(constants, "constexpr")}
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": False})
        assert made.asm["cubin"]

    def elements(narrow: Any, wide: Any, rule: int, mode: int, codes: Any = None) -> None:
        kinds = {"PARAM": narrow, "GRAD": narrow, "FIRST": wide, "SECOND": narrow, "SHADOW": wide}
        kinds |= {} if codes is None else {"FIRST": codes, "SECOND": codes}
        block = layouts.BLOCK if codes is None else layouts.block_of(torch.uint8)
        more = {"WIDE": wide, "BLENDS": True, "INDEX": 0, "SCALES": True, "BLOCK": block}
        own = {"RULE": rule, "MODE": mode, "FILTER": 2 if rule == 4 else 1, "STEPS_FIRST": rule == 4}
        own |= {"TRUSTS": rule > 4, "WEIGHS": rule > 4}
        compile_for_gpu(kernels.elements, str(wide), **kinds, **more, **own)

    elements(tl.bfloat16, tl.float32, 0, 0)
    elements(tl.float32, tl.float32, 3, 1)
    elements(tl.float64, tl.float64, 4, 2)
    elements(tl.bfloat16, tl.float32, 5, 0)
    elements(tl.float32, tl.float32, 6, 2)
    elements(tl.bfloat16, tl.float32, 0, 0, tl.uint8)
    elements(tl.float64, tl.float64, 1, 0, tl.uint8)
    kinds = {"PARAM": tl.bfloat16, "GRAD": tl.bfloat16, "SHADOW": tl.float32, "WIDE": tl.float32}
    tile = {"INDEX": 0, "HEIGHT": layouts.HEIGHT, "WIDTH": layouts.WIDTH}
    compile_for_gpu(kernels.squares, "fp32", **kinds, BLENDS=True, MODE=2, BLOCK=layouts.BLOCK)
    compile_for_gpu(kernels.norms_of, "fp32", BLOCK=layouts.BLOCK)
    compile_for_gpu(kernels.rows, "fp32", **kinds, **tile, BLENDS=True, FIRST=tl.bfloat16, MODE=2)
    compile_for_gpu(kernels.columns_of, "fp32", **tile, SECOND=tl.float32, WIDE=tl.float32)
    print("compiled")


def run(file: str, task: str, environment: dict[str, str]) -> str:
    """Runs a task of a file in a process of its own, and returns what the process prints."""
    root = str(Path(emo_torch.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, **environment}
    command = [sys.executable, "-P", file, task]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Interpreting takes long: one process runs all cases.
pytestmark = pytest.mark.xdist_group("triton")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(run(__file__, "interpret", {"TRITON_INTERPRET": "1"}))
    return found


@needs_triton
@pytest.mark.parametrize("case", ["-".join(case) for case in CASES])
def test_interpreted_kernels_equal_the_readable_way(case: str, interpreted: dict[str, list[str]]) -> None:
    assert interpreted[case] == []


@needs_triton
@pytest.mark.parametrize("name", [*MEMBERS, *LATER])
def test_gradients_that_are_not_finite_go_where_they_go_in_the_readable_way(
    name: str, interpreted: dict[str, list[str]]
) -> None:
    assert interpreted[f"{name} with plain options"] == []


@needs_triton
@pytest.mark.parametrize("name", NARROW)
def test_moments_of_bfloat16_are_those_of_the_readable_way(
    name: str, interpreted: dict[str, list[str]]
) -> None:
    assert interpreted[f"{name} with narrow moments"] == []


@needs_triton
def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    assert run(__file__, "compile", environment).strip() == "compiled"


def test_tiles_cover_every_element_once() -> None:
    params = [torch.empty(shape) for shape in ((3, 1500), (300, 2), (1, 1))]
    heights, columns = (
        layouts.numbers(sizes) for sizes in zip(*map(layouts.rows_and_columns, params), strict=True)
    )
    layout, counts = (
        layouts.layout_of(heights, columns, layouts.BLOCK, is_matrix=True),
        layouts.counts_of(heights, columns, layouts.BLOCK),
    )
    assert layout["tensor_of"].tolist() == [0, 0, 0, 0, 0, 1, 2]
    assert layout["start_of"].tolist() == [0, 1024, 2048, 3072, 4096, 0, 0]
    assert layout["tensor_of_rows"].tolist() == [0, 1, 1, 1, 2]
    assert layout["row_of"].tolist() == [0, 0, 128, 256, 0]
    assert layout["part_starts"].tolist() == [0, 1500, 1506]
    assert counts["parts"] == 1507
    assert (counts["blocks"], counts["high"], counts["wide"]) == (7, 5, 24 + 1 + 1)


# Environments in which the kernels are not possible.

CUDA = torch.device("cuda", 0)


def _check(dtype: torch.dtype, device: torch.device = CUDA, **given: Any) -> None:
    tensor = SimpleNamespace(dtype=dtype, device=device)
    known: dict[str, Any] = {"is_compiled": True, "has_triton": True, "has_kernel": True}
    check_fused("EmoSens", [tensor], **{**known, **given})


def test_without_triton_fused_on_cuda_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"needs Triton on CUDA.*pip install triton"):
        _check(torch.float32, has_triton=False)
    _check(torch.float32, torch.device("cpu"), has_triton=False)
    _check(torch.bfloat16, is_compiled=False)


def test_fused_on_cuda_is_refused_for_what_it_cannot_take() -> None:
    with pytest.raises(RuntimeError, match=r"float16 on cuda:0: do not pass fused"):
        _check(torch.float16)
    with pytest.raises(RuntimeError, match=r"and not torch\.float32 on cuda:0"):
        _check(torch.float32, has_kernel=False)
    assert not emo_torch.RefAdamWMiniScheduleFree.has_cuda_kernel


def test_on_cuda_the_fused_way_is_never_chosen_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "DEVICES", ("cpu",))
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    weight: list[Tensor] = [torch.ones(1)]
    ways = {None: False, True: True, False: False}
    assert {fused: _ways.use_fused(weight, {"fused": fused}) for fused in ways} == ways


if __name__ == "__main__":
    {"interpret": _interpret, "compile": _compile}[sys.argv[1]]()
