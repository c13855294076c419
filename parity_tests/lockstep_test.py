"""Both packages, step for step, under the bounds of `tolerances`."""

from typing import Any

import pytest

from parity_tests.family import FAMILY
from parity_tests.lockstep import run
from parity_tests.sequences import LOSSES
from parity_tests.tolerances import LOCKSTEP

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "shadow": {"use_shadow": True},
    "shadow_v1": {"use_shadow": True, "shadow_ratio": "v1.0"},
    "absolute": {"weight_decay_mode": "absolute", "weight_decay": 1e-4, "use_shadow": True},
    "l2": {"weight_decay_mode": "l2", "use_shadow": True},
    "theta": {"theta": 0.3},
    "feeling": {"short_factor": 0.5, "long_factor": 0.05, "gain": 0.7, "use_shadow": True},
    "numbers": {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "shadow_rate": 0.2},
}


def _assert_close(result: Any) -> None:
    assert result.first_excess is None, result.first_excess
    assert len(result.leaves) >= 7


@pytest.mark.parametrize("dtype", LOCKSTEP)
@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("name", FAMILY)
def test_stays_in_step_whatever_the_losses(name: str, losses: str, dtype: str) -> None:
    _assert_close(run(FAMILY[name], {"use_shadow": True}, dtype=dtype, losses=losses))


@pytest.mark.parametrize("dtype", LOCKSTEP)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", FAMILY)
def test_stays_in_step_whatever_the_options(name: str, options: str, dtype: str) -> None:
    _assert_close(run(FAMILY[name], OPTIONS[options], dtype=dtype))


@pytest.mark.parametrize("dtype", LOCKSTEP)
def test_stays_in_step_with_weight_decay_over_the_learning_rate(dtype: str) -> None:
    options = {"decoupled_weight_decay": True, "lr": 2e-3, "weight_decay": 1e-4}
    _assert_close(run(FAMILY["EmoCats"], options, dtype=dtype))


@pytest.mark.parametrize("name", FAMILY)
def test_stays_in_step_with_all_tensors_at_once(name: str) -> None:
    foreach = FAMILY[name]._replace(
        torch=lambda params, **options: FAMILY[name].torch(params, foreach=True, **options)
    )
    _assert_close(run(foreach, {"use_shadow": True}))
