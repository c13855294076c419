"""Optax's own common tests of contributed optimizers, run over the members of the family.

The tests ship in Optax's wheel. Their source is read from there, and its table of optimizers is
replaced by ours; nothing of it stands here.
"""

import importlib.util
import re
import types
from pathlib import Path
from typing import Any

import pytest

from parity_tests.family import FAMILY

pytest.importorskip("absl", reason="Optax's tests are written with absl")

MEMBERS = {member.optax.__name__: member.optax for member in FAMILY.values()}
LEARNING_RATES = {"emo_sens": 1e-2, "emo_airy": 1e-2, "emo_cats": 1e-2}
MORE: dict[str, dict[str, Any]] = {
    # An injection that never ends pulls away from the minimum; the suite takes so many steps.
    "ref_adamw_mini_schedule_free": {"ref_max_steps": 30_000},
}
_TABLE = "_ALL_OPTIMIZERS_UNDER_TEST = tuple("
_TAKES_VALUE = re.compile(r"(?<!'opt_name': )'momo_adam'")


def _load() -> types.ModuleType:
    spec = importlib.util.find_spec("optax.contrib")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "_common_test.py").read_text()
    assert source.count(_TABLE) == 1
    assert len(_TAKES_VALUE.findall(source)) >= 7  # Wherever the loss is passed, it is by these names.
    names = ", ".join(repr(name) for name in ("momo_adam", *MEMBERS))
    source = _TAKES_VALUE.sub(names, source)
    ours = "_MAIN_OPTIMIZERS_UNDER_TEST, _OTHER_OPTIMIZERS_UNDER_TEST = emo_table, []\n"
    module = types.ModuleType("optax_contrib_common_test")
    rows: list[dict[str, Any]] = [
        {
            "opt_name": name,
            "opt_kwargs": {"learning_rate": LEARNING_RATES.get(name, 1e-2), **MORE.get(name, {})},
            "wrapper_name": None,
            "wrapper_kwargs": None,
        }
        for name in MEMBERS
    ]
    module.__dict__["emo_table"] = rows
    exec(compile(source.replace(_TABLE, ours + _TABLE), "_common_test.py", "exec"), module.__dict__)
    module.__dict__["_get_opt_factory"] = MEMBERS.__getitem__
    return module


class OptaxCommonTest(_load().ContribTest):  # type: ignore[misc]
    pass
