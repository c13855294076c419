"""RefAdamWMiniScheduleFree against its definition, and at its edges."""

import copy
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import emo_torch

Array = np.ndarray[Any, np.dtype[Any]]
Ref = emo_torch.RefAdamWMiniScheduleFree
SHAPES = [(3, 4), (5,), ()]
LOSSES = [1.0, 0.9, 1.2, 1.9, 4.5, 1.0, float("nan"), 1.3, 1.7, 2.2, 2.9, 3.0, 1.0, float("inf"), 0.5, 1.2]


class Reference:
    """The optimizer as the definition says it, in NumPy's float64 and with branches."""

    def __init__(self, params: list[Array], **options: Any) -> None:
        self.o: dict[str, Any] = {
            "lr": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "min_lr": 1e-6,
            "max_lr": 1e-2, "schedulefree_alpha": 0.05, "ref_alpha": 0.5, "ref_max_steps": None,
            "injection_bound": 0.1, "weight_decay_mode": "decoupled", **options,
        }  # fmt: skip
        self.params = [param.copy() for param in params]
        self.m = [np.zeros_like(param) for param in params]
        self.v = [np.zeros_like(param) for param in params]
        self.e: list[float | None] = [None for _ in params]
        self.steps = self.counter = self.level = self.improvements = self.runs = 0
        self.previous: float | None = None
        self.vals: list[float] = []
        self.suppressed = False

    def _watch(self, loss: float | None, val_loss: float | None) -> float | None:
        """Returns how much is injected, or `None`."""
        length = self.o["ref_max_steps"]
        if val_loss is not None and math.isfinite(val_loss):
            self.vals.append(val_loss)
            last = self.vals[-4:]
            patience = min(20, max(10, math.floor(1e-4 * (length or 1000))))
            if len(last) == 4 and last[0] < last[1] < last[2] < last[3]:
                self.suppressed, self.improvements, self.runs = True, 0, 0
            elif self.suppressed and last[-1] < last[-2]:
                self.improvements += 1
                if self.improvements == patience:
                    self.improvements, self.runs = 0, self.runs + 1
                if self.runs == patience:
                    self.suppressed, self.runs = False, 0
            else:
                self.improvements = 0
        if loss is None or not math.isfinite(loss):
            return None
        self.level = 0
        if self.previous is not None:
            ratio = loss / (self.previous + 1e-8)
            self.level = 3 if ratio > 2 else 2 if ratio > 1.5 else 1 if ratio > 1.2 else 0
        self.counter = self.counter + 1 if self.level else 0
        self.previous = loss
        progress = 0.5 if length is None else self.steps / length
        if self.suppressed or not 0.2 <= progress <= 0.8:
            return None
        if self.level == 3 or self.counter >= 3:
            return 1.0
        if self.level == 2 or self.counter == 2:
            return 0.8
        return 0.6 if self.level == 1 or self.counter == 1 else float(self.o["ref_alpha"])

    def step(self, grads: list[Array], loss: float | None, val_loss: float | None = None) -> None:
        o = self.o
        self.steps += 1
        share = self._watch(loss, val_loss)
        for i, grad in enumerate(grads):
            p, decay = self.params[i], o["weight_decay"]
            g = grad + decay * p if o["weight_decay_mode"] == "l2" else grad
            norm = float(np.sqrt(np.sum(g**2)))
            if not math.isfinite(norm):
                continue
            before = self.e[i]
            e = norm if before is None else (1 - o["schedulefree_alpha"]) * before
            e += 0.0 if before is None else o["schedulefree_alpha"] * norm
            self.e[i] = e
            self.m[i] = o["b1"] * self.m[i] + (1 - o["b1"]) * g
            self.v[i] = o["b2"] * self.v[i] + (1 - o["b2"]) * g**2
            lr = max(min(o["max_lr"], o["lr"] * e / (norm + 1e-12)), o["min_lr"])
            step = np.zeros_like(p)
            moving = self.v[i] > 0
            step[moving] = lr * self.m[i][moving] / (np.sqrt(self.v[i][moving]) + o["eps"])
            if o["weight_decay_mode"] != "l2":
                step += decay * p * (lr if o["weight_decay_mode"] == "decoupled" else 1.0)
            self.params[i] = p - step
            if share is not None:
                injected = self.params[i]
                if o["injection_bound"] is not None:
                    bound = o["injection_bound"] * np.sqrt(self.v[i])
                    injected = np.clip(injected, -bound, bound)
                self.m[i] = (1 - share) * self.m[i] + share * injected


