"""The members of v3.6.1 and v3.9.1 in the ways that optimizers are used in."""

import copy
import io
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch

THIRD: dict[str, Callable[..., Any]] = {
    "EmoSens3": emo_torch.EmoSens3,
    "EmoAiry3": emo_torch.EmoAiry3,
    "EmoCats3": emo_torch.EmoCats3,
    "EmoTion": emo_torch.EmoTion,
    "EmoVoid": emo_torch.EmoVoid,
}
OF_36: dict[str, Callable[..., Any]] = {
    "EmoNavi36": emo_torch.EmoNavi36,
    "EmoFact36": emo_torch.EmoFact36,
    "EmoLynx36": emo_torch.EmoLynx36,
}
LATER = {**THIRD, **OF_36}
every_member = pytest.mark.parametrize("name", LATER)
third_only = pytest.mark.parametrize("name", THIRD)
LOSSES = (2.0, 1.0, float("nan"), 5.0, 0.3, 0.3, 4.0, 0.2)


def make(name: str, params: Any, **options: Any) -> Any:
    return LATER[name](params, **{"lr": 20.0 if name in THIRD else 2e-3, **options})


def make_params(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((), (5,), (3, 4), (2, 3, 2))
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def run(optimizer: Any, losses: Any = LOSSES) -> None:
    for index, loss in enumerate(losses):
        generator = torch.Generator().manual_seed(index)
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.requires_grad:
                    param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step(loss=loss)


def values(params: list[torch.nn.Parameter]) -> list[Tensor]:
    return [param.detach().clone() for param in params]


def assert_equal(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@every_member
@pytest.mark.parametrize("options", [{}, {"use_shadow": True}, {"weight_decay_mode": "l2"}], ids=str)
@pytest.mark.parametrize("way", [{"foreach": True}, {"fused": True}], ids=["foreach", "fused"])
def test_all_ways_take_the_same_steps(name: str, options: dict[str, Any], way: dict[str, Any]) -> None:
    ends = []
    for chosen in ({"foreach": False}, way):
        params = make_params(torch.float64)
        run(make(name, params, **options, **chosen))
        ends.append(values(params))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)


@every_member
def test_a_saved_run_goes_on_as_if_it_had_not_stopped(name: str) -> None:
    for rounding in ("nearest", "kahan", "stochastic"):
        whole, half = make_params(torch.bfloat16), make_params(torch.bfloat16)
        one = make(name, whole, use_shadow=True, rounding=rounding)
        run(one, LOSSES)
        other = make(name, half, use_shadow=True, rounding=rounding)
        run(other, LOSSES[:4])
        file = io.BytesIO()
        torch.save(other.state_dict(), file)
        file.seek(0)
        again = make(name, half, use_shadow=True, rounding=rounding)
        again.load_state_dict(torch.load(file, weights_only=True))
        again = copy.deepcopy(again)
        params = [param for group in again.param_groups for param in group["params"]]
        for index, loss in list(enumerate(LOSSES))[4:]:
            generator = torch.Generator().manual_seed(index)
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            again.step(loss=loss)
        assert_equal(values(params), values(whole))
        names = [key for key in one.param_groups[0] if key.startswith(("pulse_", "emotion_"))]
        assert len(names) > 10
        assert_equal(*([each.param_groups[0][key] for key in names] for each in (one, again)))


@every_member
def test_a_state_of_another_member_or_a_damaged_one_is_refused(name: str) -> None:
    params = make_params()
    optimizer = make(name, params)
    run(optimizer)
    saved = optimizer.state_dict()
    memory = next(key for key in saved["param_groups"][0] if key.endswith("_short"))
    for wrong in (float("nan"), torch.ones(3)):
        broken = copy.deepcopy(saved)
        broken["param_groups"][0][memory] = wrong
        with pytest.raises(ValueError, match=memory):
            optimizer.load_state_dict(broken)
    other = emo_torch.EmoZeal(params)
    run(other)
    with pytest.raises(ValueError, match=r"lacks a part of the|another kind"):
        optimizer.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("name", "foreach"),
    [
        *((name, True) for name in LATER),
        # One member of each rule; the steps of one tensor are those of the second generation, too.
        *((name, False) for name in ("EmoAiry3", "EmoCats3", "EmoTion", "EmoNavi36")),
    ],
)
def test_a_step_compiles_to_one_graph(name: str, foreach: bool) -> None:
    plain, compiled = make_params(), make_params()
    ours = make(name, plain, foreach=foreach, use_shadow=True)
    theirs = make(name, compiled, foreach=foreach, use_shadow=True)
    run(ours, LOSSES[:1])
    run(theirs, LOSSES[:1])
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def step(loss: Tensor) -> None:
        theirs.step(loss=loss)

    for number in (3.0, 0.5, 1.0):
        ours.step(loss=torch.tensor(number))
        step(torch.tensor(number))
    for one, other in zip(values(plain), values(compiled), strict=True):
        # A tracer takes `addcmul_` apart, whose last bit may differ.
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@third_only
def test_the_scope_belongs_to_a_group_and_is_never_overwritten(name: str) -> None:
    params = make_params()
    tensor = torch.tensor(3.0)
    groups = [{"params": params[:2], "lr": tensor}, {"params": params[2:], "lr": 30.0}]
    optimizer = make(name, groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(3):
        before = values(params)
        run(optimizer, [1.0])
        rate = float(optimizer.pulse.pulse)
        assert rate == pytest.approx(3e-4 * 0.5**step, rel=1e-4)
        assert float(optimizer.param_groups[0]["lr"]) == 3.0 * 0.5**step
        assert optimizer.param_groups[1]["lr"] == 30.0 * 0.5**step
        assert float(optimizer.rate_of(optimizer.param_groups[1])) == pytest.approx(10 * rate, rel=1e-5)
        if name == "EmoAiry3":
            moved = [(old - new).abs() for old, new in zip(before, values(params), strict=True)]
            torch.testing.assert_close(moved[1], torch.full((5,), rate), rtol=1e-3, atol=1e-7)
            torch.testing.assert_close(moved[2], torch.full((3, 4), 10 * rate), rtol=1e-3, atol=1e-7)
        schedule.step()
    metrics = emo_torch.get_metrics(optimizer)
    assert metrics["pulse/pulse/1"] == pytest.approx(10 * metrics["pulse/pulse/0"], rel=1e-5)


@third_only
def test_the_stop_signal_is_not_latched_and_logged_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="emo_torch"):
        optimizer = make(name, make_params(), notify=True)
        seen = []
        for loss in [0.01] * 60 + [1.0] + [0.01] * 110:
            run(optimizer, [loss])
            seen.append(optimizer.should_stop)
    assert not seen[0]
    assert seen[59]
    assert not seen[60]
    assert seen[-1]
    assert [record.name for record in caplog.records] == ["emo_torch"]
    assert name in caplog.text


