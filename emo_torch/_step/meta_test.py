"""A step with parameters on the device "meta" moves them as AdamW does, or is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._members.by_name import MEMBERS
from emo_torch._state.state_test import assert_same

MAKERS: dict[str, Callable[[Any], Any]] = {
    **{name: member.make for name, member in MEMBERS.items()},
    "Emotional": lambda params: emo_torch.Emotional(torch.optim.AdamW(params)),
    "Autopilot": lambda params: emo_torch.Autopilot(torch.optim.AdamW(params)),
}
READS_NORMS = {"emo_tion": "parameters", "emo_void": "parameters"}
READS_NORMS |= {"emo_pilot": "gradients", "emo_pilot_airy": "gradients", "Autopilot": "gradients"}


def _param(device: str) -> Any:
    param = torch.nn.Parameter(torch.ones(3, 2, device=device))
    param.grad = torch.ones_like(param)
    return param


@pytest.mark.parametrize("name", sorted(set(MAKERS) - set(READS_NORMS)))
def test_a_step_counts_the_loss_once_and_moves_the_parameters_that_have_values(name: str) -> None:
    here, alone = _param("cpu"), _param("cpu")
    optimizer, other = MAKERS[name]([here, _param("meta")]), MAKERS[name]([alone])
    for loss in (1.0, 0.9, 0.8):
        optimizer.step(loss=loss)
        other.step(loss=loss)
    torch.testing.assert_close(here, alone)
    assert int(optimizer.step_count()) == 3


@pytest.mark.parametrize("devices", [("meta",), ("cpu", "meta")], ids=", ".join)
@pytest.mark.parametrize("name", READS_NORMS)
def test_a_step_that_reads_a_norm_is_refused_before_anything_changes(
    name: str, devices: tuple[str, ...]
) -> None:
    params = [_param(device) for device in devices]
    optimizer = MAKERS[name](params)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError, match=f"a norm of all {READS_NORMS[name]}.*to_empty"):
        optimizer.step(loss=1.0)
    assert_same(optimizer.state_dict(), before)
    assert int(optimizer.step_count()) == 0
    assert all(bool((param == 1.0).all()) for param in params if not param.is_meta)


@pytest.mark.parametrize("name", READS_NORMS)
def test_a_frozen_parameter_without_values_is_not_read(name: str) -> None:
    frozen = torch.nn.Parameter(torch.ones(2, device="meta"), requires_grad=False)
    optimizer = MAKERS[name]([_param("cpu"), frozen])
    optimizer.step(loss=1.0)
    assert int(optimizer.step_count()) == 1


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore:Autopilot reads each step")
def test_a_default_device_has_no_effect_on_parameters_of_another_device(
    name: str, dtype: torch.dtype, foreach: bool | None
) -> None:
    ends = []
    for device in ("cpu", "meta"):
        param: Any = torch.nn.Parameter(torch.ones(300, 2, dtype=dtype))
        with torch.device(device):  # As torch.set_default_device does for all code.
            optimizer = MAKERS[name]([param])
            for group in optimizer.param_groups:
                group["foreach"] = foreach
            for loss in (1.0, 0.9, 0.8):
                param.grad = torch.ones_like(param)
                optimizer.step(loss=loss)
        ends.append(param)
    assert torch.equal(*ends)
