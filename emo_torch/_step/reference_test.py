"""The three optimizers of the second generation in plain NumPy, for tests."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import emo_torch

Array = np.ndarray[Any, np.dtype[Any]]
Options = dict[str, Any]

FAMILY: dict[str, Callable[..., emo_torch.EmoOptimizer]] = {
    "EmoSens": emo_torch.EmoSens,
    "EmoAiry": emo_torch.EmoAiry,
    "EmoCats": emo_torch.EmoCats,
}
STEPS = 60
CLOSE = 1e-12


def ratio_v2(s: float) -> float:
    return abs(s) if abs(s) > 0.1 else 0.0


def ratio_v1(s: float) -> float:
    if s > 0.6:
        return 0.7 + 0.2 * s
    if s < -0.6:
        return 0.1
    return 0.3 if abs(s) > 0.3 else 0.0


def half_of_what_rises(s: Any) -> Any:
    """A ratio that a user could write, for numbers and for tensors."""
    return 0.5 * s * (s > 0)


RATIOS = {"v2.0": ratio_v2, "v1.0": ratio_v1}


class Reference:
    """A whole optimizer by its definition, one element and one branch at a time."""

    def __init__(self, rule: str, groups: list[tuple[list[Array], Options]], **shared: Any) -> None:
        self.rule = rule
        self.options: Options = {
            "lr": 1e-3,
            "betas": (0.9, 0.99) if rule == "EmoCats" else (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.01,
            "weight_decay_mode": "decoupled",
            "decoupled_weight_decay": False,
            "use_shadow": False,
            "shadow_ratio": "v2.0",
            "shadow_rate": 0.05,
            "theta": 1e-4,
            "short_factor": 0.3,
            "long_factor": 0.01,
            "gain": 5.0,
            "maximize": False,
            **shared,
        }
        self.options["lr"] = float(self.options["lr"])
        self.groups = [(params, {**self.options, **own}) for params, own in groups]
        self.moments: dict[tuple[int, int], dict[str, Any]] = {}
        self.short = self.long = self.scalar = self.shadow_ratio = 0.0
        self.scalars: list[float] = []
        self.held = 0
        self.should_stop = self.shadow_exists = False
        self.stopped = self.moved = 0

    def step(self, grads: list[list[Array | None]], loss: float) -> None:
        if self.options["maximize"]:
            loss = -loss
        self._feel(loss)
        ratio_of = self.options["shadow_ratio"]
        ratio = (RATIOS[ratio_of] if isinstance(ratio_of, str) else ratio_of)(self.scalar)
        if any(options["use_shadow"] for _, options in self.groups):
            self.shadow_ratio = ratio if self.shadow_exists else 0.0
            self.shadow_exists = self.shadow_exists or ratio > 0.0
        for i, (params, options) in enumerate(self.groups):
            for j, grad in enumerate(grads[i]):
                if grad is not None:
                    params[j] = self._move(i, j, params[j], grad, options, ratio)

    def _feel(self, loss: float) -> None:
        if not math.isfinite(loss):
            self.held += 1
            return
        if not self.scalars:
            self.short = self.long = loss
        a, b = self.options["short_factor"], self.options["long_factor"]
        self.short = a * loss + (1 - a) * self.short
        self.long = b * loss + (1 - b) * self.long
        self.scalar = math.tanh(self.options["gain"] * (self.short - self.long))
        self.scalars.append(self.scalar)
        last = np.array(self.scalars[-32:])
        if len(last) == 32 and np.mean(np.abs(last)) < 0.05 and np.var(last) < 0.005:
            self.should_stop = True

    def _move(self, i: int, j: int, p: Array, g: Array, options: Options, ratio: float) -> Array:
        state = self.moments.setdefault((i, j), self._fresh(p))
        eta, wd, mode = options["lr"], options["weight_decay"], options["weight_decay_mode"]
        if options["maximize"]:
            g = -g
        if options["use_shadow"]:
            state.setdefault("shadow_exists", False)
            state.setdefault("shadow", np.zeros_like(p))
            if ratio > 0 and not state["shadow_exists"]:
                state["shadow"], state["shadow_exists"] = p, True
            elif ratio > 0:
                p = (1 - ratio) * p + ratio * state["shadow"]
                state["shadow"] = state["shadow"] + options["shadow_rate"] * (p - state["shadow"])
        if mode == "l2":
            g = g + wd * p
        elif mode == "absolute":
            p = p - wd * p
        else:
            over = self.options["lr"] if options["decoupled_weight_decay"] else 1.0
            p = p - eta * wd / over * p
        update, keep = self._rule(state, g, options)
        self.stopped += int(np.sum(~keep))
        self.moved += int(np.sum(keep))
        return np.asarray(p - eta * (1 - abs(self.scalar)) * np.where(keep, update, 0.0))

    def _fresh(self, p: Array) -> dict[str, Any]:
        if self.rule == "EmoCats":
            return {"exp_avg": np.zeros_like(p)}
        if self.rule == "EmoAiry" and p.ndim >= 2:
            return {
                "row": np.zeros((p.shape[0],) + (1,) * (p.ndim - 1)),
                "column": np.zeros((1, *p.shape[1:])),
            }
        return {"exp_avg": np.zeros_like(p), "exp_avg_sq": np.zeros_like(p)}

    def _rule(self, state: dict[str, Any], g: Array, options: Options) -> tuple[Array, Array]:
        (b1, b2), eps = options["betas"], options["eps"]
        bound = options["theta"] * (1 + abs(self.scalar))
        if self.rule == "EmoCats":
            update = np.sign((1 - b1) * g + b1 * state["exp_avg"])
            state["exp_avg"] = b2 * state["exp_avg"] + (1 - b2) * g
            return update, np.cbrt(np.abs(g)) >= bound
        if "row" in state:
            if g.size == 0:
                return g, np.ones_like(g, dtype=bool)
            row = np.empty_like(state["row"])
            for index in range(g.shape[0]):
                row[index] = np.mean(g[index] ** 2) + eps
            column = np.mean([part**2 for part in g], axis=0)[None] + eps
            state["row"] = b1 * state["row"] + (1 - b1) * np.sqrt(row)
            state["column"] = b1 * state["column"] + (1 - b1) * np.sqrt(column)
            keep = (np.cbrt(row) > bound) & (np.cbrt(column) > bound)
            return g / (np.sqrt(state["row"] * state["column"]) + eps), keep
        state["exp_avg"] = b1 * state["exp_avg"] + (1 - b1) * g
        state["exp_avg_sq"] = b2 * state["exp_avg_sq"] + (1 - b2) * g**2
        update = state["exp_avg"] / (np.sqrt(state["exp_avg_sq"]) + eps)
        if self.rule == "EmoAiry":
            return update, np.cbrt(g**2) > bound
        return update, np.cbrt(np.abs(g)) >= bound


def spiky_losses(seed: int = 0) -> list[float]:
    """Losses that fall, stay the same and jump; one loss is NaN."""
    noise = np.random.default_rng(seed).normal(size=STEPS)
    losses = [1.0 + 0.1 * math.exp(-step / 6) + 0.01 * noise[step] for step in range(STEPS)]
    spikes = {9: 0.15, 14: 0.3, 20: 0.5, 28: 1.0, 40: -0.6, 41: -0.6, 50: 60.0, 55: -4.0}
    for step, spike in spikes.items():
        losses[step] += spike
    losses[30] = math.nan
    return [float(loss) for loss in losses]


SHAPES: tuple[tuple[int, ...], ...] = (
    *((), (1,), (5,), (0,), (4, 3), (1, 4), (3, 1), (1, 1), (0, 3), (3, 0)),
    *((2, 3, 2), (1, 2, 1), (2, 3, 2, 2)),
)


def make_params(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Parameters of many shapes and layouts: one is transposed, one is channels last."""
    params = [torch.tensor(rng.normal(size=shape)) for shape in shapes]
    params.append(torch.tensor(rng.normal(size=(3, 4))).t())
    image = torch.tensor(rng.normal(size=(2, 3, 2, 2))).to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(param) for param in (*params, image)]


