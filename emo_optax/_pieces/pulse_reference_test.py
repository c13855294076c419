"""v3.6.1 and v3.9.1 in plain NumPy and float64, written from the definition, for other tests."""

import math
from typing import Any

import numpy as np
import pytest

Tree = dict[str, Any]
THIRD = ("emo_sens3", "emo_airy3", "emo_cats3", "emo_tion", "emo_void")
OF_36 = ("emo_navi36", "emo_fact36", "emo_lynx36")


class Memory:
    """Averages, scalar and trust, the pulse and the drive, line by line."""

    def __init__(
        self,
        scope: float = 1.0,
        *,
        stopcoef: float = 0.04,
        steady: bool = False,
        spike_limit: float | None = None,
        loss_unit: Any = None,
        ceiling: float | None = None,
    ) -> None:
        self.scope, self.stopcoef, self.steady = scope, stopcoef, steady
        self.spike_limit, self.loss_unit, self.ceiling = spike_limit, loss_unit, ceiling
        self.felt = self.held = 0
        self.short = self.medium = self.long = self.first = self.s = self.k = 0.0
        self.h, self.n, self.q, self.trust, self.e = 1.0, 1.0, 0.02, 1.0, 1.0
        self.should_stop = self.has_stopped = False
        self.scalars: list[float] = []
        self.branches: set[str] = set()
        self.make_pulse()

    def make_pulse(self) -> None:
        most = 3e-3 * self.scope if self.ceiling is None else self.ceiling
        self.pulse = max(min(self.h * self.scope * max(100**self.k, 0.01) * 1e-4, most), 1e-8)
        self.branches |= {"ceiling"} if self.pulse == most else set()
        self.branches |= {"floor"} if self.pulse == 1e-8 else set()

    def feel(self, loss: float) -> None:
        if not np.isfinite(loss):
            self.held += 1
            self.make_pulse()
            return
        if self.felt and self.spike_limit is not None and self.short > 0:
            loss = min(loss, self.spike_limit * self.short)
        if self.felt == 0:
            self.short = self.medium = self.long = loss
        self.first = self.first or abs(loss)
        self.felt += 1
        self.short = 0.3 * loss + 0.7 * self.short
        self.medium = 0.05 * loss + 0.95 * self.medium
        self.long = 0.01 * loss + 0.99 * self.long
        unit = {None: 1.0, "first": self.first or 1.0}.get(self.loss_unit, self.loss_unit)
        base = max(self.long if self.loss_unit is None else abs(self.long), 1e-5 * unit)
        self.s = math.tanh((self.long - self.short) / base)
        size = abs(self.s)
        self.trust = math.copysign(1 - size, self.s)
        self.drive(size)
        self.n = 0.97 * self.n + 0.03 * size
        self.q = 0.97 * self.q + 0.03 * abs(self.trust)
        self.k = 0.7 * self.k + 0.3 * self.s
        x = ((abs(max(self.n, 1e-10) - self.q) + 0.1) / (abs(self.s - self.trust) + 0.1)) ** 2
        if x >= self.h and self.trust >= 0.5:
            self.branches.add("up" if x < 1.5 * self.h else "up by half")
            self.h = min(x, 1.5 * self.h)
        elif -0.5 <= self.trust <= 0.5:
            self.branches.add("settle")
            self.h = min(self.h, 0.8 * x) if self.steady and self.s < 0 else 0.8 * x
        else:
            self.branches.add("stay")
        self.make_pulse()
        is_flat = max(self.medium, 1e-5 * unit) <= self.stopcoef * unit
        self.should_stop = self.q - self.n >= 0.3 and is_flat

    def drive(self, size: float) -> None:
        self.e = 1.0
        if 0.25 < size < 0.5:
            self.e = 8 * abs(self.trust) * (1 + 0.1 * self.trust)
        elif size > 0.75:
            self.e = 1 - size
        self.branches.add("fast" if 0.25 < size < 0.5 else "slow" if size > 0.75 else "plain")
        self.scalars.append(self.s)
        window = np.asarray(self.scalars[-32:])
        if len(window) == 32 and np.abs(window).mean() < 0.05 and window.var() < 0.005:
            self.has_stopped = True


