"""PyTorch's requirements for its own optimizers, tested on these, and other features of PyTorch."""

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import lr_scheduler

import emo_torch
from emo_torch import _public
from emo_torch._step import emo_optimizer, ready_ways
from emo_torch._step.later_optimizers import DriveOptimizer
from emo_torch._step.ways import WAYS, Ways

pytest.importorskip("expecttest")

from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
)

CPU = torch.device("cpu")


def case_of(kwargs: dict[str, Any], desc: str) -> Any:
    return OptimizerInput(params=None, kwargs=kwargs, desc=desc)  # type: ignore[arg-type]


def inputs(device: Any, dtype: Any = None) -> list[Any]:  # noqa: ARG001
    """The options under which every one of the tests runs."""
    cases: dict[str, dict[str, Any]] = {
        "default": {},
        "non-default lr": {"lr": 0.01},
        "tensor lr": {"lr": torch.tensor(0.01)},
        "weight decay": {"lr": 0.01, "weight_decay": 0.1},
        "absolute decay": {"weight_decay": 1e-4, "weight_decay_mode": "absolute"},
        "l2 decay": {"weight_decay": 0.1, "weight_decay_mode": "l2"},
        "maximize": {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
        "shadow": {"lr": 0.01, "use_shadow": True},
        "feeling": {"lr": 0.01, "gain": 1.0, "use_shadow": True, "shadow_ratio": "v1.0"},
    }
    return [case_of(kwargs, desc) for desc, kwargs in cases.items()]


def error_inputs(device: Any, dtype: Any) -> list[Any]:
    """Input that every optimizer of torch refuses, and further input that these refuse."""
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"lr": -1.0}, r"Invalid learning rate: -1\.0"),
        ({"betas": (1.0, 0.0)}, r"Invalid beta parameter at index 0: 1\.0"),
        ({"betas": (0.0, -1.0)}, r"Invalid beta parameter at index 1: -1\.0"),
        ({"eps": -1.0}, r"Invalid epsilon value: -1\.0"),
        ({"weight_decay": -1}, "Invalid weight_decay value: -1"),
    )
    ours = [
        ErrorOptimizerInput(
            case_of(kwargs, text),
            error_type=ValueError,
            error_regex=text,
        )
        for kwargs, text in cases
    ]
    return [*get_error_inputs_for_all_optims(device, dtype), *ours]


INFOS = [
    OptimizerInfo(
        cls,  # type: ignore[arg-type]
        optim_inputs_func=inputs,
        optim_error_inputs_func=error_inputs,
        scheduler_inputs=(
            [lambda opt: lr_scheduler.StepLR(opt, gamma=0.9, step_size=10)],
            [lr_scheduler.ReduceLROnPlateau],
            [
                lambda opt: lr_scheduler.ExponentialLR(opt, gamma=0.99),
                lambda opt: lr_scheduler.ConstantLR(opt),
            ],
        ),
        supported_impls=("foreach",),
        not_og_supported_flags=(),
        supports_complex=False,
        step_requires_closure=True,
    )
    for cls in (
        *(emo_torch.EmoSens, emo_torch.EmoAiry, emo_torch.EmoCats),
        *(emo_torch.EmoClan, emo_torch.EmoNeco, emo_torch.EmoZeal),
    )
]
"""One of each rule: EmoNavi, EmoFact and EmoLynx have the rules of the first three."""


def _configurations(info: Any) -> Iterator[tuple[str, Any]]:
    """Every option, one tensor after the other and, as torch itself does on no CPU, all at once."""
    for case in info.optim_inputs_func(CPU):
        for flag in (False, *(True for _ in info.supported_impls)):
            kwargs = {**case.kwargs, "foreach": flag}
            name = f"{info.name}-{case.desc}-{'foreach' if flag else 'single'}"
            yield name, case_of(kwargs, case.desc)


ALL = [pytest.param(info, case, id=name) for info in INFOS for name, case in _configurations(info)]
OPTIONS = [
    pytest.param(info, case, id=f"{info.name}-{case.desc}")
    for info in INFOS
    for case in info.optim_inputs_func(CPU)
]
every_configuration = pytest.mark.parametrize(("info", "case"), ALL)
every_option = pytest.mark.parametrize(("info", "case"), OPTIONS)
every_optimizer = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)


def options(case: Any) -> dict[str, Any]:
    kwargs: dict[str, Any] = copy.deepcopy(case.kwargs)
    return kwargs


