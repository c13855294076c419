"""The first generation: its rules against NumPy, and its pieces alone."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import emo_torch
from emo_torch._members.emo_clan import choose_rule as clan_rule
from emo_torch._members.emo_neco import choose_rule as neco_rule
from emo_torch._members.emo_zeal import choose_first_step

MEMBERS: dict[str, Callable[..., emo_torch.EmoOptimizer]] = {
    name: getattr(emo_torch, name)
    for name in ("EmoNavi", "EmoFact", "EmoLynx", "EmoClan", "EmoNeco", "EmoZeal")
}
LR, DECAY, EPS = 1e-2, 0.01, 1e-8
Array = np.ndarray
Tree = dict[str, Array]


def _losses(steps: int) -> Array:
    """Loud at first and after jumps, quiet between: every size of the scalar comes by."""
    losses = 1.0 + 2.0 * np.exp(-np.arange(steps) / 6.0)
    losses[20::15] += 1.5
    losses[27::15] += 0.15
    return losses


def _problem(steps: int) -> tuple[Tree, list[Tree]]:
    random = np.random.default_rng(0)
    shapes = {"matrix": (3, 4), "vector": (5,)}
    start = {name: random.normal(size=shape) for name, shape in shapes.items()}
    grads = [{name: random.normal(size=shape) for name, shape in shapes.items()} for _ in range(steps)]
    return start, grads


class Reference:
    """One parameter's moments, by hand, in NumPy's float64."""

    def __init__(self, param: Array) -> None:
        self.m, self.v, self.lion = (np.zeros_like(param) for _ in range(3))
        self.fact_m, self.fact_v = np.zeros_like(param), np.zeros_like(param)
        if param.ndim == 2:
            self.row, self.column = np.zeros((param.shape[0], 1)), np.zeros((1, param.shape[1]))

    def adam(self, g: Array) -> Array:
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        return self.m / (np.sqrt(self.v) + EPS)

    def factors(self, g: Array) -> Array:
        if g.ndim < 2:
            self.fact_m = 0.9 * self.fact_m + 0.1 * g
            self.fact_v = 0.999 * self.fact_v + 0.001 * g**2
            return self.fact_m / (np.sqrt(self.fact_v) + EPS)
        self.row = 0.9 * self.row + 0.1 * np.sqrt((g**2).mean(1, keepdims=True) + EPS)
        self.column = 0.9 * self.column + 0.1 * np.sqrt((g**2).mean(0, keepdims=True) + EPS)
        return g / (np.sqrt(self.row * self.column) + EPS)

    def interpolated(self, g: Array) -> Array:
        mixed = 0.1 * g + 0.9 * self.lion
        self.lion = 0.99 * self.lion + 0.01 * g
        return mixed


def _softsign(mixed: Array, g: Array) -> Array:
    length = np.sqrt((g**2).sum()) + EPS
    step: Array = mixed / (1.0 + np.abs(mixed)) * length
    return step


def _decayed(p: Array, update: Array) -> Array:
    p = p - LR * DECAY * p
    return p - LR * update


def _clan(size: float, p: Array, g: Array, own: Reference) -> tuple[Array, str]:
    if size > 0.6:
        return _decayed(p, np.sign(own.interpolated(g))), "lynx"
    if size > 0.3:
        return _decayed(p, own.factors(g)), "fact"
    return _decayed(p, own.adam(g)), "navi"


def _neco(size: float, p: Array, g: Array, own: Reference) -> tuple[Array, str]:
    mixed = own.interpolated(g)
    if 0.2 < size <= 0.5:
        return _decayed(p, _softsign(mixed, g)), "softsign"
    return _decayed(p, np.sign(mixed) * (np.sign(mixed) == np.sign(g))), "cautious"


def _zeal(size: float, p: Array, g: Array, own: Reference) -> tuple[Array, str]:
    branch = "sign" if size > 0.6 else "softsign" if size > 0.1 else "none"
    if g.ndim >= 2 and branch == "sign":
        p = p - LR * np.sign(0.1 * g)
    if g.ndim >= 2 and branch == "softsign":
        p = p - LR * _softsign(0.1 * g, g)
    return _decayed(p, own.factors(g)), branch


REFERENCES: dict[str, tuple[Callable[..., tuple[Array, str]], int]] = {
    "EmoClan": (_clan, 3),
    "EmoNeco": (_neco, 2),
    "EmoZeal": (_zeal, 3),
}


def _params(start: Tree, dtype: torch.dtype = torch.float64) -> dict[str, torch.nn.Parameter]:
    return {key: torch.nn.Parameter(torch.tensor(value, dtype=dtype)) for key, value in start.items()}


def _step(optimizer: Any, params: dict[str, torch.nn.Parameter], grads: Tree, loss: float) -> None:
    for key, param in params.items():
        param.grad = torch.tensor(grads[key], dtype=param.dtype)
    optimizer.step(loss=loss)


@pytest.mark.parametrize("name", REFERENCES)
def test_follows_the_formulas(name: str) -> None:
    step, branches = REFERENCES[name]
    losses = _losses(80)
    start, grads = _problem(80)
    params = _params(start)
    optimizer = MEMBERS[name](params.values(), lr=LR, weight_decay=DECAY)
    expected, own = dict(start), {key: Reference(value) for key, value in start.items()}
    short = long = losses[0]
    taken = set()
    for loss, grad in zip(losses, grads, strict=True):
        short, long = 0.3 * loss + 0.7 * short, 0.01 * loss + 0.99 * long
        size = abs(np.tanh(5.0 * (short - long)))
        for key in expected:
            expected[key], branch = step(size, expected[key], grad[key], own[key])
            taken.add(branch)
        _step(optimizer, params, grad, loss)
        for key, param in params.items():
            np.testing.assert_allclose(
                param.detach().numpy(), expected[key], rtol=0, atol=1e-12, err_msg=key
            )
    assert len(taken) == branches, taken


@pytest.mark.parametrize(
    ("choose", "expected"),
    [
        (clan_rule, {0.3: 0, 0.31: 1, -0.31: 1, 0.59: 1, 0.61: 2, -1.0: 2, 0.0: 0}),
        (neco_rule, {0.19: 0, 0.21: 1, -0.21: 1, 0.5: 1, 0.51: 0, -1.0: 0, 0.0: 0}),
        (choose_first_step, {0.09: 0, 0.11: 1, -0.11: 1, 0.59: 1, 0.61: 2, -1.0: 2, 0.0: 0}),
    ],
)
def test_the_bounds_of_the_switches(choose: Callable[..., Any], expected: dict[float, int]) -> None:
    assert {size: int(choose(torch.tensor(size, dtype=torch.float64))) for size in expected} == expected


OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_shadow": True},
    {"weight_decay_mode": "l2", "maximize": True},
    {"weight_decay_mode": "absolute", "moment_dtype": torch.bfloat16},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "shadow", "l2", "absolute"])
@pytest.mark.parametrize("name", MEMBERS)
def test_all_tensors_at_once_are_as_one_by_one(name: str, options: dict[str, Any]) -> None:
    start, grads = _problem(50)
    start = {**start, "scalar": np.asarray(0.5), "empty": np.zeros((0, 3))}
    one, many = _params(start), _params(start)
    single = MEMBERS[name](one.values(), lr=LR, foreach=False, **options)
    multi = MEMBERS[name](many.values(), lr=LR, foreach=True, **options)
    for loss, grad in zip(_losses(50), grads, strict=True):
        grad = {**grad, "scalar": np.asarray(-0.3), "empty": np.zeros((0, 3))}
        _step(single, one, grad, loss)
        _step(multi, many, grad, loss)
    for key, param in one.items():
        assert torch.allclose(param, many[key], rtol=1e-12, atol=1e-14), key
        for moment, value in single.state[param].items():
            assert torch.allclose(value, multi.state[many[key]][moment], rtol=1e-12, atol=1e-14), moment


@pytest.mark.parametrize("name", MEMBERS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name: str) -> None:
    losses = _losses(60)
    losses[11] = np.nan
    start, grads = _problem(60)
    whole, first = _params(start, torch.float32), _params(start, torch.float32)
    uninterrupted = MEMBERS[name](whole.values(), lr=LR, use_shadow=True)
    resumed = MEMBERS[name](first.values(), lr=LR, use_shadow=True)
    for step, (loss, grad) in enumerate(zip(losses, grads, strict=True)):
        if step in (13, 21, 40):
            saved = copy.deepcopy(resumed.state_dict())
            first = {key: torch.nn.Parameter(param.detach().clone()) for key, param in first.items()}
            resumed = MEMBERS[name](first.values(), use_shadow=False)
            resumed.load_state_dict(saved)
        _step(uninterrupted, whole, grad, loss)
        _step(resumed, first, grad, loss)
    assert uninterrupted.emotion.held == 1
    for key, param in whole.items():
        assert torch.equal(param, first[key])
        assert torch.isfinite(param).all()
        for moment, value in uninterrupted.state[param].items():
            assert torch.equal(value, resumed.state[first[key]][moment]), moment


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *[("EmoNavi", "EmoFact"), ("EmoFact", "EmoLynx"), ("EmoLynx", "EmoNavi"), ("EmoClan", "EmoNavi")],
        *[("EmoNavi", "EmoClan"), ("EmoNeco", "EmoZeal"), ("EmoZeal", "EmoNeco"), ("EmoZeal", "EmoClan")],
    ],
)
def test_the_state_of_another_kind_is_refused(name: str, other: str) -> None:
    start, grads = _problem(1)
    theirs, ours = _params(start), _params(start)
    saved = MEMBERS[other](theirs.values())
    _step(saved, theirs, grads[0], 1.0)
    optimizer = MEMBERS[name](ours.values())
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match="another kind"):
        optimizer.load_state_dict(saved.state_dict())
    assert optimizer.state_dict()["state"] == before["state"] == {}


@pytest.mark.parametrize("name", MEMBERS)
def test_going_up_is_going_down_the_negated_problem(name: str) -> None:
    start, grads = _problem(40)
    up, down = _params(start), _params(start)
    rising = MEMBERS[name](up.values(), lr=LR, maximize=True, use_shadow=True)
    falling = MEMBERS[name](down.values(), lr=LR, use_shadow=True)
    for loss, grad in zip(_losses(40), grads, strict=True):
        _step(rising, up, grad, loss)
        _step(falling, down, {key: -value for key, value in grad.items()}, -loss)
    for key, param in up.items():
        assert torch.equal(param, down[key])


@pytest.mark.parametrize("name", MEMBERS)
def test_a_step_without_a_loss_is_refused_and_changes_nothing(name: str) -> None:
    start, grads = _problem(1)
    params = _params(start)
    optimizer = MEMBERS[name](params.values())
    for key, param in params.items():
        param.grad = torch.tensor(grads[0][key])
    with pytest.raises(emo_torch.LossMissingError):
        optimizer.step()
    assert all(torch.equal(param, torch.tensor(start[key])) for key, param in params.items())


@pytest.mark.parametrize("name", MEMBERS)
def test_there_is_no_filter_to_set(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match="theta"):
        MEMBERS[name]([weight], theta=0.1)
    assert "theta" not in MEMBERS[name]([weight]).param_groups[0]


def test_zeal_keeps_no_momentum_that_never_moves() -> None:
    start, grads = _problem(1)
    params = _params(start)
    optimizer = emo_torch.EmoZeal(params.values())
    _step(optimizer, params, grads[0], 1.0)
    assert set(optimizer.state[params["matrix"]]) == {"row", "column"}


def test_only_the_chosen_moments_move_whatever_the_others_make() -> None:
    moments = [{"exp_avg": torch.zeros(2)}, {"exp_avg": torch.zeros(2)}]

    def sound(grad: torch.Tensor, own: dict[str, torch.Tensor]) -> torch.Tensor:
        return own["exp_avg"].add_(grad)

    def broken(grad: torch.Tensor, own: dict[str, torch.Tensor]) -> torch.Tensor:
        return own["exp_avg"].add_(grad / 0.0)

    for _ in range(2):
        update = emo_torch.switch_by_emotion(torch.ones(2), moments, (sound, broken), torch.tensor(0))
    assert torch.equal(update, torch.full((2,), 2.0))
    assert torch.equal(moments[0]["exp_avg"], torch.full((2,), 2.0))
    assert torch.equal(moments[1]["exp_avg"], torch.zeros(2))


@pytest.mark.parametrize("rule", [emo_torch.scale_by_cautious_sign, emo_torch.scale_by_softsign])
def test_without_a_momentum_it_is_one_at_rest(rule: Callable[..., torch.Tensor]) -> None:
    gradient = torch.tensor([3.0, -2.0, 0.0])
    assert torch.allclose(rule(gradient, None), rule(gradient, torch.zeros(3)), rtol=1e-6)
    assert torch.equal(gradient, torch.tensor([3.0, -2.0, 0.0]))


@pytest.mark.parametrize("foreach", [False, True])
def test_l2_decay_is_the_gradients_own_for_both_steps_of_zeal(foreach: bool) -> None:
    ends = []
    for mode, decay in (("l2", 0.1), ("decoupled", 0.0)):
        param = torch.nn.Parameter(torch.full((2, 3), 2.0, dtype=torch.float64))
        options = {"lr": 0.1, "weight_decay": decay, "weight_decay_mode": mode, "foreach": foreach}
        optimizer = emo_torch.EmoZeal([param], **options)  # type: ignore[arg-type]
        for loss in (1.0, 1.2, 3.0):
            param.grad = torch.full_like(param, 0.01) + (
                0.1 * param.detach() if mode == "decoupled" else 0.0
            )
            optimizer.step(loss=loss)
        ends.append(param.detach().clone())
    assert torch.allclose(ends[0], ends[1], rtol=0.0, atol=1e-12)