def make_grads(rng: np.random.Generator, params: Sequence[Tensor], step: int) -> list[Array | None]:
    """Gradients of very different sizes, with zeros; some gradients are missing."""
    grads: list[Array | None] = []
    for index, param in enumerate(params):
        grad = np.asarray(rng.normal(size=param.shape) * 10.0 ** rng.uniform(-2, 1))
        grad = np.where(rng.random(size=param.shape) < 0.2, 0.0, grad)
        if param.ndim >= 2 and step % 3 == 0 and grad.size:
            grad[rng.integers(grad.shape[0])] *= 1e-3
        grads.append(None if (step + index) % 11 == 5 else np.asarray(grad))
    return grads


def set_grad(param: Tensor, grad: Array | None, step: int) -> None:
    """Gives a parameter its gradient; at every second step in another layout than the parameter's."""
    if grad is None:
        param.grad = None
        return
    tensor = torch.tensor(grad, dtype=param.dtype)
    if step % 2 and param.ndim == 2:
        tensor = tensor.t().contiguous().t()
    param.grad = tensor


def assert_close(ours: Tensor, theirs: Any, name: str) -> None:
    array, expected = ours.detach().numpy(), np.asarray(theirs)
    assert array.shape == expected.shape, name
    if array.size:  # NumPy's own assertion takes too long for some ten thousand calls.
        excess = np.abs(array * 1.0 - expected * 1.0) - CLOSE * (1.0 + np.abs(expected))
        assert float(np.max(excess)) <= 0.0, name