@pytest.mark.parametrize("name", ["EmoTion", "EmoVoid"])
def test_frozen_parameters_are_left_alone_and_count_for_nothing(name: str) -> None:
    params, alone = make_params(), make_params()
    frozen = torch.nn.Parameter(torch.full((50,), 40.0), requires_grad=False)
    run(make(name, [*params, frozen]))
    run(make(name, alone))
    assert_equal(values(params), values(alone))
    assert bool((frozen == 40.0).all())


@pytest.mark.parametrize("name", ["EmoTion", "EmoVoid"])
def test_the_norm_is_that_of_all_groups(name: str) -> None:
    params, alone = make_params(), make_params()
    run(make(name, [{"params": params[:2]}, {"params": params[2:]}]))
    run(make(name, alone))
    assert_equal(values(params), values(alone))


def test_void_holds_the_sum_of_the_norms_at_first() -> None:
    params = make_params(torch.float64)
    optimizer = make("EmoVoid", params)
    norms = []
    for step in range(60):
        norms.append(float(emo_torch.sum_of_norms(params)))  # type: ignore[arg-type]
        if step > 0:
            # Behind the scaling alone the sum is that of the first step.
            kept = float(optimizer.param_groups[0]["pulse_norm_kept"])
            assert kept == pytest.approx(norms[0], rel=1e-6)
        run(optimizer, [1.0 + 0.3 * (step % 2)])
    assert int(optimizer.param_groups[0]["pulse_norm_counter"]) == 56
    assert norms[-1] != pytest.approx(norms[0], rel=1e-6)


