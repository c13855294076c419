"""The number of the package's functions that one update calls, which is the cost of tracing a step."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import jax.numpy as jnp
import pytest

import emo_optax

FOLDER = str(Path(emo_optax.__file__).parent)

MOST = {"emo_sens": 45}
"""The most calls of an update of two arrays."""


@pytest.mark.parametrize("name", MOST)
def test_an_update_makes_few_calls(name: str) -> None:
    optimizer = emo_optax.create_optimizer(name)
    params = {"matrix": jnp.ones((3, 2)), "vector": jnp.ones(4)}
    state = optimizer.init(params)
    value = jnp.asarray(1.0)
    _, state = optimizer.update(params, state, params, value=value)
    calls: list[str] = []

    def listen(frame: FrameType, event: str, argument: Any) -> None:
        del argument
        code = frame.f_code
        # Comprehensions do not count: later versions of Python do not call them.
        if event == "call" and code.co_filename.startswith(FOLDER) and not code.co_name.startswith("<"):
            calls.append(f"{Path(code.co_filename).stem}.{code.co_name}")

    before = sys.getprofile()
    sys.setprofile(listen)
    try:
        updates, _ = optimizer.update(params, state, params, value=value)
    finally:
        sys.setprofile(before)
    assert updates.keys() == params.keys()
    assert "adam.update_fn" in calls  # The profile is of the update.
    assert len(calls) <= MOST[name], calls
