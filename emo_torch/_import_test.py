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
import torch

import emo_shared
import emo_torch
from emo_torch import _public
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


USES = (
    "from emo_torch import integrations",
    "emo_torch.EmoSens",
    "from emo_torch import EmoSens, feel",
    "from emo_torch import *; EmoSens, feel, CheckpointError",
    "assert {'EmoSens', 'feel', 'integrations', '__version__', '_members'} <= set(dir(emo_torch))",
    "assert 'TYPE_CHECKING' not in dir(emo_torch)",
    "assert {'EmoSens', 'feel'} <= set(emo_torch.__all__) and '_members' not in emo_torch.__all__",
    "import emo_torch._members.emo_sens",
    "import pickle; assert pickle.loads(b'cemo_torch\\nEmoSens\\n.') is emo_torch.EmoSens",
    "from unittest import mock\n"
    "with mock.patch('emo_torch.EmoSens', 1):\n"
    "    assert not hasattr(emo_torch, 'xyz') and emo_torch.EmoSens == 1",
    "import threading\n"
    "found = []\n"
    "look = lambda: found.append(emo_torch.EmoSens)\n"
    "threads = [threading.Thread(target=look) for _ in range(8)]\n"
    "for thread in threads: thread.start()\n"
    "for thread in threads: thread.join()\n"
    "assert found == [emo_torch.EmoSens] * 8",
)
"""Ways to use the package for the first time. The first way needs no framework."""

FIRST_USE = """
import sys
for number, use in enumerate(USES):
    for name in [name for name in sys.modules if name.partition(".")[0] == "emo_torch"]:
        del sys.modules[name]
    import emo_torch
    assert emo_torch.__version__ and emo_torch.__doc__.startswith("The Emo optimizers")
    assert not hasattr(emo_torch, "__wrapped__") and not hasattr(emo_torch, "__no_such_name__")
    assert [name for name in sys.modules if name.startswith("emo_torch")] == ["emo_torch"]
    exec(use, {"emo_torch": emo_torch})
    assert number > 0 or not {"torch", "numpy", "emo_torch._public"} & set(sys.modules)
    assert emo_torch.EmoSens.__module__ == "emo_torch._members.emo_sens"
    assert vars(emo_torch)["EmoSens"] is emo_torch.EmoSens
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


def test_the_package_imports_its_framework_at_the_first_use_of_a_name() -> None:
    command = [sys.executable, "-W", "error", "-c", f"USES = {USES!r}" + FIRST_USE]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_no_module_holds_a_tensor() -> None:
    # A tensor that an import makes depends on the mode of that moment, such as `torch.device("meta")`.
    for name, module in list(sys.modules.items()):
        if name.startswith("emo_torch.") and not name.endswith("_test"):
            assert not [key for key, value in vars(module).items() if isinstance(value, torch.Tensor)], name


def test_an_unknown_name_is_refused_with_one_that_is_near() -> None:
    with pytest.raises(
        AttributeError, match=r"'emo_torch' has no attribute 'EmoSense'; did you mean 'EmoSens'\?"
    ):
        _ = emo_torch.EmoSense  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"'emo_torch' has no attribute 'xyz'\.$"):
        _ = emo_torch.xyz  # type: ignore[attr-defined]


def test_without_the_framework_the_first_use_names_the_extra() -> None:
    code = "import sys; sys.modules['torch'] = None; import emo_torch; emo_torch.EmoSens"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in run.stderr
    assert "pip install 'emo-optimizers[torch]'" in run.stderr


def test_what_it_offers_says_how_to_use_it() -> None:
    public = [name for name in vars(_public) if not name.startswith("_")]
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