@pytest.mark.parametrize("foreach", [False, True])
def test_void_holds_the_sum_of_the_step_at_which_the_stop_signal_rose(foreach: bool) -> None:
    params = make_params(torch.float64)
    optimizer = make("EmoVoid", params, foreach=foreach)
    scaled, stops = [], []
    for loss in [0.01] * 60 + [1.0] + [0.01] * 110:
        before = float(emo_torch.sum_of_norms(params))  # type: ignore[arg-type]
        run(optimizer, [loss])
        rate = float(optimizer.pulse.pulse)
        undone = [param.detach() + rate * param.grad.sign() for param in params if param.grad is not None]
        scaled.append((before, float(emo_torch.sum_of_norms(undone))))
        stops.append(optimizer.should_stop)
    rises = [step for step in range(1, len(stops)) if stops[step] and not stops[step - 1]]
    assert len(rises) == 3
    late = [step for step in range(57, len(stops)) if abs(scaled[step][0] - scaled[step][1]) > 1e-6]
    assert late == [rise + 1 for rise in rises[1:]]
    for step in late:
        assert scaled[step][1] == pytest.approx(scaled[step - 1][0], rel=1e-9)


def test_tion_sums_the_norms_before_the_shadow_pulls() -> None:
    params = make_params(torch.float64)
    optimizer = make("EmoTion", params, use_shadow=True)
    run(optimizer, [1.0] * 3)
    before, kept = float(emo_torch.sum_of_norms(params)), float(optimizer.norm_tensors()["kept"])  # type: ignore[arg-type]
    run(optimizer, [9.0])
    assert float(optimizer.pulse.shadow_ratio) > 0.0
    expected = before * abs(before - kept) / (kept + 1e-8)
    assert float(optimizer.norm_tensors()["kept"]) == pytest.approx(expected, rel=1e-12)


def test_the_sum_is_taken_wide() -> None:
    params = [torch.full((4096,), 1.0, dtype=torch.bfloat16), torch.full((1,), 0.5, dtype=torch.bfloat16)]
    assert float(emo_torch.sum_of_norms(params)) == 4096.5
    assert emo_torch.sum_of_norms([*params, torch.ones(1, dtype=torch.float64)]).dtype == torch.float64


@every_member
def test_options_out_of_their_range_are_refused(name: str) -> None:
    wrong: dict[str, Any] = {"lr": -1.0, "betas": (1.0, 0.9), "eps": -1.0, "weight_decay_mode": "no"}
    if name in THIRD:
        wrong |= {"stopcoef": -1.0, "steady": 1, "spike_limit": 1.0, "loss_unit": 0.0, "notify": "yes"}
    for option, value in wrong.items():
        with pytest.raises((ValueError, TypeError), match=r"(?i)invalid"):
            make(name, make_params(), **{option: value})
    if name in THIRD:
        with pytest.raises(ValueError, match="loss_unit"):
            make(name, make_params(), loss_unit="last")
        with pytest.raises(ValueError, match="stopcoef belongs to the one pulse"):
            make(name, [{"params": make_params(), "stopcoef": 0.3}])


@every_member
def test_metrics_show_the_memory(name: str) -> None:
    params = make_params()
    optimizer = make(name, params, use_shadow=True)
    run(optimizer)
    metrics = emo_torch.get_metrics(optimizer)
    if name in THIRD:
        assert metrics == {f"pulse/{key}": float(value) for key, value in optimizer.pulse._asdict().items()}
        assert (metrics["pulse/felt"], metrics["pulse/held"]) == (7.0, 1.0)
    else:
        drive = optimizer.drive
        assert metrics["emotion/drive"] == float(drive.drive)
        assert metrics["emotion/learning_rate"] == pytest.approx(2e-3 * float(drive.drive))
        assert "emotion/masked_share" not in metrics
    assert metrics.keys() == emo_torch.get_metrics(optimizer, as_floats=False).keys()


@every_member
def test_a_missing_loss_is_an_error_and_a_loss_that_is_not_finite_is_held(name: str) -> None:
    params = make_params()
    optimizer = make(name, params)
    run(optimizer, [1.0])
    before = values(params)
    with pytest.raises(emo_torch.LossMissingError):
        optimizer.step()
    assert_equal(values(params), before)
    run(optimizer, [float("inf")])
    memory = optimizer.pulse if name in THIRD else optimizer.drive
    assert (int(memory.felt), int(memory.held)) == (1, 1)
    assert all(bool(torch.isfinite(field)) for field in memory)
