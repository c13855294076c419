import ast
import itertools
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest

import emo_optax
import emo_shared

ALONE = """
import sys
import warnings

sys.modules["torch"] = sys.modules["flax"] = None
import jax

before = {name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_numpy_dtype_promotion")}
filters, hook = list(warnings.filters), sys.excepthook
random = sys.modules["random"].getstate()
import emo_optax

assert before == {name: getattr(jax.config, name) for name in before}
assert (filters, hook) == (list(warnings.filters), sys.excepthook)
assert random == sys.modules["random"].getstate()
assert not jax.extend.backend.backends_are_initialized() if hasattr(jax, "extend") else True

import jax.numpy as jnp

params = jnp.ones((2, 2))
for member in (emo_optax.emo_sens, emo_optax.emo_airy, emo_optax.emo_cats):
    optimizer = member(0.01, use_shadow=True)
    updates, state = optimizer.update(params, optimizer.init(params), params, value=1.0)
    assert float(jnp.max(updates)) < 0
    assert int(emo_optax.get_emotion(state).felt) == 1
print("used alone")
"""


def test_the_package_alone_imports_without_side_effects_and_works() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE], capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[-2:] == ["used alone", ""], done.stderr
    assert done.stderr == ""


def test_everything_public_is_made_here() -> None:
    public = {name for name in vars(emo_optax) if not name.startswith("_")}
    for name in public - {"ARRAYS_VERSION", "CHECKPOINT_VERSION", "integrations"}:
        assert vars(emo_optax)[name].__module__.startswith(("emo_optax.", "emo_shared."))


def test_what_it_offers_says_how_to_use_it() -> None:
    for name, value in vars(emo_optax).items():
        if not name.startswith("_"):
            assert_documented(name, value)


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
    for package in (emo_optax, emo_shared):
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
