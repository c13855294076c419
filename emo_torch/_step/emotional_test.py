"""The three optimizers compared with their definition, which is written again in NumPy's float64."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._step.reference_test import (
    FAMILY,
    SHAPES,
    Options,
    Reference,
    half_of_what_rises,
    make_grads,
    run,
    set_grad,
    spiky_losses,
)

OPTIONS: dict[str, Options] = {
    "default": {},
    "shadow v2.0": {"use_shadow": True},
    "shadow v1.0": {"use_shadow": True, "shadow_ratio": "v1.0"},
    "shadow of one's own": {"use_shadow": True, "shadow_ratio": half_of_what_rises, "shadow_rate": 0.3},
    "decoupled": {"weight_decay": 0.7, "lr": 0.02, "use_shadow": True},
    "absolute": {"weight_decay_mode": "absolute", "weight_decay": 3e-3, "use_shadow": True},
    "l2": {"weight_decay_mode": "l2", "weight_decay": 0.3, "use_shadow": True},
    "no decay": {"weight_decay": 0.0},
    "theta": {"theta": 0.35},
    "theta with l2": {"theta": 0.35, "weight_decay_mode": "l2", "weight_decay": 0.3},
    "no theta": {"theta": 0.0},
    "feeling": {"short_factor": 0.5, "long_factor": 0.05, "gain": 0.7, "use_shadow": True},
    "whole factors": {"short_factor": 1.0, "long_factor": 1.0},
    "no gain": {"gain": 0.0, "use_shadow": True},
    "numbers": {"lr": 3e-2, "betas": (0.8, 0.95), "eps": 1e-4, "shadow_rate": 0.2, "use_shadow": True},
    "no memory": {"betas": (0.0, 0.0)},
    "maximize": {"maximize": True, "use_shadow": True, "weight_decay": 0.2},
    "maximize with l2": {"maximize": True, "weight_decay": 0.2, "weight_decay_mode": "l2"},
    "tensor lr": {"lr": torch.tensor(0.02, dtype=torch.float64)},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", FAMILY)
def test_every_step_is_as_defined(name: str, options: str) -> None:
    reference = run(name, {"lr": 2e-2, **OPTIONS[options]})
    assert reference.held == 1


@pytest.mark.parametrize("lr", [2e-3, torch.tensor(2e-3, dtype=torch.float64)], ids=["float", "tensor"])
def test_decoupled_weight_decay_of_emocats_is_over_the_learning_rate_it_was_made_with(
    lr: float | Tensor,
) -> None:
    options = {"lr": lr, "weight_decay": 3e-3, "decoupled_weight_decay": True}
    run("EmoCats", options, own=({}, {"lr": 7e-3}, {"weight_decay": 5e-3}))


@pytest.mark.parametrize("name", FAMILY)
def test_every_group_has_options_of_its_own(name: str) -> None:
    own: tuple[Options, ...] = (
        {"lr": 3e-2, "weight_decay": 0.4},
        {"betas": (0.5, 0.7), "eps": 1e-3, "use_shadow": True, "shadow_rate": 0.4},
        {"theta": 0.35, "weight_decay_mode": "absolute", "weight_decay": 2e-3},
        {"weight_decay_mode": "l2", "weight_decay": 0.2, "use_shadow": True},
        {"lr": 0.0},
    )
    run(name, {"shadow_ratio": "v1.0"}, own=own)


@pytest.mark.parametrize("name", FAMILY)
def test_the_filter_bites_where_theta_is_large(name: str) -> None:
    reference = run(name, {"theta": 0.35})
    assert min(reference.stopped, reference.moved) > 1000


def test_the_losses_of_these_tests_take_every_branch() -> None:
    reference = Reference("EmoSens", [([np.zeros(1)], {})])
    for loss in spiky_losses():
        reference.step([[np.ones(1)]], loss)
    scalars = np.array(reference.scalars)
    for low, high in (
        (0.6, 1.0),
        (0.3, 0.6),
        (0.1, 0.3),
        (-0.1, 0.1),
        (-0.3, -0.1),
        (-0.6, -0.3),
        (-1, -0.6),
    ):
        assert np.sum((scalars > low) & (scalars <= high)) >= 2


@pytest.mark.parametrize("name", FAMILY)
def test_goes_quiet_when_the_reference_does(name: str) -> None:
    quiet = [1.0 + 0.002 * (step % 3) for step in range(33)]
    assert not run(name, {}, losses=quiet[:31]).should_stop
    assert run(name, {"use_shadow": True}, losses=[*quiet, 50.0, 1.0]).should_stop
    assert not run(name, {}, losses=[*quiet[:20], 9.0, *quiet]).should_stop


def test_the_first_step_of_emosens_is_what_a_pen_says() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    weight.grad = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    emo_torch.EmoSens([weight], lr=0.1, betas=(0.5, 0.75), eps=0.0, weight_decay=0.25).step(loss=4.0)
    # m = g / 2, v = g^2 / 4: the update is the sign of g; decay subtracts a fortieth; s is 0.
    np.testing.assert_allclose(weight.detach().numpy(), [1 - 0.025 - 0.1, -2 + 0.05 + 0.1, 3 - 0.075])


def test_the_second_step_of_emocats_is_what_a_pen_says() -> None:
    weight = torch.nn.Parameter(torch.tensor([10.0], dtype=torch.float64))
    optimizer = emo_torch.EmoCats([weight], lr=1.0, betas=(0.5, 0.5), weight_decay=0.0, gain=1.0)
    weight.grad = torch.tensor([4.0], dtype=torch.float64)
    optimizer.step(loss=1.0)  # The weight is 9 now, and the momentum is 2.
    weight.grad = torch.tensor([-3.0], dtype=torch.float64)
    optimizer.step(loss=2.0)
    # short = 1.3, long = 1.01; u = sign(-1.5 + 1).
    assert weight.item() == pytest.approx(9.0 + 1.0 - math.tanh(0.29), abs=1e-14)
    assert optimizer.state[weight]["exp_avg"].item() == -0.5


def test_the_first_step_of_emoairy_is_what_a_pen_says() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    weight.grad = torch.tensor([[1.0, 2.0, 2.0], [4.0, 5.0, 2.0]], dtype=torch.float64)
    emo_torch.EmoAiry([weight], lr=1.0, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0).step(loss=0.0)
    # Row means of the squares: 3 and 15; column means: 8.5, 14.5, 4.
    expected = [
        [1 / math.sqrt(math.sqrt(r * c)) * g for g, c in zip(grads, (8.5, 14.5, 4.0), strict=True)]
        for grads, r in (((1.0, 2.0, 2.0), 3.0), ((4.0, 5.0, 2.0), 15.0))
    ]
    np.testing.assert_allclose(weight.detach().numpy(), -np.array(expected), rtol=1e-14)


# Many tensors at once, and precision.

MIXES = {
    "float32": (torch.float32,),
    "bfloat16": (torch.bfloat16,),
    "float16": (torch.float16,),
    "mixed": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
}


def _train(name: str, dtypes: Sequence[torch.dtype], options: Options) -> tuple[Sequence[Tensor], Any]:
    rng = np.random.default_rng(3)
    numbers = [rng.normal(size=shape) for shape in SHAPES for _ in dtypes]
    params = [
        torch.nn.Parameter(torch.tensor(array).to(dtypes[index % len(dtypes)]))
        for index, array in enumerate(numbers)
    ]
    optimizer = FAMILY[name](params, **options)
    for step, loss in enumerate(spiky_losses()[:24]):
        for param, grad in zip(params, make_grads(rng, params, step), strict=True):
            set_grad(param, grad, step)
        optimizer.step(loss=loss)
    return params, optimizer


@pytest.mark.parametrize("mode", ["decoupled", "l2"])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("name", FAMILY)
def test_all_tensors_at_once_come_out_as_one_after_the_other(name: str, mix: str, mode: str) -> None:
    options = {"use_shadow": True, "weight_decay_mode": mode, "weight_decay": 0.1, "theta": 0.2, "lr": 0.03}
    singles, single = _train(name, MIXES[mix], {**options, "foreach": False})
    manies, many = _train(name, MIXES[mix], {**options, "foreach": True})
    for ours, theirs in zip(manies, singles, strict=True):
        assert torch.equal(ours, theirs)
        assert many.state[ours].keys() == single.state[theirs].keys()
        for key, value in many.state[ours].items():
            assert value.dtype == single.state[theirs][key].dtype
            assert torch.equal(value, single.state[theirs][key]), key


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILY)
def test_low_precision_steps_are_computed_in_float32_and_rounded_once(
    name: str, dtype: torch.dtype, foreach: bool
) -> None:
    torch.manual_seed(0)
    options: Options = {"lr": 0.02, "weight_decay": 0.1, "foreach": foreach}
    narrow = torch.nn.Parameter(torch.randn(5, 4).to(dtype))
    wide = torch.nn.Parameter(narrow.detach().float())
    ours, theirs = FAMILY[name]([narrow], **options), FAMILY[name]([wide], **options)
    for step in range(20):
        with torch.no_grad():
            wide.copy_(narrow)
        narrow.grad = torch.randn(5, 4).to(dtype)
        wide.grad = narrow.grad.float()
        before = narrow.detach().clone()
        ours.step(loss=1.0 / (step + 1))
        theirs.step(loss=1.0 / (step + 1))
        change = (wide.detach() - before.float()).to(dtype)
        assert torch.equal(narrow.detach(), before + change)
        for key, value in ours.state[narrow].items():
            assert value.dtype == torch.float32
            assert torch.equal(value, theirs.state[wide][key]), key


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", FAMILY)
def test_moments_are_kept_in_the_dtype_that_was_asked_for(name: str, foreach: bool) -> None:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (3,))]
    twins = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    kwargs: Options = {"lr": 1e-2, "use_shadow": True, "foreach": foreach}
    ours = FAMILY[name](weights, moment_dtype=torch.bfloat16, **kwargs)
    theirs = FAMILY[name](twins, **kwargs)
    for step in range(10):
        for weight, twin in zip(weights, twins, strict=True):
            weight.grad = torch.randn_like(weight)
            twin.grad = weight.grad.clone()
        ours.step(loss=3.0 - 0.2 * step)
        theirs.step(loss=3.0 - 0.2 * step)
    for weight, twin in zip(weights, twins, strict=True):
        state, wide = ours.state[weight], theirs.state[twin]
        assert weight.dtype == state["shadow"].dtype == torch.float32
        for key in state.keys() - {"shadow", "shadow_exists"}:
            assert state[key].dtype == torch.bfloat16
            assert wide[key].dtype == torch.float32
            torch.testing.assert_close(state[key].float(), wide[key], rtol=0.05, atol=0.05)
        torch.testing.assert_close(weight, twin, rtol=0.1, atol=0.2 * kwargs["lr"] * 10)
        assert not torch.equal(weight, twin) or name == "EmoCats"


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("use_shadow", [False, True], ids=["plain", "shadow"])
def test_a_model_may_change_its_dtype_between_steps(
    use_shadow: bool, before: torch.dtype, after: torch.dtype, foreach: bool
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).to(before)
    optimizer = emo_torch.EmoSens(model.parameters(), lr=1e-2, use_shadow=use_shadow, foreach=foreach)
    for step in range(8):
        if step == 4:
            model.to(after)
        start = model.weight.detach().clone()
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step(loss=3.0 - 0.01 * step)
        assert model.weight.dtype == (after if step >= 4 else before)
        assert bool(torch.any(model.weight != start))


@pytest.mark.parametrize("name", FAMILY)
def test_a_ratio_of_one_s_own_may_return_a_plain_number(name: str) -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = FAMILY[name]([weight], lr=0.0, use_shadow=True, shadow_ratio=lambda _: 0.5)
    weight.grad = torch.zeros(1)
    optimizer.step(loss=1.0)
    with torch.no_grad():
        weight.fill_(4.0)
    optimizer.step(loss=1.0)
    assert weight.item() == 3.0
    assert optimizer.emotion.shadow_ratio.item() == 0.5
