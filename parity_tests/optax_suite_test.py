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
# The suite's steps are too few for weights that are pulled back to where they started from.
OPTIONS = {"learning_rate": 1e-2, "use_shadow": False}
MORE: dict[str, dict[str, Any]] = {
    # An injection that never ends pulls away from the minimum; the suite takes so many steps.
    "RefAdamWMiniScheduleFree": {"ref_max_steps": 30_000},
}
RESTLESS = ("EmoSens3", "EmoTion", "EmoVoid", "EmoNavi36")
"""Members whose published steps keep their length near a minimum. The suite's tests of convergence leave
these members out; all its other tests are run over them.
"""
COUSINS = ("EmoAiry3", "EmoCats3", "EmoFact36", "EmoLynx36")
"""Members that equal members of `RESTLESS` with another rule: the suite leaves them out, to save time."""
_CONVERGENCE = "_ALL_OPTIMIZERS_UNDER_TEST,\n      target="
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
            "opt_name": member.optax.__name__,
            "opt_kwargs": {**member.known(OPTIONS), **MORE.get(member.name, {})},
            "wrapper_name": None,
            "wrapper_kwargs": None,
        }
        for member in FAMILY.values()
        if member.name not in COUSINS
    ]
    restless = {FAMILY[name].optax.__name__ for name in RESTLESS}
    module.__dict__["emo_table"] = rows
    module.__dict__["emo_resting"] = tuple(row for row in rows if row["opt_name"] not in restless)
    assert source.count(_CONVERGENCE) == 1
    source = source.replace(_CONVERGENCE, "emo_resting,\n      target=")
    exec(compile(source.replace(_TABLE, ours + _TABLE), "_common_test.py", "exec"), module.__dict__)
    module.__dict__["_get_opt_factory"] = MEMBERS.__getitem__
    return module


class OptaxCommonTest(_load().ContribTest):  # type: ignore[misc]
    pass