def assert_same(optimizer: emo_torch.EmoOptimizer, reference: Reference) -> None:
    """Compares all parameters and states of an optimizer with the reference."""
    for i, (group, (params, _)) in enumerate(zip(optimizer.param_groups, reference.groups, strict=True)):
        for j, (ours, theirs) in enumerate(zip(group["params"], params, strict=True)):
            assert_close(ours, theirs, f"parameter {i}, {j}")
            expected = reference.moments.get((i, j), {})
            state = optimizer.state.get(ours, {})
            assert state.keys() == expected.keys()
            for name, value in state.items():
                assert_close(value, expected[name], f"{name} {i}, {j}")
            assert all(value.dtype == torch.bool for name, value in state.items() if "exists" in name)
        history = torch.stack([group[f"emotion_history_{index:02d}"] for index in range(32)])
        assert_close(history, ([0.0] * 32 + reference.scalars)[-32:], "history")
    emotion = optimizer.emotion
    for name in ("short", "long", "scalar", "shadow_ratio"):
        assert_close(getattr(emotion, name), getattr(reference, name), name)
    assert_close(emotion.step_scale, 1 - abs(reference.scalar), "step_scale")
    assert (int(emotion.felt), int(emotion.held)) == (len(reference.scalars), reference.held)
    assert optimizer.should_stop == reference.should_stop


def run(
    name: str,
    options: Options,
    *,
    own: Sequence[Options] = ({},),
    losses: list[float] | None = None,
) -> Reference:
    """Runs the reference and both ways to step, and compares their parameters and states at many steps."""
    rng = np.random.default_rng(7)
    start = [make_params(rng, SHAPES[index:]) for index in range(len(own))]
    twin = [
        ([np.array(param.detach().numpy()) for param in params], dict(extra))
        for params, extra in zip(start, own, strict=True)
    ]
    reference = Reference(name, twin, **options)
    optimizers = [
        FAMILY[name](
            [{"params": clone(params), **extra} for params, extra in zip(start, own, strict=True)],
            **options,
            foreach=foreach,
        )
        for foreach in (False, True)
    ]
    losses = spiky_losses() if losses is None else losses
    for step, loss in enumerate(losses):
        grads = [make_grads(rng, params, step) for params in start]
        reference.step(grads, loss)
        for optimizer in optimizers:
            for group, news in zip(optimizer.param_groups, grads, strict=True):
                for param, grad in zip(group["params"], news, strict=True):
                    set_grad(param, grad, step)
            optimizer.step(loss=loss)
            if step < 3 or step % 7 == 0 or step + 1 == len(losses):
                assert_same(optimizer, reference)
    return reference


def clone(params: Sequence[Tensor]) -> list[Tensor]:
    """Copies parameters in their own layout."""
    copies: list[Tensor] = [torch.nn.Parameter(param.detach().clone()) for param in params]
    assert all(copy.stride() == param.stride() for copy, param in zip(copies, params, strict=True))
    return copies