def draw(seed: int = 0) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.normal(size=shape) for shape in SHAPES]


def tensors(arrays: list[Array], dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(array).to(dtype)) for array in arrays]


def give(params: list[torch.nn.Parameter], grads: list[Array]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = torch.tensor(grad).to(param.dtype)


def everything(optimizer: Any) -> list[Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    moments = [tensor for param in params for tensor in optimizer.state[param].values()]
    return [tensor.detach().clone() for tensor in (*params, *moments, *optimizer.divergence)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"ref_max_steps": 30},
    {"ref_alpha": 0.0, "ref_max_steps": 12, "injection_bound": None},
    {"injection_bound": 0.7, "schedulefree_alpha": 0.5, "min_lr": 9e-4, "max_lr": 1.1e-3},
    {"weight_decay_mode": "absolute"},
    {"weight_decay_mode": "l2", "weight_decay": 0.3, "eps": 1e-3},
]


@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_does_what_the_definition_says(options: dict[str, Any], foreach: bool) -> None:
    params = tensors(draw())
    reference, optimizer = Reference(draw(), **options), Ref(params, foreach=foreach, **options)
    levels = set()
    for step in range(40):
        grads = [(10.0 ** (step % 3 - 1)) * grad for grad in draw(step + 1)]
        grads[0][0] = 0.0  # Never used: v stays 0 there, unless L2 decay moves it.
        if step % 7 == 3:
            grads[1][:] = 0.0
        if step % 9 == 4:
            grads[1][2] = np.nan
        loss = None if step % 13 == 2 else LOSSES[step % len(LOSSES)]
        give(params, grads)
        optimizer.step(loss=loss)
        reference.step(grads, loss)
        levels.add(reference.level)
        for param, expected in zip(params, reference.params, strict=True):
            np.testing.assert_allclose(param.detach(), expected, rtol=1e-11, atol=1e-12)
        for param, m, v in zip(params, reference.m, reference.v, strict=True):
            np.testing.assert_allclose(optimizer.state[param]["exp_avg"], m, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(optimizer.state[param]["exp_avg_sq"], v, rtol=1e-11)
        assert int(optimizer.divergence.level) == reference.level
        assert int(optimizer.divergence.diverging) == reference.counter
    assert levels == {0, 1, 2, 3}


def test_overfitting_suppresses_the_injection_until_it_has_long_improved() -> None:
    vals = [1.0, 0.9, 1.0, 1.1, float("nan"), 1.05, 1.1, 1.2, 1.3, *np.linspace(1.2, 1.0, 95), 1.1]
    vals += [1.2, 1.15, *np.linspace(1.1, 0.1, 104), 0.2, 0.3, 0.4, 0.3]
    weight = tensors(draw()[:1])
    optimizer, reference = Ref(weight), Reference(draw()[:1])
    seen = []
    for step, val in enumerate(vals):
        grads = draw(step)[:1]
        give(weight, grads)
        optimizer.step(loss=1.0, val_loss=val)
        reference.step(grads, 1.0, val)
        seen.append(bool(optimizer.divergence.suppressed))
        assert seen[-1] == reference.suppressed, step
        assert bool(optimizer.divergence.injects) != reference.suppressed
        np.testing.assert_allclose(weight[0].detach(), reference.params[0], rtol=1e-11, atol=1e-12)
    changes = [step for step in range(1, len(seen)) if seen[step] != seen[step - 1]]
    assert len(changes) == 3  # Suppressed, let go, suppressed again.


@pytest.mark.parametrize("given", [float("nan"), float("inf"), None])
def test_a_step_without_a_finite_loss_does_not_inject_and_feels_nothing(given: float | None) -> None:
    ours, theirs = tensors(draw()), tensors(draw())
    one, other = Ref(ours), Ref(theirs)
    for step, loss in enumerate((1.0, given, 1.1)):
        for params, optimizer in ((ours, one), (theirs, other)):
            give(params, draw(step))
            if optimizer is one:
                optimizer.step(loss=loss, val_loss=loss)
            else:
                optimizer.step(loss=None if step == 1 else loss, val_loss=None if step == 1 else loss)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert one.divergence.previous == other.divergence.previous == pytest.approx(1.1)
    assert int(one.divergence.held) == (0 if given is None else 2)
    assert int(one.divergence.felt) == 2
    assert int(one.divergence.steps) == 3


def test_a_closure_may_return_no_loss() -> None:
    (weight,) = tensors(draw()[1:2])
    optimizer = Ref([weight])

    def closure() -> None:
        weight.grad = weight.detach().clone()

    before = weight.detach().clone()
    assert optimizer.step(closure) is None
    assert not torch.equal(weight, before)
    assert optimizer.step(closure, loss=2.0) is None
    assert optimizer.divergence.previous == 2.0
    assert bool(optimizer.divergence.injects)


@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_a_gradient_without_a_finite_norm_leaves_its_tensor_alone(bad: float, foreach: bool) -> None:
    params = tensors(draw())
    optimizer = Ref(params, foreach=foreach)
    give(params, draw(1))
    optimizer.step(loss=1.0)
    before = [param.detach().clone() for param in params]
    state = {name: tensor.clone() for name, tensor in optimizer.state[params[0]].items()}
    grads = draw(2)
    grads[0][:] = bad
    give(params, grads)
    optimizer.step(loss=1.0)
    assert torch.equal(params[0], before[0])
    assert not torch.equal(params[1], before[1])
    assert all(torch.equal(state[name], optimizer.state[params[0]][name]) for name in state)
    give(params, draw(3))
    optimizer.step(loss=1.0)
    assert not torch.equal(params[0], before[0])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in everything(optimizer))


@pytest.mark.parametrize("bound", [0.1, None])
def test_zero_gradients_move_nothing_but_decay(bound: float | None) -> None:
    params = tensors(draw())
    optimizer = Ref(params, weight_decay=0.0, injection_bound=bound)
    for _ in range(5):
        give(params, [np.zeros(shape) for shape in SHAPES])
        optimizer.step(loss=1.0)
    assert all(np.array_equal(param.detach(), array) for param, array in zip(params, draw(), strict=True))


@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize("kept", [torch.float16, torch.bfloat16])
def test_moments_of_low_precision_stay_finite_and_near(kept: torch.dtype, foreach: bool) -> None:
    narrow, wide = tensors(draw(), torch.float32), tensors(draw(), torch.float32)
    ours, theirs = Ref(narrow, moment_dtype=kept, foreach=foreach), Ref(wide, foreach=foreach)
    for step in range(30):
        # Sizes whose squares float16 does not have, above and below; a step of nothing between.
        size = (5e-3, 1e-6, 0.0, 1.0)[step % 4]
        for params, optimizer in ((narrow, ours), (wide, theirs)):
            give(params, [size * grad for grad in draw(step)])
            optimizer.step(loss=1.0)
    assert {ours.state[narrow[0]][name].dtype for name in ("exp_avg", "exp_avg_sq")} == {kept}
    for a, b in zip(narrow, wide, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.05)
    give(narrow, [3e4 * grad for grad in draw(1)])
    ours.step(loss=1.0)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in everything(ours))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters_move_as_wide_ones(dtype: torch.dtype) -> None:
    narrow = tensors(draw(), dtype)
    wide = [torch.nn.Parameter(param.detach().float()) for param in narrow]
    ours, theirs = Ref(narrow, lr=1e-2, max_lr=0.1), Ref(wide, lr=1e-2, max_lr=0.1)
    for step in range(10):
        for params, optimizer in ((narrow, ours), (wide, theirs)):
            give(params, [grad.astype(np.float16) for grad in draw(step)])
            optimizer.step(loss=1.0)
    for a, b in zip(narrow, wide, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.02, atol=0.02)
    assert ours.state[narrow[0]]["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize("stop", np.random.default_rng(0).integers(0, 30, size=4).tolist())
def test_goes_on_bit_for_bit(stop: int, foreach: bool) -> None:
    def build() -> tuple[list[torch.nn.Parameter], Any]:
        params = tensors(draw(), torch.float32)
        groups: list[dict[str, Any]] = [{"params": params[:1], "ref_alpha": 0.2}, {"params": params[1:]}]
        return params, Ref(groups, ref_max_steps=30, foreach=foreach)

    def train(params: list[torch.nn.Parameter], optimizer: Any, first: int, last: int) -> None:
        for step in range(first, last):
            give(params, draw(step))
            optimizer.step(loss=LOSSES[step % len(LOSSES)], val_loss=float(step % 5))

    params, whole = build()
    train(params, whole, 0, stop)
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    buffer.seek(0)
    twins, loaded = build()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    copies = [copy.deepcopy((params, whole)), pickle.loads(pickle.dumps((params, whole)))]
    with torch.no_grad():
        for twin, param in zip(twins, params, strict=True):
            twin.copy_(param)
    train(params, whole, stop, 30)
    for their_params, optimizer in ((twins, loaded), *copies):
        train(their_params, optimizer, stop, 30)
        assert same(everything(optimizer), everything(whole))
        assert (
            optimizer.param_groups[0]["divergence_level"] is optimizer.param_groups[1]["divergence_level"]
        )


def test_the_state_of_another_kind_is_refused() -> None:
    (weight,) = tensors(draw()[1:2])
    weight.grad = torch.ones_like(weight)
    ref = Ref([weight])
    ref.step(loss=1.0)
    others: list[Any] = [torch.optim.AdamW([weight]), emo_torch.EmoSens([weight])]
    others[0].step()
    others[1].step(loss=1.0)
    for other in others:
        before = everything(ref)
        with pytest.raises(ValueError, match="another kind of optimizer's"):
            ref.load_state_dict(other.state_dict())
        assert same(everything(ref), before)
    with pytest.raises(ValueError, match="another kind of optimizer's"):
        emo_torch.EmoSens([weight]).load_state_dict(ref.state_dict())
    damaged = ref.state_dict()
    del damaged["param_groups"][0]["divergence_level"]
    with pytest.raises(ValueError, match="lacks a part of the divergence: divergence_level"):
        ref.load_state_dict(damaged)


def test_it_has_no_emotion_and_shows_no_tensors_of_its_own() -> None:
    (weight,) = tensors(draw()[1:2])
    optimizer = Ref([weight])
    assert not hasattr(optimizer, "emotion")
    assert "divergence" not in repr(optimizer)
    optimizer.divergence.steps.add_(5)
    assert int(optimizer.divergence.steps) == 0


def test_going_up_is_going_down_the_negated_problem() -> None:
    up, down = tensors(draw()), tensors(draw())
    ours, theirs = Ref(up, maximize=True), Ref(down)
    for step in range(8):
        give(up, [-grad for grad in draw(step)])
        give(down, draw(step))
        ours.step(loss=-LOSSES[step], val_loss=-LOSSES[step])
        theirs.step(loss=LOSSES[step], val_loss=LOSSES[step])
    assert same(everything(ours), everything(theirs))


def test_a_gradient_scaler_skips_what_overflows_and_hands_on_both_losses() -> None:
    (weight,) = tensors([np.full(4, 0.5)], torch.float32)
    optimizer, scaler = Ref([weight]), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    steps = []
    for _ in range(12):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = torch.nn.functional.linear(4.0 * torch.ones(3, 4), weight[None]).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer, loss=loss.detach(), val_loss=loss.detach())
        scaler.update()
        steps.append(int(optimizer.divergence.steps))
    assert steps[0] == 0
    assert steps[-1] > 0
    assert optimizer.divergence.val_felt == steps[-1]
    assert bool(torch.isfinite(weight).all())
