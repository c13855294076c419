import pytest
import torch

import emo_torch
from emo_torch import _public


def test_every_optimizer_is_made_by_its_name_and_steps() -> None:
    for name in emo_torch.list_optimizers():
        for spelling in (name, name.replace("_", "").upper()):
            param = torch.nn.Parameter(torch.ones(2, 3))
            param.grad = torch.ones(2, 3)
            optimizer = emo_torch.create_optimizer(spelling, [param], 0.5, weight_decay=0.0)
            optimizer.step(loss=1.0)
            assert float(param.detach().max()) < 1.0
            assert type(optimizer).__name__.lower() == name.replace("_", "")


def test_every_optimizer_has_a_name() -> None:
    members = {name.lower() for name in vars(_public) if name.startswith(("Emo", "Ref"))}
    names = {name.replace("_", "") for name in emo_torch.list_optimizers()}
    others = {"emotion", "emotional", "emotionstate", "emooptimizer", "emopulsescheduler", "emowarning"}
    assert members - others <= names


def test_an_unknown_name_is_refused_with_those_that_are_near() -> None:
    with pytest.raises(ValueError, match=r"'emo_sense'; did you mean 'emo_sens'.* Known are emo_airy, "):
        emo_torch.create_optimizer("emo_sense", [])
    with pytest.raises(ValueError, match=r"named 'xyz'\. Known are"):
        emo_torch.create_optimizer("xyz", [])


def test_options_are_passed_on() -> None:
    params = [torch.nn.Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match="Invalid theta"):
        emo_torch.create_optimizer("emo_sens", params, theta=-1.0)
    with pytest.raises(TypeError, match="thetta"):
        emo_torch.create_optimizer("emo_sens", params, thetta=1.0)
