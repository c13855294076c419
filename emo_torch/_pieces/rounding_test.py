"""Steps that plain low precision loses, and that Kahan summation and stochastic rounding keep."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._pieces.rounding import (
    Rounding,
    multi_tensor_round_stochastically,
    multi_tensor_round_with_kahan,
    round_bits,
    round_stochastically,
    round_with_kahan,
    rounding_keys,
    scramble,
)
from emo_torch._step.sync_test import NoSync

FAMILY: list[Any] = [
    *(emo_torch.EmoSens, emo_torch.EmoAiry, emo_torch.EmoCats),
    *(emo_torch.EmoNavi, emo_torch.EmoFact, emo_torch.EmoLynx),
    *(emo_torch.EmoClan, emo_torch.EmoNeco, emo_torch.EmoZeal),
    emo_torch.RefAdamWMiniScheduleFree,
]
NARROW = [torch.bfloat16, torch.float16]
every_narrow_dtype = pytest.mark.parametrize("dtype", NARROW, ids=str)
every_foreach = pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
every_rounding = pytest.mark.parametrize("rounding", ["kahan", "stochastic"])


# Rounding itself.


def values(dtype: torch.dtype) -> Tensor:
    """Numbers of every size of a dtype, and its limits."""
    random = np.random.default_rng(0)
    info = torch.finfo(dtype)
    sizes = 10.0 ** random.uniform(np.log10(info.smallest_normal) - 3.0, np.log10(info.max), 20_000)
    edges = [0.0, info.smallest_normal, -info.smallest_normal / 3.0, info.tiny * info.eps, info.max]
    numbers = np.concatenate([random.choice([-1.0, 1.0], sizes.size) * sizes, edges])
    ties = torch.arange(-300, 300) / 512 + 1.0
    lost = torch.tensor([torch.inf, -torch.inf])
    return torch.cat([torch.tensor(numbers, dtype=torch.float32), ties, lost])


@every_narrow_dtype
def test_without_draws_bits_are_rounded_as_a_cast_rounds(dtype: torch.dtype) -> None:
    given = values(dtype)
    given = given[given.to(dtype).isfinite() | given.isinf()]
    assert torch.equal(round_bits(given, dtype), given.to(dtype).float())
    assert round_bits(torch.tensor([torch.nan, 1.0]), dtype).isnan().tolist() == [True, False]


@every_narrow_dtype
def test_with_draws_a_value_becomes_one_of_its_neighbours(dtype: torch.dtype) -> None:
    given = values(dtype)
    given = given[given.abs() < torch.finfo(dtype).max]
    draws = scramble(torch.arange(given.numel()))
    rounded = round_bits(given, dtype, draws)
    assert torch.equal(rounded.to(dtype).float(), rounded)  # It is one that the dtype has.
    down, up = (round_bits(given, dtype, torch.full_like(draws, draw)) for draw in (0, 2**32 - 1))
    assert bool(((rounded == down) | (rounded == up)).all())
    assert bool((down.abs() <= given.abs()).all())
    # Where float16 is evenly spaced, by 2^-24, it is not looked closer at than 2^-37.
    assert bool((up.abs() >= given.abs() - 2.0**-38).all())
    held = given.to(dtype).float()
    assert torch.equal(round_bits(held, dtype, draws), held)
    lost = torch.tensor([torch.inf, -torch.inf])
    assert torch.equal(round_bits(lost, dtype, draws[:2]), lost)
    assert round_bits(torch.full((2,), torch.nan), dtype, draws[:2]).isnan().all()


@pytest.mark.parametrize("value", [1.0001, -2.7182817, 300.3, 3e-6, -0.0])
@every_narrow_dtype
def test_the_mean_of_what_is_rounded_at_random_is_the_value(dtype: torch.dtype, value: float) -> None:
    exact = torch.full((200_000,), value)
    rounded = round_bits(exact, dtype, scramble(torch.arange(exact.numel()))).double()
    unit = (rounded.max() - rounded.min()).item()
    share = abs(value - rounded.abs().min().item() * np.sign(value)) / unit if unit else 0.0
    error = unit * np.sqrt(share * (1.0 - share) / exact.numel())
    assert abs(rounded.mean().item() - exact[0].double().item()) <= 4.0 * error


def test_random_numbers_are_even_and_do_not_follow_from_one_another() -> None:
    keys = rounding_keys(torch.tensor(7), 3)
    assert len({*keys.tolist(), *rounding_keys(torch.tensor(8), 3).tolist()}) == 6
    assert not torch.equal(keys, rounding_keys(torch.tensor(7), 3, seed=1))
    assert torch.equal(keys, rounding_keys(torch.tensor(7, dtype=torch.int32), 5)[:3])
    ours, other = (scramble((torch.arange(100_000) + key) & (2**32 - 1)) for key in keys[:2])
    counts = torch.bincount(ours >> 24, minlength=256).double()
    # Chi-squared with 255 degrees of freedom: 4 standard deviations of 22.6 around its mean.
    assert abs((counts - 390.625).square().sum().item() / 390.625 - 255.0) < 4 * 22.6
    assert int(ours.min()) >= 0
    assert int(ours.max()) < 2**32
    for one, two in ((ours[1:], ours[:-1]), (ours, other)):
        assert abs(torch.corrcoef(torch.stack([one, two]).double())[0, 1].item()) < 4 / 100_000**0.5


def test_what_is_not_to_move_does_not_move_by_its_rest() -> None:
    param = torch.tensor([1.0078125, 1.0078125], dtype=torch.bfloat16)
    rest = torch.full((2,), 2.0**-8, dtype=torch.bfloat16)  # Half a unit: a tie, which is not even.
    update = round_with_kahan(torch.tensor([0.0, 1e-9]), param, rest)
    assert update.tolist() == [0.0, 2.0**-8]
    assert (param + update).tolist() == [1.0078125, 1.015625]
    assert rest.tolist() == [2.0**-8, -(2.0**-8)]


@every_narrow_dtype
def test_kahan_keeps_the_sum(dtype: torch.dtype) -> None:
    random = np.random.default_rng(0)
    param = torch.tensor(random.normal(size=500)).to(dtype)
    rest = torch.zeros_like(param)
    exact = param.double()
    for _ in range(200):
        update = torch.tensor(1e-3 * random.normal(size=500), dtype=torch.float32)
        exact = exact + update.double()
        param.add_(round_with_kahan(update, param, rest))
    unit = torch.finfo(dtype).eps
    # Of 200 roundings of the rest, each off by half a unit of half a unit at most.
    assert (param.double() + rest.double() - exact).abs().max().item() < 200 * unit * unit / 4.0 * 4.0
    assert (param.double() - exact).abs().max().item() < 0.51 * unit * 4.0


@every_narrow_dtype
def test_a_step_at_random_lands_on_a_neighbour_of_where_it_should(dtype: torch.dtype) -> None:
    random = np.random.default_rng(0)
    param = torch.tensor(random.normal(size=5000)).to(dtype)
    update = torch.tensor(1e-2 * random.normal(size=5000), dtype=torch.float32)
    aim = param.float() + update
    moved = param + round_stochastically(update, param, torch.tensor(5))
    is_small = aim.abs() > 2.1 * update.abs()  # A longer update is itself rounded first.
    down, up = (round_bits(aim, dtype, torch.full(aim.shape, draw)) for draw in (0, 2**32 - 1))
    is_one = (moved.float() == down) | (moved.float() == up)
    assert int(is_small.sum()) > 4000
    assert bool(is_one[is_small].all())
    assert (moved.float() - aim).abs().max().item() < torch.finfo(dtype).eps * 4.0


def test_many_tensors_come_out_as_one_after_the_other() -> None:
    random = np.random.default_rng(0)
    shapes = [(), (3,), (0,), (4, 5), (0, 3)]
    params = [torch.tensor(random.normal(size=shape)).to(torch.bfloat16) for shape in shapes]
    updates = [torch.tensor(1e-2 * random.normal(size=shape), dtype=torch.float32) for shape in shapes]
    rests = [(1e-3 * param).to(param.dtype) for param in params]
    twins = [rest.clone() for rest in rests]
    many = multi_tensor_round_with_kahan(updates, params, rests)
    for index, param in enumerate(params):
        assert torch.equal(many[index], round_with_kahan(updates[index], param, twins[index]))
        assert torch.equal(rests[index], twins[index])
        assert many[index].dtype == param.dtype
    keys = rounding_keys(torch.tensor(3), len(params))
    many = multi_tensor_round_stochastically(updates, params, list(keys))
    for ours, *row in zip(many, updates, params, keys, strict=True):
        assert torch.equal(ours, round_stochastically(*row))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # From imports of inductor.
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
def test_a_compiler_leaves_no_rounding_out() -> None:
    random = np.random.default_rng(0)
    param = torch.tensor(random.normal(size=500)).to(torch.bfloat16)
    update = torch.tensor(1e-3 * random.normal(size=500), dtype=torch.float32)
    rest = (1e-3 * param).to(param.dtype)
    twin = rest.clone()
    torch._dynamo.reset()
    compiled = torch.compile(round_with_kahan, fullgraph=True)
    assert torch.equal(compiled(update, param, twin), round_with_kahan(update, param, rest))
    assert torch.equal(twin, rest)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "0", None])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"^Invalid seed"):
        rounding_keys(torch.tensor(1), 1, seed=seed)


def test_a_seed_of_numpy_is_the_same_whole_number() -> None:
    seeds: list[Any] = [7, np.int64(7), np.uint32(7)]
    keys = [rounding_keys(torch.tensor(1), 2, seed=seed) for seed in seeds]
    assert torch.equal(keys[0], keys[1])
    assert torch.equal(keys[0], keys[2])


# The option.


def descend(cls: Any, dtype: torch.dtype, steps: int = 300, **options: Any) -> Tensor:
    """Goes down (w - 1)^2 / 2 from 3; half a bfloat16 unit of 3 is 40 learning rates."""
    weight = torch.nn.Parameter(torch.full((16, 8), 3.0, dtype=dtype))
    optimizer = cls([weight], lr=2e-4, **options)
    for _ in range(steps):
        weight.grad = (weight.detach().float() - 1.0).to(dtype)
        optimizer.step(loss=1.0)
    return weight.detach().double()


# Both ways give the same bits: `test_all_tensors_at_once_come_out_as_one_after_the_other`.
@pytest.mark.parametrize("cls", FAMILY, ids=lambda cls: cls.__name__)
def test_small_steps_are_lost_in_plain_bfloat16_and_add_up_with_rounding(cls: Any) -> None:
    exact = descend(cls, torch.float32, foreach=False).mean().item()
    assert exact < 2.96
    assert bool((descend(cls, torch.bfloat16, foreach=False) == 3.0).all())
    unit = 2.0**-6  # Of bfloat16 between 2 and 4.
    kahan = descend(cls, torch.bfloat16, foreach=False, rounding="kahan")
    assert (kahan - exact).abs().max().item() <= unit / 2.0 + 0.02 * (3.0 - exact)
    found = descend(cls, torch.bfloat16, foreach=False, rounding="stochastic")
    # Every step adds the variance of one draw, at most its own length times the unit.
    error = np.sqrt((3.0 - exact) * unit / found.numel())
    assert abs(found.mean().item() - exact) <= 4.0 * error
    assert found.std().item() > 0.0


@every_rounding
def test_float16_gains_too(rounding: str) -> None:
    exact = descend(emo_torch.EmoCats, torch.float32).mean().item()
    lost = descend(emo_torch.EmoCats, torch.float16)
    found = descend(emo_torch.EmoCats, torch.float16, rounding=rounding)
    assert bool((lost == 3.0).all())
    assert abs(found.mean().item() - exact) < 2e-3


MIX = [torch.float32, torch.bfloat16, torch.float64, torch.float16]


def mixed(options: dict[str, Any], cls: Any = emo_torch.EmoSens, steps: int = 12) -> tuple[Any, Any]:
    """Trains parameters of all dtypes, in two groups; some have no gradient now and then."""
    random = np.random.default_rng(0)
    shapes = [(5, 4), (6,), ()]
    kinds = [(shape, dtype) for shape in shapes for dtype in MIX]
    params = [
        torch.nn.Parameter(torch.tensor(random.normal(size=shape)).to(dtype)) for shape, dtype in kinds
    ]
    optimizer = cls([{"params": params[:5]}, {"params": params[5:], "lr": 3e-3}], **options)
    for step in range(steps):
        for index, param in enumerate(params):
            grad = torch.tensor(random.normal(size=param.shape)).to(param.dtype)
            param.grad = None if (index + step) % 5 == 0 else grad
        optimizer.step(loss=1.0 + 0.05 * (step % 3))
    return params, optimizer


@every_rounding
@every_foreach
def test_full_precision_is_left_alone_to_the_last_bit(rounding: str, foreach: bool) -> None:
    options: dict[str, Any] = {"use_shadow": True, "foreach": foreach}
    params, plain = mixed(options)
    rounded, optimizer = mixed({**options, "rounding": rounding})
    for ours, theirs in zip(rounded, params, strict=True):
        is_wide = ours.dtype in (torch.float32, torch.float64)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs) or not is_wide
        extra = optimizer.state[ours].keys() - plain.state[theirs].keys()
        assert extra == (set() if is_wide or rounding == "stochastic" else {"compensation"})
        if extra:
            assert optimizer.state[ours]["compensation"].dtype == ours.dtype
    assert any(not torch.equal(ours, theirs) for ours, theirs in zip(rounded, params, strict=True))


@every_rounding
@pytest.mark.parametrize("cls", FAMILY, ids=lambda cls: cls.__name__)
def test_all_tensors_at_once_come_out_as_one_after_the_other(cls: Any, rounding: str) -> None:
    singles, single = mixed({"rounding": rounding, "foreach": False}, cls, steps=6)
    manies, many = mixed({"rounding": rounding, "foreach": True}, cls, steps=6)
    for ours, theirs in zip(manies, singles, strict=True):
        assert torch.equal(ours, theirs)
        for name, value in many.state[ours].items():
            assert torch.equal(value, single.state[theirs][name]), name


def test_a_group_may_have_a_rounding_of_its_own() -> None:
    weights = [torch.nn.Parameter(torch.full((4,), 3.0, dtype=torch.bfloat16)) for _ in range(2)]
    groups: list[dict[str, Any]] = [{"params": weights[:1]}, {"params": weights[1:], "rounding": "kahan"}]
    optimizer = emo_torch.EmoCats(groups, lr=1e-4)
    for _ in range(100):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step(loss=1.0)
    assert weights[0].tolist() == [3.0] * 4
    assert all(value < 3.0 for value in weights[1].tolist())


@every_rounding
def test_no_step_is_none(rounding: Rounding) -> None:
    weight = torch.nn.Parameter(torch.full((64,), 3.0, dtype=torch.bfloat16))
    optimizer = emo_torch.EmoCats([weight], lr=3e-4, rounding=rounding)
    for step in range(60):
        if step == 40:
            optimizer.param_groups[0]["lr"] = 0.0
            before = weight.detach().clone()
        weight.grad = torch.randn(64).to(torch.bfloat16)
        optimizer.step(loss=1.0)
    assert torch.equal(weight, before)


@every_rounding
@every_foreach
def test_a_step_compiles_to_one_graph_and_waits_for_nothing(rounding: str, foreach: bool) -> None:
    params, optimizer = mixed({"rounding": rounding, "foreach": foreach})
    twins, plain = mixed({"rounding": rounding, "foreach": foreach})
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def step(loss: Tensor) -> None:
        optimizer.step(loss=loss)

    step(torch.tensor(0.3))
    with NoSync():
        plain.step(loss=torch.tensor(0.3))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(params, twins, strict=True))


@pytest.mark.parametrize("cls", FAMILY, ids=lambda cls: cls.__name__)
def test_an_unknown_rounding_is_refused_by_name(cls: Any) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    known = "^Invalid rounding: 'up'; it must be one of 'nearest', 'kahan', 'stochastic'$"
    with pytest.raises(ValueError, match=known):
        cls([weight], rounding="up")
    optimizer = cls([weight])
    with pytest.raises(ValueError, match=known):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "rounding": "up"})
    state = optimizer.state_dict()
    state["param_groups"][0]["rounding"] = "up"
    with pytest.raises(ValueError, match=known):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["rounding"] == "nearest"
