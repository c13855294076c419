"""Input that RefAdamWMiniScheduleFree refuses before anything is changed."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from emo_torch._members.ref_adamw_mini_schedule_free_test import Ref, draw, everything, give, same, tensors

BAD: list[tuple[dict[str, Any], str]] = [
    ({"lr": -1.0}, "learning rate"),
    ({"betas": (0.9, 1.0)}, "beta parameter at index 1"),
    ({"min_lr": -1.0}, "min_lr"),
    ({"max_lr": math.inf}, "max_lr"),
    ({"min_lr": 0.1, "max_lr": 0.01}, "min_lr value: 0.1; it must not be above max_lr"),
    ({"schedulefree_alpha": 0.0}, "schedulefree_alpha"),
    ({"ref_alpha": 1.5}, "ref_alpha"),
    ({"ref_max_steps": 0}, "ref_max_steps"),
    ({"ref_max_steps": 2.5}, "ref_max_steps"),
    ({"injection_bound": -0.1}, "injection_bound"),
    ({"weight_decay_mode": "other"}, "weight_decay_mode"),
    ({"moment_dtype": torch.int8}, "moment_dtype"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_a_hyperparameter_out_of_its_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ref(tensors(draw()), **options)


def test_bad_losses_and_groups_are_refused_before_anything_is_changed() -> None:
    params = tensors(draw())
    optimizer = Ref(params, ref_max_steps=10)
    give(params, draw(1))
    optimizer.step(loss=np.float64(1.0), val_loss=1)
    before = everything(optimizer)
    with pytest.raises(ValueError, match="val_loss must be a scalar"):
        optimizer.step(loss=1.0, val_loss=torch.ones(2))
    with pytest.raises(TypeError, match="The val_loss must be a tensor"):
        optimizer.step(loss=1.0, val_loss="0.5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="The loss must be a scalar"):
        optimizer.step(loss=torch.ones(2), val_loss=1.0)
    extra = {"params": tensors(draw())[:1], "ref_max_steps": 5}
    with pytest.raises(ValueError, match="ref_max_steps belongs to the one divergence"):
        optimizer.add_param_group(extra)
    assert same(everything(optimizer), before)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert same(everything(optimizer), before)
