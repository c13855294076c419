"""Moments in 8 bits: what a step keeps, checkpoints and copies, and what is refused."""

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_shared.eight_bit import SIGNED, UNSIGNED
from emo_torch._members.by_name import MEMBERS
from emo_torch._rules.eight_bit import decode, encode

SHAPES = {"large": (70, 61), "flat": (4097,), "small": (63, 65)}
TABLES = {"exp_avg": SIGNED, "exp_avg_sq": UNSIGNED}
CODED = [name for name, member in MEMBERS.items() if member.make.recipe.may_be_8bit]
REFUSED = [
    name
    for name, member in MEMBERS.items()
    if name not in CODED and "moment_dtype" in inspect.signature(member.make).parameters
]


def _model(dtype: torch.dtype = torch.float32) -> torch.nn.ParameterDict:
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in SHAPES.items()}
    return torch.nn.ParameterDict(weights)


def _step(model: torch.nn.ParameterDict, optimizer: Any, number: int) -> None:
    draw = torch.Generator().manual_seed(100 + number)
    for param in model.parameters():
        scale = 10.0 ** torch.randn(param.shape, generator=draw)
        param.grad = (torch.randn(param.shape, generator=draw) * scale).to(param.dtype)
    optimizer.step(loss=1.0 / (1 + number))


def _make(name: str, model: torch.nn.ParameterDict, **options: Any) -> Any:
    make: Any = MEMBERS[name].make
    return make(model.parameters(), moment_dtype="8bit", **options)


@pytest.mark.parametrize("name", CODED)
def test_large_moments_are_codes_and_small_moments_stay_float32(name: str) -> None:
    model = _model()
    optimizer = _make(name, model, use_shadow=False)
    _step(model, optimizer, 0)
    large, small = optimizer.state[model["large"]], optimizer.state[model["small"]]
    names = optimizer.moment_names(model["large"])
    assert {large[each].dtype for each in names} == {torch.uint8}
    assert {small[each].dtype for each in names} == {torch.float32}
    assert set(large) == {each + end for each in names for end in ("", "_scale")}
    for param in (model["large"], model["flat"]):
        size = sum(tensor.nbytes for tensor in optimizer.state[param].values())
        assert size / param.numel() <= 1.05 * len(names)