class Problem:
    """A small regression, on whose loss an optimizer goes down, or up on its negative."""

    def __init__(self, info: Any, kwargs: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.weight = Parameter(torch.randn(10, 5, dtype=dtype))
        self.bias = Parameter(torch.randn(10, dtype=dtype))
        self.input = torch.randn(5, dtype=dtype)
        self.sign = -1.0 if kwargs.get("maximize") else 1.0
        self.optimizer = info.optim_cls([self.weight, self.bias], **kwargs)

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.sign * (self.weight.mv(self.input) + self.bias).pow(2).mean()
        loss.backward()
        return loss

    def step(self, count: int = 1) -> float:
        for _ in range(count):
            loss = self.optimizer.step(self.closure)
        return float(loss.item() * self.sign)

    def params(self) -> list[Tensor]:
        return [self.weight.detach().clone(), self.bias.detach().clone()]

    def states(self) -> list[Any]:
        return [self.optimizer.state[self.weight], self.optimizer.state[self.bias]]


@every_configuration
def test_goes_the_right_way(info: Any, case: Any) -> None:
    problem = Problem(info, options(case))
    first = problem.step()
    assert problem.step(20) < first


@pytest.mark.parametrize("schedulers", range(3))
@every_optimizer
def test_goes_the_right_way_under_schedulers(info: Any, schedulers: int) -> None:
    problem = Problem(info, {"lr": 0.01})
    made = [make(problem.optimizer) for make in info.scheduler_inputs[schedulers]]
    first = problem.step()
    for _ in range(20):
        last = problem.step()
        for scheduler in made:
            plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([last] if plateau else []))
    assert last < first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@every_option
def test_all_tensors_at_once_match_one_after_the_other(info: Any, case: Any, dtype: torch.dtype) -> None:
    ours = Problem(info, {**options(case), "foreach": True}, dtype=dtype)
    theirs = Problem(info, {**options(case), "foreach": False}, dtype=dtype)
    ours.step(7)
    theirs.step(7)
    assert_same(ours.params(), theirs.params())
    assert_same(ours.states(), theirs.states())


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@every_configuration
def test_many_tensors_of_a_mix_of_dtypes_match_too(info: Any, case: Any) -> None:
    results = []
    for foreach in (False, True):
        torch.manual_seed(1)
        params = [
            Parameter(torch.randn(shape).to(dtype))
            for shape in ((3, 2), (4,), (), (2, 1, 3))
            for dtype in (torch.float64, torch.float32, torch.bfloat16)
        ]
        optimizer = info.optim_cls(params, **{**options(case), "foreach": foreach})
        for step in range(5):
            for param in params:
                param.grad = torch.randn_like(param)
            optimizer.step(loss=1.0 + step % 2)
        results.append([params, [optimizer.state[param] for param in params]])
    assert_same(results[0], results[1])


@every_configuration
def test_a_loaded_state_continues_the_run_exactly(info: Any, case: Any) -> None:
    ours, theirs = Problem(info, options(case)), Problem(info, options(case))
    ours.step(5)
    theirs.step(2)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
    theirs.optimizer.load_state_dict(copy.deepcopy(ours.optimizer.state_dict()))
    ours.step(5)
    theirs.step(5)
    assert_same(ours.params(), theirs.params())
    assert_same(ours.states(), theirs.states())
    # Once more from its own groups, which must have the same form.
    theirs.optimizer.load_state_dict(theirs.optimizer.state_dict())
    assert_same(ours.states(), theirs.states())


@every_configuration
def test_a_state_is_loaded_by_weights_only(info: Any, case: Any) -> None:
    problem = Problem(info, options(case))
    problem.step(3)
    buffer = io.BytesIO()
    torch.save(problem.optimizer.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    fresh = Problem(info, options(case))
    fresh.optimizer.load_state_dict(loaded)
    assert_same(fresh.states(), problem.states())


@every_configuration
def test_a_state_may_go_into_parameters_of_double_precision(info: Any, case: Any) -> None:
    problem = Problem(info, options(case))
    problem.step(3)
    wide = Problem(info, options(case), dtype=torch.float64)
    wide.optimizer.load_state_dict(problem.optimizer.state_dict())
    wide.step(3)
    assert all(bool(torch.isfinite(param).all()) for param in wide.params())


@every_option
def test_a_tensor_for_a_learning_rate_gives_the_same_numbers(info: Any, case: Any) -> None:
    kwargs = {**options(case), "lr": 0.01}
    for foreach in (False, True):
        number = Problem(info, {**kwargs, "foreach": foreach})
        number.step(5)
        for shape in ((), (1,)):
            tensor = Problem(info, {**kwargs, "foreach": foreach, "lr": torch.full(shape, 0.01)})
            tensor.step(5)
            torch.testing.assert_close(tensor.params(), number.params(), rtol=1e-6, atol=1e-7)


@every_configuration
def test_a_group_with_a_learning_rate_of_0_stays(info: Any, case: Any) -> None:
    kwargs = options(case)
    if kwargs.get("weight_decay_mode") == "absolute":
        kwargs["weight_decay"] = 0.0  # It knows no learning rate.
    kwargs["use_shadow"] = False  # Nor does the pull to the shadow.
    torch.manual_seed(0)
    params = [Parameter(torch.randn(4, 3)) for _ in range(2)]
    start = [param.detach().clone() for param in params]
    groups = [{"params": params[:1], "lr": 0.0}, {"params": params[1:]}]
    optimizer = info.optim_cls(groups, **kwargs)
    for step in range(4):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step(loss=1.0 + step)
    assert torch.equal(params[0], start[0])
    assert not torch.equal(params[1], start[1])


@pytest.mark.parametrize("foreach", [False, True])
@every_optimizer
def test_weight_decay_of_a_group_goes_to_0(info: Any, foreach: bool) -> None:
    torch.manual_seed(0)
    params = [Parameter(torch.full((3, 2), 2.0)) for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.0}]
    optimizer = info.optim_cls(groups, lr=0.1, weight_decay=0.5, foreach=foreach)
    for _ in range(5):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step(loss=1.0)
    torch.testing.assert_close(params[0].detach(), torch.full((3, 2), 2.0 * 0.95**5))
    assert bool(torch.all(params[1] == 2.0))


