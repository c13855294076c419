import ast
import itertools
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

import emo_optax
import emo_shared
from emo_optax import _public

ALONE = """
import sys
import warnings

sys.modules["torch"] = sys.modules["flax"] = None
import jax

before = {name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_numpy_dtype_promotion")}
filters, hook = list(warnings.filters), sys.excepthook
random = sys.modules["random"].getstate()
import emo_optax

emo_optax.emo_sens  # The first use of a name imports the package whole.

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


USES = (
    "from emo_optax import integrations",
    "emo_optax.emo_sens",
    "from emo_optax import emo_sens, feel",
    "from emo_optax import *; emo_sens, feel, CheckpointError",
    "assert {'emo_sens', 'feel', 'integrations', '__version__', '_members'} <= set(dir(emo_optax))",
    "assert 'TYPE_CHECKING' not in dir(emo_optax)",
    "assert {'emo_sens', 'feel'} <= set(emo_optax.__all__) and '_members' not in emo_optax.__all__",
    "import emo_optax._members.emo_sens",
    "import pickle; assert pickle.loads(b'cemo_optax\\nemo_sens\\n.') is emo_optax.emo_sens",
    "from unittest import mock\n"
    "with mock.patch('emo_optax.emo_sens', 1):\n"
    "    assert not hasattr(emo_optax, 'xyz') and emo_optax.emo_sens == 1",
    "import threading\n"
    "found = []\n"
    "look = lambda: found.append(emo_optax.emo_sens)\n"
    "threads = [threading.Thread(target=look) for _ in range(8)]\n"
    "for thread in threads: thread.start()\n"
    "for thread in threads: thread.join()\n"
    "assert found == [emo_optax.emo_sens] * 8",
)
"""Ways to use the package for the first time. The first way needs no framework."""

FIRST_USE = """
import sys
for number, use in enumerate(USES):
    for name in [name for name in sys.modules if name.partition(".")[0] == "emo_optax"]:
        del sys.modules[name]
    import emo_optax
    assert emo_optax.__version__ and emo_optax.__doc__.startswith("The Emo optimizers")
    assert not hasattr(emo_optax, "__wrapped__") and not hasattr(emo_optax, "__no_such_name__")
    assert [name for name in sys.modules if name.startswith("emo_optax")] == ["emo_optax"]
    exec(use, {"emo_optax": emo_optax})
    assert number > 0 or not {"jax", "optax", "numpy", "emo_optax._public"} & set(sys.modules)
    assert emo_optax.emo_sens.__module__ == "emo_optax._members.emo_sens"
    assert vars(emo_optax)["emo_sens"] is emo_optax.emo_sens
"""


def test_the_package_alone_imports_without_side_effects_and_works() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE], capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[-2:] == ["used alone", ""], done.stderr
    assert done.stderr == ""


def test_everything_public_is_made_here() -> None:
    public = {name for name in vars(_public) if not name.startswith("_")}
    for name in public - {"ARRAYS_VERSION", "CHECKPOINT_VERSION"}:
        assert vars(_public)[name].__module__.startswith(("emo_optax.", "emo_shared."))


def test_the_package_imports_its_framework_at_the_first_use_of_a_name() -> None:
    command = [sys.executable, "-W", "error", "-c", f"USES = {USES!r}" + FIRST_USE]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_no_module_holds_an_array() -> None:
    # An array that an import makes belongs to the function that is traced at that moment.
    for name, module in list(sys.modules.items()):
        if name.startswith("emo_optax.") and not name.endswith("_test"):
            assert not [key for key, value in vars(module).items() if isinstance(value, jax.Array)], name


def test_an_unknown_name_is_refused_with_one_that_is_near() -> None:
    with pytest.raises(
        AttributeError, match=r"'emo_optax' has no attribute 'emo_sense'; did you mean 'emo_sens'\?"
    ):
        _ = emo_optax.emo_sense  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"'emo_optax' has no attribute 'xyz'\.$"):
        _ = emo_optax.xyz  # type: ignore[attr-defined]


def test_without_the_framework_the_first_use_names_the_extra() -> None:
    code = "import sys; sys.modules['jax'] = None; import emo_optax; emo_optax.emo_sens"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in run.stderr
    assert "pip install 'emo-optimizers[jax]'" in run.stderr


def test_what_it_offers_says_how_to_use_it() -> None:
    for name, value in vars(_public).items():
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