class Reference:
    """One member over a flat dictionary of NumPy arrays."""

    def __init__(
        self,
        member: str,
        params: Tree,
        learning_rate: float = 1.0,
        *,
        b1: float = 0.9,
        b2: float = 0.995,
        eps: float = 1e-8,
        weight_decay: float | None = None,
        weight_decay_mode: str = "decoupled",
        mask: dict[str, bool] | None = None,
        use_shadow: bool = False,
        **pulse: Any,
    ) -> None:
        self.member, self.learning_rate = member, learning_rate
        self.params = {name: np.array(param, np.float64) for name, param in params.items()}
        self.memory = Memory(learning_rate, **pulse)
        self.b1, self.b2, self.eps = b1, b2, eps
        has_none = member in ("emo_tion", "emo_void")
        self.decay = weight_decay if weight_decay is not None else 0.0 if has_none else 0.01
        self.mode, self.mask = weight_decay_mode, mask or dict.fromkeys(params, True)
        self.use_shadow = use_shadow
        self.shadow: Tree = {}
        self.m = {name: np.zeros_like(param) for name, param in self.params.items()}
        self.v = {name: np.zeros_like(param) for name, param in self.params.items()}
        self.norm: float | None = None
        self.counter, self.was_quiet = 0, False

    def step(self, grads: Tree, loss: float) -> None:
        self.memory.feel(float(loss))
        if self.member == "emo_void":
            self.hold_norm()
        share = self.fresh_share() if self.member == "emo_tion" else 0.0
        if self.use_shadow:
            self.blend()
        is_third = self.member in THIRD
        rate = self.memory.pulse if is_third else self.learning_rate
        factor = 1.0 if is_third else self.memory.e
        for name, p in self.params.items():
            g = np.asarray(grads[name], np.float64)
            decay = self.decay if self.mask[name] else 0.0
            if self.mode == "l2":
                g = g + decay * p
            else:
                p = p - (decay if self.mode == "absolute" else rate * decay) * p
            self.params[name] = p - rate * factor * self.direction(name, g, share)

    def direction(self, name: str, g: np.ndarray, share: float) -> np.ndarray:
        b1, b2, m = self.b1, self.b2, self.m[name]
        if self.member in ("emo_sens3", "emo_navi36"):
            self.m[name] = b1 * m + (1 - b1) * g
            self.v[name] = b2 * self.v[name] + (1 - b2) * g**2
            moments: np.ndarray = self.m[name] / (np.sqrt(self.v[name]) + self.eps)
            return moments
        if self.member in ("emo_cats3", "emo_lynx36"):
            self.m[name] = b2 * m + (1 - b2) * g
            return np.sign((1 - b1) * g + b1 * m)
        if self.member == "emo_tion":
            self.m[name] = (1 - share) * m + share * g
            return np.sign(self.m[name])
        return self.factored_sign(name, g)

    def factored_sign(self, name: str, g: np.ndarray) -> np.ndarray:
        """The sign as the published EmoAiry and EmoFact take it, averages included."""
        if self.member == "emo_void" or g.size == 0:
            sign: np.ndarray = np.sign(g)
            return sign
        is_fact, b = self.member == "emo_fact36", self.b2
        if g.ndim < 2:
            b, weight = (self.b1, 1 - self.b2) if is_fact else (self.b2, 1 - self.b2)
            self.v[name] = b * self.v[name] + weight * g**2
            return np.sign(g / (np.sqrt(self.v[name]) + self.eps))
        floor, b = (self.eps, self.b1) if is_fact else (0.0, self.b2)
        rows = np.mean(g**2, axis=tuple(range(1, g.ndim)), keepdims=True) + floor
        columns = np.mean(g**2, axis=0, keepdims=True) + floor
        if is_fact:
            rows, columns = np.sqrt(rows), np.sqrt(columns)
        self.m[name] = b * self.m[name] + (1 - b) * rows
        self.v[name] = b * self.v[name] + (1 - b) * columns
        return np.sign(g / (np.sqrt(self.m[name] * self.v[name]) + self.eps))

    def total(self) -> float:
        return float(sum(np.abs(p).sum() for p in self.params.values()))

    def fresh_share(self) -> float:
        total, fresh = self.total(), 1.0
        if self.norm is None:
            self.norm = total
        else:
            change = abs(total - self.norm) / (self.norm + 1e-8)
            fresh = max(math.tanh(change / 0.03), 1 - self.b1)
            self.norm = total * change
        return (1 - self.b1) * fresh

    def hold_norm(self) -> None:
        total = self.total()
        if self.norm is None:
            self.norm = total
        elif self.counter <= 55:
            ratio = self.norm / (total + 1e-8)
            self.params = {name: p * ratio for name, p in self.params.items()}
            self.norm = total * ratio
        else:
            self.norm = total
        self.counter += 1
        if self.memory.should_stop and not self.was_quiet:
            self.counter = 55
        self.was_quiet = self.memory.should_stop

    def blend(self) -> None:
        size, trust = abs(self.memory.s), abs(self.memory.trust)
        for name, p in self.params.items():
            shadow = self.shadow.setdefault(name, p.copy())
            if size > 0.625:
                self.params[name] = size * p + trust * shadow
            else:
                self.shadow[name] = shadow + 0.1 * trust * (p - shadow)


def spiky_losses(steps: int = 90) -> np.ndarray:
    """A falling loss with spikes both ways: it goes through every branch of pulse, drive and shadow."""
    t = np.arange(90)
    losses: np.ndarray = 0.3 + 2.0 * np.exp(-t / 12.0) + 0.02 * np.sin(1.7 * t)
    losses[[9, 20, 33, 34, 50, 60, 61, 75]] *= (1.8, 3.0, 6.0, 5.0, 1.4, 2.5, 2.0, 40.0)
    losses[[14, 27, 55, 56, 57, 58]] *= 0.05
    return losses[:steps]


def test_the_losses_go_through_every_branch() -> None:
    memory = Memory()
    for loss in spiky_losses():
        memory.feel(loss)
    ways = {"up", "up by half", "settle", "stay", "fast", "slow", "plain", "ceiling"}
    assert memory.branches == ways
    sizes, signs = np.abs(memory.scalars), np.sign(memory.scalars)
    assert {(size > 0.625, sign) for size, sign in zip(sizes, signs, strict=True) if sign} == {
        (far, sign) for far in (False, True) for sign in (-1.0, 1.0)
    }


def test_two_steps_made_by_hand() -> None:
    reference = Reference("emo_cats3", {"p": 1.0}, weight_decay=0.5)
    reference.step({"p": 2.0}, 1.0)  # n = 0.97, q = 0.0494: x = (1.0206 / 1.1)^2 < 1, and h stays at 1
    assert reference.params["p"] == pytest.approx(1.0 - 1e-4 * 0.5 - 1e-4, abs=1e-15)
    reference.step({"p": -9.0}, 0.5)  # 0.1 * -9 + 0.9 * 0.01 < 0; s = tanh(0.145 / 0.995)
    assert reference.memory.s == pytest.approx(math.tanh(0.145 / 0.995), abs=1e-15)
    assert reference.params["p"] > 1.0 - 1.5e-4
