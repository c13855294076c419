import inspect
import math
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import emo_torch

FAMILY: list[Any] = [emo_torch.EmoSens, emo_torch.EmoAiry, emo_torch.EmoCats]


def weight(*shape: int, grad: bool = True) -> torch.nn.Parameter:
    param = torch.nn.Parameter(torch.ones(shape or (3,)))
    param.grad = torch.ones(shape or (3,)) if grad else None
    return param


def everything(optimizer: emo_torch.EmoOptimizer) -> list[Any]:
    """All that a step may change, as numbers."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = [
        {name: value.tolist() for name, value in optimizer.state[param].items()}
        for param in params
        if param in optimizer.state
    ]
    groups = [
        {
            name: value.tolist() if isinstance(value, torch.Tensor) else value
            for name, value in group.items()
        }
        for group in optimizer.param_groups
    ]
    for group in groups:
        del group["params"]
    return [[param.tolist() for param in params], state, groups, list(map(float, optimizer.emotion))]


# The options.

BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"lr": -1e-3}, r"^Invalid learning rate: -0\.001; it must be finite and at least 0$"),
    ({"lr": math.nan}, "^Invalid learning rate: nan; it must be finite and at least 0$"),
    ({"lr": math.inf}, "^Invalid learning rate: inf; it must be finite and at least 0$"),
    ({"lr": torch.tensor([1.0, 2.0])}, "^Tensor lr must be 1-element$"),
    ({"lr": torch.tensor(-1.0)}, "^Invalid learning rate: "),
    ({"lr": torch.tensor(math.nan)}, "^Invalid learning rate: "),
    ({"betas": (1.0, 0.5)}, r"^Invalid beta parameter at index 0: 1\.0; it must be in \[0, 1\)$"),
    ({"betas": (-0.1, 0.5)}, r"^Invalid beta parameter at index 0: -0\.1; it must be in \[0, 1\)$"),
    ({"betas": (0.5, 1.0)}, r"^Invalid beta parameter at index 1: 1\.0; it must be in \[0, 1\)$"),
    ({"betas": (0.5, math.nan)}, r"^Invalid beta parameter at index 1: nan; it must be in \[0, 1\)$"),
    ({"betas": (0.9,)}, "^Invalid betas"),
    ({"betas": (0.9, 0.9, 0.9)}, "^Invalid betas"),
    ({"eps": -1e-8}, "^Invalid epsilon value: -1e-08; it must be finite and at least 0$"),
    ({"eps": math.nan}, "^Invalid epsilon value: nan; it must be finite and at least 0$"),
    ({"weight_decay": -1}, "^Invalid weight_decay value: -1; it must be finite and at least 0$"),
    ({"weight_decay": math.inf}, "^Invalid weight_decay value: inf; it must be finite and at least 0$"),
    ({"theta": -1e-4}, r"^Invalid theta value: -0\.0001; it must be finite and at least 0$"),
    ({"shadow_rate": 0.0}, r"^Invalid shadow_rate value: 0\.0"),
    ({"shadow_rate": 1.5}, r"^Invalid shadow_rate value: 1\.5"),
    ({"weight_decay_mode": "AdamW"}, "^Invalid weight_decay_mode: 'AdamW'.*'decoupled', 'absolute', 'l2'"),
    ({"moment_dtype": torch.int8}, "^Invalid moment_dtype: torch.int8"),
    ({"moment_dtype": "bfloat16"}, "^Invalid moment_dtype: 'bfloat16'"),
]
BAD_SHARED_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"short_factor": 0.0}, r"^Invalid short_factor value: 0\.0"),
    ({"short_factor": 1.01}, r"^Invalid short_factor value: 1\.01"),
    ({"long_factor": -0.1}, r"^Invalid long_factor value: -0\.1"),
    ({"long_factor": math.nan}, "^Invalid long_factor value: nan"),
    ({"gain": -1.0}, r"^Invalid gain value: -1\.0"),
    ({"gain": math.inf}, "^Invalid gain value: inf"),
    ({"shadow_ratio": "v3.0"}, "^Invalid shadow_ratio: 'v3.0'.*'v2.0', 'v1.0' or a function"),
    ({"shadow_ratio": 0.5}, "^Invalid shadow_ratio: 0.5"),
]


def test_parameters_that_are_missing_are_refused_with_the_remedy() -> None:
    model = torch.nn.Linear(2, 1)
    read = model.parameters()
    assert len(list(read)) == 2
    makers: tuple[Any, ...] = (emo_torch.EmoSens, emo_torch.EmoPilot)
    for cls in makers:
        with pytest.raises(TypeError, match=rf"{cls.__name__} takes parameters.* `model.parameters\(\)`"):
            cls(model)
        with pytest.raises(ValueError, match=r"got an empty parameter list.*can be read only once"):
            cls(read)
        assert len(cls(model.parameters()).param_groups[0]["params"]) == 2


def test_a_number_that_is_text_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"'1e-3'; it must be a number, such as float\('1e-3'\)$"):
        emo_torch.EmoSens([weight()], lr="1e-3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"'fast'; it must be a number$"):
        emo_torch.EmoSens([weight()], lr="fast")  # type: ignore[arg-type]


def ids(options: Any) -> str | None:
    return str(options) if isinstance(options, dict) else ""


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS + BAD_SHARED_OPTIONS, ids=ids)
@pytest.mark.parametrize("cls", FAMILY)
def test_options_out_of_their_range_are_refused(cls: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls([weight()], **options)


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=ids)
@pytest.mark.parametrize("late", [False, True])
def test_options_of_a_group_are_looked_at_too(options: dict[str, Any], message: str, late: bool) -> None:
    optimizer = emo_torch.EmoAiry([weight()])
    kept = everything(optimizer)
    group = {"params": [weight()], **options}
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group(group) if late else emo_torch.EmoAiry([{"params": [weight()]}, group])
    assert everything(optimizer) == kept


@pytest.mark.parametrize(
    "options",
    [
        *({"lr": 0}, {"lr": 0.0}, {"lr": 1}, {"lr": torch.tensor([0.1])}, {"lr": torch.tensor(0.0)}),
        *({"betas": (0.0, 0.0)}, {"betas": [0.9, 0.99]}, {"eps": 0.0}, {"weight_decay": 0}, {"theta": 0.0}),
        *({"short_factor": 1.0}, {"long_factor": 1}, {"gain": 0.0}, {"shadow_rate": 1.0}),
        *({"moment_dtype": torch.float64}, {"shadow_ratio": torch.abs, "use_shadow": True}),
    ],
    ids=lambda options: " ".join(options),
)
@pytest.mark.parametrize("foreach", [False, True])
def test_options_at_the_edge_of_their_range_are_fine(options: dict[str, Any], foreach: bool) -> None:
    for cls in FAMILY:
        params = [weight(), weight(2, 2)]
        optimizer = cls(params, foreach=foreach, **options)
        for loss in (1.0, 2.0, 1.0):
            optimizer.step(loss=loss)
        assert all(bool(torch.isfinite(param).all()) for param in params)


@pytest.mark.parametrize("name", sorted(emo_torch.list_optimizers()))
@pytest.mark.parametrize("foreach", [False, True, None])
def test_options_that_are_tensors_are_the_same_numbers(name: str, foreach: bool | None) -> None:
    known = inspect.signature(type(emo_torch.create_optimizer(name, [weight()]))).parameters

    def run(make: Any) -> list[torch.Tensor]:
        params = [weight(3, 4), weight(5)]
        params.append(torch.nn.Parameter(torch.ones(())))
        options = {"betas": (make(0.9), make(0.99)), "eps": make(1e-6), "weight_decay": make(0.01)}
        options = {option: value for option, value in options.items() if option in known}
        optimizer = emo_torch.create_optimizer(name, params, foreach=foreach, **options)
        for step in range(3):
            for param in params:
                param.grad = torch.full_like(param, 0.1 * (step + 1))
            optimizer.step(loss=1.0 - 0.1 * step)
        return [param.detach() for param in params]

    wanted = run(float)
    for found, want in zip(run(lambda x: torch.tensor(x, dtype=torch.float64)), wanted, strict=True):
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("option", ["short_factor", "long_factor", "gain", "shadow_ratio", "maximize"])
def test_a_group_cannot_have_an_emotion_of_its_own(option: str) -> None:
    other = {"shadow_ratio": "v1.0", "maximize": True}.get(option, 0.123)
    optimizer = emo_torch.EmoSens([weight()])
    with pytest.raises(ValueError, match=f"^{option} belongs to the one emotion"):
        optimizer.add_param_group({"params": [weight()], option: other})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [weight()], option: optimizer.defaults[option]})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("cls", FAMILY)
def test_all_but_the_first_few_options_go_by_name(cls: Any) -> None:
    optimizer = cls([weight()], 0.1, (0.5, 0.6), 1e-4, 0.2)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
        0.1,
        (0.5, 0.6),
        1e-4,
        0.2,
    )
    with pytest.raises(TypeError, match="positional"):
        cls([weight()], 0.1, (0.5, 0.6), 1e-4, 0.2, True)


def test_the_defaults_are_those_of_the_published_optimizers() -> None:
    rates = {
        emo_torch.EmoSens: (0.9, 0.999),
        emo_torch.EmoAiry: (0.9, 0.999),
        emo_torch.EmoCats: (0.9, 0.99),
    }
    for cls, betas in rates.items():
        defaults = cls([weight()]).defaults
        expected = {
            "lr": 1e-3,
            "betas": betas,
            "eps": 1e-8,
            "weight_decay": 0.01,
            "weight_decay_mode": "decoupled",
            "use_shadow": False,
            "shadow_ratio": "v2.0",
            "shadow_rate": 0.05,
            "theta": 1e-4,
            "short_factor": 0.3,
            "long_factor": 0.01,
            "gain": 5.0,
            "moment_dtype": None,
            "maximize": False,
            "foreach": None,
        }
        assert {name: defaults[name] for name in expected} == expected


def test_a_group_without_parameters_is_as_welcome_as_in_torch() -> None:
    cases: list[list[list[torch.Tensor]]] = [[[], [weight()]], [[weight()], []], [[]]]
    for groups in cases:
        torch.optim.AdamW([{"params": params} for params in groups])
        optimizer = emo_torch.EmoSens([{"params": params} for params in groups])
        optimizer.step(loss=1.0)
        assert optimizer.emotion.felt.item() == 1


def test_a_group_added_behind_a_load_shares_what_was_loaded() -> None:
    first, second, third = (Parameter(torch.ones(1)) for _ in range(3))
    saved = emo_torch.EmoSens([first], maximize=True, gain=0.1).state_dict()
    optimizer = emo_torch.EmoSens([second])
    optimizer.load_state_dict(saved)
    optimizer.add_param_group({"params": [third]})
    assert [group["maximize"] for group in optimizer.param_groups] == [True, True]
    optimizer.add_param_group({"params": [Parameter(torch.ones(1))], "gain": 0.1})
    assert [group["gain"] for group in optimizer.param_groups] == [0.1] * 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("emotion_short", "x"),
        ("emotion_short", torch.ones(2)),
        ("weight_decay_mode", "none such"),
        ("shadow_ratio", "v9"),
        ("maximize", True),
    ],
)
def test_a_damaged_group_is_refused_before_anything_is_changed(name: str, value: Any) -> None:
    def make() -> emo_torch.EmoSens:
        groups = [{"params": [Parameter(torch.ones(2))]} for _ in range(2)]
        for group in groups:
            group["params"][0].grad = torch.ones(2)
        return emo_torch.EmoSens(groups)

    optimizer, other = make(), make()
    optimizer.step(loss=1.0)
    saved = optimizer.state_dict()
    saved["param_groups"][1][name] = value
    with pytest.raises(ValueError, match=name):
        other.load_state_dict(saved)
    assert int(other.emotion.felt) == 0
    assert not other.state


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", ["EmoSens", "EmoNavi", "EmoClan"])
def test_moments_in_half_precision_stay_finite_and_do_not_vanish(name: str, foreach: bool) -> None:
    ends = []
    for dtype in (torch.float16, torch.float32):
        param = Parameter(torch.ones(1))
        options = {"lr": 1e-3, "weight_decay": 0.0, "moment_dtype": dtype, "foreach": foreach}
        optimizer = getattr(emo_torch, name)([param], **options)
        for gradient in (*[1e-4] * 5, *[0.0] * 3, 1e4, *[1.0] * 5):
            param.grad = torch.tensor([gradient])
            optimizer.step(loss=1.0)
        ends.append(param.detach().item())
        assert all(bool(value.isfinite().all()) for value in optimizer.state[param].values())
    assert abs(ends[0] - ends[1]) < 0.05
