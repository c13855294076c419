"""Importing the package changes nothing outside of the package."""

import ast
import itertools
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest

import emo_shared
import emo_torch
from emo_torch._kernels import library

ALONE = """
import sys
for name in ("jax", "jaxlib", "optax", "flax", "emo_optax"):
    sys.modules[name] = None
import torch
backward, step = torch.Tensor.backward, torch.optim.Optimizer.step
threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
attributes = set(dir(torch.Tensor)), set(dir(torch.optim.Optimizer))
rng = torch.get_rng_state()
import emo_torch
weight = torch.nn.Parameter(torch.ones(3))
optimizer = emo_torch.EmoSens([weight])
weight.sum().backward()
optimizer.step(loss=1.0)
assert torch.Tensor.backward is backward
assert torch.optim.Optimizer.step is step
assert (set(dir(torch.Tensor)), set(dir(torch.optim.Optimizer))) == attributes
assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)
assert torch.equal(torch.get_rng_state(), rng)
assert not torch.cuda.is_initialized()
plain = torch.optim.SGD([weight], lr=0.1)
assert not hasattr(plain, "emotion")
plain.step()
"""


def test_it_needs_no_other_framework_patches_nothing_and_says_nothing() -> None:
    command = [sys.executable, "-W", "error", "-c", ALONE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    if library() is not None:
        assert result.stderr == ""
    elif os.environ.get("EMO_TORCH_COMPILE") != "0":
        assert result.stderr.startswith("Stepping without compiled code")
        assert result.stderr.count("\n") == 1


def test_what_it_offers_says_how_to_use_it() -> None:
    public = [name for name in vars(emo_torch) if not name.startswith("_")]
    assert {"EmoSens", "EmoAiry", "EmoCats", "LossMissingError", "feel"} <= set(public)
    for name in public:
        assert_documented(name, getattr(emo_torch, name))


def assert_documented(name: str, value: object) -> None:
    """Asserts that a public name has a docstring of its own; not one that its type, or Python, made."""
    if isinstance(value, type):
        told = vars(value).get("__doc__") or ""
        # NamedTuple and dataclass make `Name(field, ...)`.
        assert told, f"{name} has no docstring"
        assert not told.startswith(f"{name}("), f"{name} has the docstring that Python made"
    elif callable(value) or isinstance(value, types.ModuleType):
        assert value.__doc__, f"{name} has no docstring"
    else:
        assert name in documented_constants(), f"{name} has no docstring under its assignment"


def documented_constants() -> set[str]:
    """Returns the names of module-level assignments with a docstring under them."""
    found = set()
    for package in (emo_torch, emo_shared):
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            body = ast.parse(path.read_text()).body
            for statement, below in itertools.pairwise(body):
                is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                if isinstance(statement, ast.Assign) and is_text:
                    found |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return found


class Bare(NamedTuple):
    number: int


@pytest.mark.parametrize(
    ("name", "value"), [("NO_SUCH_CONSTANT", 1), ("NO_SUCH_TUPLE", (1, 2)), ("Bare", Bare)]
)
def test_a_docstring_of_a_type_is_not_taken_for_one_of_the_name(name: str, value: object) -> None:
    assert value.__doc__
    with pytest.raises(AssertionError, match=name):
        assert_documented(name, value)