@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [
        ("emo_sens", torch.float32, {"foreach": False}),
        ("emo_sens", torch.float64, {"foreach": True}),
        ("emo_cats", torch.float32, {"foreach": True}),
        ("emo_neco", torch.float32, {"foreach": False}),
        ("emo_tion", torch.float32, {"foreach": False}),
        ("emo_sens", torch.bfloat16, {"rounding": "kahan"}),
        ("emo_cats", torch.bfloat16, {"rounding": "stochastic"}),
    ],
)
def test_a_step_is_that_of_decoded_float32_moments(
    name: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    model, twin = _model(dtype), _model(dtype)
    optimizer = _make(name, model, fused=False, **options)
    make: Any = MEMBERS[name].make
    plain = make(twin.parameters(), fused=False, **options)
    for number in range(4):
        _step(model, optimizer, number)
        _step(twin, plain, number)
        for key, param in model.items():
            assert torch.equal(param, twin[key]), (key, number)
            codes, wide = optimizer.state[param], plain.state[twin[key]]
            for moment, table in TABLES.items():
                if moment + "_scale" in codes:
                    expected, scale = encode(wide[moment], table)
                    assert torch.equal(codes[moment], expected), (key, moment, number)
                    assert torch.equal(codes[moment + "_scale"], scale)
                    wide[moment].copy_(decode(expected, scale, table))


def test_compiled_code_steps_the_small_tensors_and_leaves_the_others() -> None:
    runs = []
    for options in ({}, {"fused": True}, {"foreach": False}, {"foreach": True}):
        model = _model()
        if options.get("fused") and emo_torch._kernels.library() is None:
            continue
        optimizer = _make("emo_sens", model, **options)
        for number in range(3):
            _step(model, optimizer, number)
        runs.append(dict(model))
    for run in runs[1:]:
        for key, param in run.items():
            torch.testing.assert_close(param, runs[0][key], rtol=1e-6, atol=1e-7)


def _by_state_dict(model: Any, optimizer: Any, path: Path) -> tuple[Any, Any]:
    del path
    other = copy.deepcopy(model)
    loaded = _make("emo_sens", other)
    loaded.load_state_dict(optimizer.state_dict())
    return other, loaded


def _by_checkpoint(model: Any, optimizer: Any, path: Path) -> tuple[Any, Any]:
    emo_torch.save_checkpoint(path / "run", optimizer.state_dict())
    other = copy.deepcopy(model)
    loaded = _make("emo_sens", other)
    loaded.load_state_dict(emo_torch.load_checkpoint(path / "run"))
    return other, loaded


def _by_torch_save(model: Any, optimizer: Any, path: Path) -> tuple[Any, Any]:
    torch.save(optimizer.state_dict(), path / "run")
    other = copy.deepcopy(model)
    loaded = _make("emo_sens", other)
    loaded.load_state_dict(torch.load(path / "run", weights_only=True))
    return other, loaded


def _by_deepcopy(model: Any, optimizer: Any, path: Path) -> tuple[Any, Any]:
    del path
    return copy.deepcopy((model, optimizer))


def _by_pickle(model: Any, optimizer: Any, path: Path) -> tuple[Any, Any]:
    del path
    return pickle.loads(pickle.dumps((model, optimizer)))  # type: ignore[no-any-return]


def _by_arrays(model: Any, optimizer: Any, path: Path) -> tuple[Any, Any]:
    emo_torch.save_arrays(path / "run", emo_torch.to_arrays(optimizer, model.named_parameters()))
    other = copy.deepcopy(model)
    loaded = _make("emo_sens", other)
    emo_torch.from_arrays(emo_torch.load_arrays(path / "run"), loaded, other.named_parameters())
    return other, loaded


WAYS: list[Callable[..., tuple[Any, Any]]] = [
    *(_by_state_dict, _by_checkpoint, _by_torch_save, _by_deepcopy, _by_pickle, _by_arrays)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_to_the_bit(
    way: Callable[..., tuple[Any, Any]], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = _model(dtype)
    optimizer = _make("emo_sens", model)
    _step(model, optimizer, 0)
    _step(model, optimizer, 1)
    other, loaded = way(model, optimizer, tmp_path)
    for number in (2, 3):
        _step(model, optimizer, number)
        _step(other, loaded, number)
    for key, param in model.items():
        assert torch.equal(param, other[key])
        ours, theirs = optimizer.state[param], loaded.state[other[key]]
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name


def test_a_step_can_be_compiled_in_one_graph() -> None:
    runs = []
    for is_compiled in (False, True):
        model = _model()
        param = model["large"]
        optimizer = emo_torch.EmoCats([param], moment_dtype="8bit", foreach=False)
        _step(model, optimizer, 0)  # Compiled from a state that is there: one program.
        loss = torch.tensor(1.0)
        step = lambda optimizer=optimizer, loss=loss: optimizer.step(loss=loss)
        (torch.compile(step, fullgraph=True, backend="eager") if is_compiled else step)()
        runs.append((param, optimizer.state[param]))
    (param, state), (other, others) = runs
    torch.testing.assert_close(param, other)
    assert torch.equal(state["exp_avg"], others["exp_avg"])
    torch.testing.assert_close(state["exp_avg_scale"], others["exp_avg_scale"])


def test_a_group_can_have_moments_of_its_own() -> None:
    model = _model()
    optimizer = emo_torch.EmoSens([model["small"]])
    optimizer.add_param_group({"params": [model["large"]], "moment_dtype": "8bit"})
    optimizer.add_param_group({"params": [model["flat"]], "moment_dtype": torch.bfloat16})
    _step(model, optimizer, 0)
    kinds = {key: optimizer.state[param]["exp_avg"].dtype for key, param in model.items()}
    assert kinds == {"large": torch.uint8, "flat": torch.bfloat16, "small": torch.float32}


def test_moments_keep_the_kind_that_they_were_saved_with() -> None:
    model, other = _model(), _model()
    wide, coded = emo_torch.EmoCats(model.parameters()), _make("emo_cats", other)
    _step(model, wide, 0)
    _step(other, coded, 0)
    coded.load_state_dict(wide.state_dict())
    assert coded.state[other["large"]]["exp_avg"].dtype == torch.float32
    wide.load_state_dict(_make("emo_cats", model).state_dict())
    _step(model, wide, 1)
    assert wide.state[model["large"]]["exp_avg"].dtype == torch.uint8


@pytest.mark.parametrize("name", REFUSED)
def test_a_rule_with_other_moments_refuses_8_bits(name: str) -> None:
    with pytest.raises(ValueError, match=f"'8bit' is not for {MEMBERS[name].make.__name__}. .*bfloat16"):
        _make(name, _model())


def test_sharded_parameters_are_refused() -> None:
    param = torch.nn.Parameter(torch.ones(8, 512))
    param.full_tensor = lambda: param  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match=r"does not support sharded parameters.*\(8, 512\) is sharded.*bfloat16"
    ):
        emo_torch.EmoCats([param], moment_dtype="8bit")


def _without_scale(state: dict[str, Tensor]) -> None:
    del state["exp_avg_scale"]


def _with_short_scale(state: dict[str, Tensor]) -> None:
    state["exp_avg_scale"] = state["exp_avg_scale"][1:]


def _with_codes_as_scale(state: dict[str, Tensor]) -> None:
    state["exp_avg_scale"] = state["exp_avg_scale"].to(torch.uint8)


def _with_codes_as_shadow(state: dict[str, Tensor]) -> None:
    state["shadow"] = torch.zeros(SHAPES["large"], dtype=torch.uint8)
    state["shadow_exists"] = torch.tensor(True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_scale, "needs .*exp_avg_scale"),
        (_with_short_scale, r"'exp_avg_scale' is \(16,\)"),
        (
            _with_codes_as_scale,
            r"'exp_avg_scale' has the dtype torch.uint8; it must be a floating-point dtype",
        ),
        (_with_codes_as_shadow, r"'shadow' has the dtype torch.uint8; it must be a floating-point dtype"),
    ],
)
def test_a_damaged_state_is_refused_before_anything_changes(
    damage: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    model = _model()
    optimizer = _make("emo_cats", model)
    _step(model, optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    damage(saved["state"][list(model).index("large")])
    before = copy.deepcopy(dict(optimizer.state[model["large"]]))
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert all(torch.equal(before[name], each) for name, each in optimizer.state[model["large"]].items())


def test_a_member_without_codes_refuses_a_state_in_codes() -> None:
    ours, theirs = _model(), _model()
    coded, factored = _make("emo_sens", ours), emo_torch.EmoAiry([theirs["flat"]])
    _step(ours, coded, 0)
    saved = emo_torch.EmoSens([ours["flat"]], moment_dtype="8bit").state_dict()
    with pytest.raises(ValueError, match="EmoSens saved it, and EmoAiry has another rule"):
        factored.load_state_dict(saved)
    del saved["emo_member"]  # As in a state of an earlier release.
    with pytest.raises(ValueError, match="'8bit' is not for EmoAiry"):
        factored.load_state_dict(saved)
    saved["state"] = {0: coded.state[ours["flat"]]}
    with pytest.raises(
        ValueError, match=r"'exp_avg' has the dtype torch.uint8; it must be a floating-point dtype"
    ):
        factored.load_state_dict(saved)


def _linear_encode(values: Tensor, table: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Returns codes of 256 values at equal distances; the size is a multiple of 256."""
    rows = values.reshape(-1, 256)
    scale = rows.abs().amax(dim=1).clamp(min=1e-30)
    shares = rows / scale[:, None]
    codes = 255.0 * shares if table == UNSIGNED else 127.0 * shares + 127.0
    return codes.round().to(torch.uint8).view(values.shape), scale


def _linear_decode(codes: Tensor, scale: Tensor, table: tuple[float, ...]) -> Tensor:
    rows = codes.reshape(-1, 256).float()
    shares = rows / 255.0 if table == UNSIGNED else (rows - 127.0) / 127.0
    return (shares * scale[:, None]).view(codes.shape)


def test_training_is_that_of_float32_moments_and_a_linear_code_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train(kept: str | None, **way: bool) -> float:
        draw = torch.Generator().manual_seed(0)
        sizes = 10.0 ** torch.linspace(-2.0, 1.0, 64)  # Gradients of many sizes in each block.
        inputs = torch.randn(256, 64, generator=draw) * sizes
        goal = torch.randn(64, 64, generator=draw) / sizes[:, None]
        weight = torch.nn.Parameter(torch.zeros(64, 64))
        make: Any = emo_torch.EmoSens
        optimizer = make([weight], lr=3e-3, weight_decay=0.0, moment_dtype=kept, **way)
        for _ in range(150):
            optimizer.zero_grad()
            loss = (inputs @ (weight - goal)).square().mean()
            loss.backward()
            optimizer.step(loss=loss.detach() / 64)
        return loss.item()

    wide, coded = train(None), train("8bit")
    monkeypatch.setattr(emo_torch._rules.eight_bit, "encode", _linear_encode)
    monkeypatch.setattr(emo_torch._rules.eight_bit, "decode", _linear_decode)
    naive = train("8bit", fused=False)  # Compiled code has codes of its own.
    assert abs(coded / wide - 1.0) < 0.01, (wide, coded, naive)
    assert not naive < 1.2 * wide, (wide, coded, naive)
