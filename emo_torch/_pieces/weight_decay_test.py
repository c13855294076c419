from typing import Any

import pytest
import torch

import emo_torch
from emo_torch import add_weight_decay
from emo_torch._pieces.weight_decay import WeightDecayMode, multi_tensor_add_weight_decay

FAMILY: list[Any] = [emo_torch.EmoSens, emo_torch.EmoAiry, emo_torch.EmoCats]


def test_a_share_of_the_parameter_is_added_in_place() -> None:
    update, param = torch.tensor([1.0, 2.0]), torch.tensor([-4.0, 8.0])
    add_weight_decay(update, param, 0.25)
    assert update.tolist() == [0.0, 4.0]
    assert param.tolist() == [-4.0, 8.0]


def test_many_tensors_at_once_are_decayed_the_same() -> None:
    updates = [torch.tensor([1.0, 2.0]), torch.tensor(0.5)]
    multi_tensor_add_weight_decay(updates, [torch.tensor([-4.0, 8.0]), torch.tensor(2.0)], 0.25)
    assert [update.tolist() for update in updates] == [[0.0, 4.0], 1.0]


def decayed(cls: Any, *, lr: float | torch.Tensor = 0.5, steps: int = 1, **options: Any) -> float:
    """Where 8 goes without a gradient."""
    weight = torch.nn.Parameter(torch.full((1,), 8.0))
    optimizer = cls([weight], lr=lr, weight_decay=0.25, **options)
    for _ in range(steps):
        weight.grad = torch.zeros(1)
        optimizer.step(loss=1.0)
    return weight.item()


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("cls", FAMILY)
def test_decoupled_decay_takes_the_learning_rate_s_share(cls: Any, foreach: bool) -> None:
    assert decayed(cls, foreach=foreach) == 7.0
    assert decayed(cls, foreach=foreach, steps=2) == 6.125
    assert decayed(cls, foreach=foreach, lr=0.0) == 8.0
    assert decayed(cls, foreach=foreach, lr=torch.tensor(0.5)) == 7.0


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("cls", FAMILY)
def test_absolute_decay_knows_no_learning_rate(cls: Any, foreach: bool) -> None:
    for lr in (0.5, 0.0, 1e-6, torch.tensor(0.5)):
        assert decayed(cls, lr=lr, weight_decay_mode="absolute", foreach=foreach) == 6.0


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("cls", FAMILY)
def test_l2_decay_is_a_gradient_like_any_other(cls: Any, foreach: bool) -> None:
    torch.manual_seed(0)
    plain, twin = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3, 2))
    options: dict[str, Any] = {"lr": 0.1, "foreach": foreach}
    by_option = cls([plain], weight_decay=0.5, weight_decay_mode="l2", **options)
    by_hand = cls([twin], weight_decay=0.0, **options)
    for step in range(8):
        plain.grad = torch.randn(3, 2)
        twin.grad = plain.grad + 0.5 * twin.detach()
        kept = plain.grad.clone()
        by_option.step(loss=1.0 + step % 2)
        by_hand.step(loss=1.0 + step % 2)
        assert torch.equal(plain, twin)
        assert torch.equal(plain.grad, kept)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("cls", FAMILY)
def test_decay_does_not_shrink_with_the_emotion(cls: Any, foreach: bool) -> None:
    weight = torch.nn.Parameter(torch.full((1,), 8.0))
    optimizer = cls([weight], lr=0.5, weight_decay=0.25, foreach=foreach)
    for loss in (1.0, 1e6):
        weight.grad = torch.zeros(1)
        optimizer.step(loss=loss)
    assert optimizer.emotion.step_scale.item() == 0.0
    assert weight.item() == 6.125


@pytest.mark.parametrize("cls", FAMILY)
def test_decay_goes_down_also_when_the_objective_goes_up(cls: Any) -> None:
    assert decayed(cls, maximize=True) == 7.0
    assert decayed(cls, maximize=True, weight_decay_mode="absolute") == 6.0
    assert decayed(cls, maximize=True, weight_decay_mode="l2") < 8.0


@pytest.mark.parametrize("foreach", [False, True])
def test_decay_over_the_first_learning_rate_follows_a_schedule_from_there(foreach: bool) -> None:
    weight = torch.nn.Parameter(torch.full((1,), 8.0))
    optimizer = emo_torch.EmoCats(
        [weight], lr=0.5, weight_decay=0.25, decoupled_weight_decay=True, foreach=foreach
    )
    for lr, expected in ((0.5, 6.0), (0.25, 5.25), (0.0, 5.25)):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.zeros(1)
        optimizer.step(loss=1.0)
        assert weight.item() == expected


@pytest.mark.parametrize("mode", ["absolute", "l2"])
def test_decay_over_the_learning_rate_is_a_way_of_the_decoupled_mode_only(mode: WeightDecayMode) -> None:
    with pytest.raises(ValueError, match="decoupled_weight_decay=True needs weight_decay_mode='decoupled'"):
        emo_torch.EmoCats(
            [torch.nn.Parameter(torch.ones(1))], decoupled_weight_decay=True, weight_decay_mode=mode
        )


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)])
def test_decay_over_a_learning_rate_of_0_is_refused(lr: float | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="and that is 0"):
        emo_torch.EmoCats([torch.nn.Parameter(torch.ones(1))], lr=lr, decoupled_weight_decay=True)


def test_decay_does_not_drift_in_float32() -> None:
    exact = 8.0 * (1.0 - 0.01 * 1e-3) ** 800
    weight = torch.nn.Parameter(torch.full((1,), 8.0))
    optimizer = emo_torch.EmoSens([weight], lr=1e-3, weight_decay=0.01)
    for _ in range(800):
        weight.grad = torch.zeros(1)
        optimizer.step(loss=1.0)
    assert weight.item() == pytest.approx(exact, abs=2e-5)


def test_groups_are_split_by_a_mask() -> None:
    model = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 1), torch.nn.BatchNorm1d(3))
    names = {id(param): name for name, param in model.named_parameters()}

    def split(mask: Any = emo_torch.decay_mask) -> list[list[str]]:
        groups = emo_torch.decay_groups(model, mask)
        assert [group.get("weight_decay") for group in groups] == [None, 0.0]
        return [[names[id(param)] for param in group["params"]] for group in groups]

    assert split() == [["0.weight"], ["0.bias", "1.weight", "1.bias"]]
    assert split(dict.fromkeys(names.values(), True)) == [["0.weight", "0.bias", "1.weight", "1.bias"], []]
    assert split(lambda params: {name: "bias" in name for name in params})[0] == ["0.bias", "1.bias"]


def test_a_mask_that_does_not_fit_is_refused() -> None:
    pairs = [("weight", torch.ones(2, 2)), ("bias", torch.ones(2))]
    with pytest.raises(ValueError, match="only in the parameters: 'bias', 'other'"):
        emo_torch.decay_groups(pairs, {"weight": True, "other": False})
    with pytest.raises(ValueError, match="Two parameters have the same name"):
        emo_torch.decay_groups([*pairs, *pairs])


def test_no_group_need_have_members() -> None:
    bias = torch.nn.Parameter(torch.ones(2))
    optimizer = emo_torch.EmoSens(emo_torch.decay_groups([("bias", bias)]), lr=0.1, weight_decay=0.5)
    bias.grad = torch.zeros(2)
    optimizer.step(loss=1.0)
    assert torch.equal(bias.detach(), torch.ones(2))