@every_configuration
def test_parameters_need_not_be_contiguous(info: Any, case: Any) -> None:
    results = []
    for contiguous in (True, False):
        torch.manual_seed(0)
        matrix, vector = torch.randn(4, 3), torch.randn(6)
        if not contiguous:
            matrix, vector = matrix.t().contiguous().t(), torch.stack([vector, vector], dim=1)[:, 0]
        params = [Parameter(matrix), Parameter(vector)]
        assert all(param.is_contiguous() == contiguous for param in params)
        optimizer = info.optim_cls(params, **options(case))
        for step in range(5):
            for param in params:
                param.grad = torch.randn(param.shape)
            optimizer.step(loss=1.0 + step % 2)
        results.append([params, [list(optimizer.state[param].values()) for param in params]])
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("foreach", [False, True])
@every_optimizer
def test_parameters_may_lie_channels_last(info: Any, foreach: bool) -> None:
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        param = Parameter(torch.randn(2, 3, 4, 2).to(memory_format=layout))
        optimizer = info.optim_cls([param], lr=0.01, use_shadow=True, foreach=foreach)
        for step in range(5):
            param.grad = torch.randn(2, 3, 4, 2).to(memory_format=layout)
            optimizer.step(loss=1.0 + step % 2)
        assert param.is_contiguous(memory_format=layout)
        results.append(param)
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


@every_configuration
def test_gradients_that_are_missing_or_zero_move_nothing(info: Any, case: Any) -> None:
    kwargs = {**options(case), "weight_decay": 0.0}
    for zero in (False, True):
        params = [Parameter(torch.randn(3, 2)), Parameter(torch.randn(4))]
        start = [param.detach().clone() for param in params]
        optimizer = info.optim_cls(params, **kwargs)
        for step in range(3):
            for param in params:
                param.grad = torch.zeros_like(param) if zero else None
            optimizer.step(loss=1.0 + step)
        assert_same([param.detach() for param in params], start)
        assert bool(optimizer.state) == zero


@every_optimizer
def test_the_way_is_the_one_asked_for_and_else_the_fastest(
    info: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def spy(kind: str) -> Any:
        def call(*args: Any, **given: Any) -> Any:
            calls.append(kind)
            return getattr(ways, kind)(*args, **given)

        return call

    ways: Ways = WAYS
    for module in (emo_optimizer, ready_ways):
        monkeypatch.setattr(module, "WAYS", Ways(*map(spy, Ways._fields)))
    weight = Parameter(torch.ones(2))
    for options in ({}, {"foreach": False}, {"foreach": True}, {"fused": False}):
        weight.grad = torch.ones(2)
        info.optim_cls([weight], **options).step(loss=1.0)
    assert calls == ["fused", "single", "multi", "single"]


def test_the_tests_above_cover_every_optimizer_that_is_public() -> None:
    public = {
        thing
        for thing in vars(_public).values()
        if isinstance(thing, type)
        and issubclass(thing, emo_torch.EmoOptimizer)
        # The tests of v3.6.1 are in later_generations_test.py.
        and not issubclass(thing, DriveOptimizer)
    }
    covered = {info.optim_cls for info in INFOS}
    tested: set[Any] = set(covered)
    rules = {rule for cls in tested for rule in cls.recipe.rules}
    members = public - covered - {emo_torch.EmoOptimizer, emo_torch.Emotional}
    same_rule = {cls for cls in members if set(cls.recipe.rules) <= rules}
    assert same_rule == {emo_torch.EmoNavi, emo_torch.EmoFact, emo_torch.EmoLynx}
    assert public == covered | same_rule | {emo_torch.EmoOptimizer, emo_torch.Emotional}
    assert len(ALL) == 2 * len(OPTIONS) == 2 * 6 * 9
