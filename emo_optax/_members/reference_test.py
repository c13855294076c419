"""The second generation in plain NumPy and float64, written from the definition, for other tests."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

Tree = dict[str, Any]

SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "one": (1,),
    "vector": (3,),
    "nothing": (0,),
    "single": (1, 1),
    "matrix": (4, 3),
    "empty": (0, 3),
    "cube": (2, 3, 2),
    "tensor": (2, 1, 3, 2),
}
SOME = ("vector", "matrix")
"""For tests that do not depend on shapes: XLA compiles each array of a step separately."""


class Reference:
    """One optimizer over a flat dictionary of NumPy arrays; `step` is the definition, line by line."""

    def __init__(
        self,
        member: str,
        params: Tree,
        *,
        learning_rate: Any = 1e-3,
        b1: float = 0.9,
        b2: float | None = None,
        eps: float = 1e-8,
        weight_decay: Any = 0.01,
        mask: dict[str, bool] | None = None,
        decoupled_weight_decay: bool = False,
        use_shadow: bool = False,
        shadow_ratio: str | Callable[[float], float] = "v2.0",
        shadow_rate: float = 0.05,
        theta: float = 1e-4,
        short_factor: float = 0.3,
        long_factor: float = 0.01,
        gain: float = 5.0,
        weight_decay_mode: str = "decoupled",
    ) -> None:
        self.member = member
        self.params = {name: np.array(param, np.float64) for name, param in params.items()}
        self.learning_rate = learning_rate if callable(learning_rate) else lambda _: learning_rate
        self.weight_decay = weight_decay if callable(weight_decay) else lambda _: weight_decay
        self.divisor = self.learning_rate(0) if decoupled_weight_decay else 1.0
        self.b1 = b1
        self.b2 = b2 if b2 is not None else {"emo_cats": 0.99}.get(member, 0.999)
        self.eps = eps
        self.mask = mask if mask is not None else dict.fromkeys(params, True)
        self.use_shadow, self.shadow_ratio, self.shadow_rate = use_shadow, shadow_ratio, shadow_rate
        self.theta, self.gain, self.mode = theta, gain, weight_decay_mode
        self.short_factor, self.long_factor = short_factor, long_factor
        self.steps = self.felt = self.held = 0
        self.short = self.long = self.scalar = self.ratio = 0.0
        self.scalars: list[float] = []
        self.should_stop = False
        self.shadow: Tree = {}
        # Two moments, or a row and a column factor; the momentum of emo_cats is the first.
        self.first = {name: np.zeros_like(param) for name, param in self.params.items()}
        self.second = {name: np.zeros_like(param) for name, param in self.params.items()}
        if member == "emo_airy":
            for name, param in self.params.items():
                if param.ndim > 1:
                    self.first[name] = np.zeros((param.shape[0],) + (1,) * (param.ndim - 1))
                    self.second[name] = np.zeros((1, *param.shape[1:]))

    def feel(self, loss: float) -> None:
        if not np.isfinite(loss):
            self.held += 1
            return
        if self.felt == 0:
            self.short = self.long = loss
        self.short = self.short_factor * loss + (1 - self.short_factor) * self.short
        self.long = self.long_factor * loss + (1 - self.long_factor) * self.long
        self.scalar = float(np.tanh(self.gain * (self.short - self.long)))
        self.felt += 1
        self.scalars.append(self.scalar)
        window = np.asarray(self.scalars[-32:])
        if len(window) == 32 and np.abs(window).mean() < 0.05 and window.var() < 0.005:
            self.should_stop = True

    def wanted_ratio(self) -> float:
        s = self.scalar
        if callable(self.shadow_ratio):
            return float(self.shadow_ratio(s))
        if self.shadow_ratio == "v2.0":
            return abs(s) if abs(s) > 0.1 else 0.0
        if s > 0.6:
            return 0.7 + 0.2 * s
        if s < -0.6:
            return 0.1
        return 0.3 if abs(s) > 0.3 else 0.0

    def step(self, grads: Tree, loss: float) -> None:
        self.feel(float(loss))
        eta = float(self.learning_rate(self.steps))
        decay = float(self.weight_decay(self.steps)) / float(self.divisor)
        ratio = self.wanted_ratio() if self.use_shadow else 0.0
        self.ratio = ratio if self.shadow else 0.0
        is_new = ratio > 0 and not self.shadow
        for name, p in self.params.items():
            g = np.asarray(grads[name], np.float64)
            if is_new:
                self.shadow[name] = p.copy()
            elif ratio > 0:
                p = (1 - ratio) * p + ratio * self.shadow[name]
                self.shadow[name] = self.shadow[name] + self.shadow_rate * (p - self.shadow[name])
            if self.mask[name] and self.mode == "l2":
                g = g + decay * p
            elif self.mask[name]:
                p = p - (decay if self.mode == "absolute" else eta * decay) * p
            self.params[name] = p - eta * (1 - abs(self.scalar)) * self.direction(name, g)
        self.steps += 1

    def direction(self, name: str, g: np.ndarray) -> np.ndarray:
        tolerance = self.theta * (1 + abs(self.scalar))
        b1, b2, eps = self.b1, self.b2, self.eps
        first, second = self.first[name], self.second[name]
        if g.size == 0:
            return np.zeros_like(g)
        if self.member == "emo_cats":
            u = np.sign((1 - b1) * g + b1 * first)
            self.first[name] = b2 * first + (1 - b2) * g
            return np.where(np.cbrt(np.abs(g)) >= tolerance, u, 0.0)
        if self.member == "emo_sens" or g.ndim < 2:
            self.first[name] = b1 * first + (1 - b1) * g
            self.second[name] = b2 * second + (1 - b2) * g**2
            u = self.first[name] / (np.sqrt(self.second[name]) + eps)
            if self.member == "emo_sens":
                return np.where(np.cbrt(np.abs(g)) >= tolerance, u, 0.0)
            return np.where(np.cbrt(g**2) > tolerance, u, 0.0)
        rows = np.stack([np.mean(row**2) for row in g]).reshape(first.shape) + eps
        columns = (np.sum(g**2, 0) / g.shape[0]).reshape(second.shape) + eps
        self.first[name] = b1 * first + (1 - b1) * np.sqrt(rows)
        self.second[name] = b1 * second + (1 - b1) * np.sqrt(columns)
        u = g / (np.sqrt(self.first[name] * self.second[name]) + eps)
        kept: np.ndarray = np.where((np.cbrt(rows) > tolerance) & (np.cbrt(columns) > tolerance), u, 0.0)
        return kept


def spiky_losses(steps: int = 60) -> np.ndarray:
    """A falling loss with spikes both ways; its scalars pass through every branch of both ratios."""
    t = np.arange(60)
    losses: np.ndarray = 1.0 - 0.003 * t + 0.08 * np.sin(1.7 * t)
    losses[[7, 8, 23, 41]] += (0.5, 0.8, 2.0, 0.35)
    losses[[14, 33, 34, 52]] -= (0.5, 0.6, 0.8, 0.2)
    return losses[:steps]


def make_params(seed: int = 0, names: Iterable[str] = SHAPES) -> Tree:
    random = np.random.default_rng(seed)
    tree = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
    return {name: tree[name] for name in names}


def make_grads(steps: int = 60, seed: int = 1, names: Iterable[str] = SHAPES) -> list[Tree]:
    """Gradients of many sizes: most of size 1, some of 1e-2, 1e-13 and 0, single or whole rows."""
    random = np.random.default_rng(seed)
    sizes = (1.0, 1.0, 1.0, 0.3, 1e-2, 1e-13, 0.0)
    grads = []
    for _ in range(steps):
        tree = {
            name: random.normal(size=shape) * random.choice(sizes, shape) for name, shape in SHAPES.items()
        }
        tree["matrix"][random.integers(4)] *= random.choice(sizes)
        tree["cube"][:, random.integers(3)] *= random.choice(sizes)
        grads.append({name: tree[name] for name in names})
    return grads


def find_in_state(state: Any, kind: type) -> Any:
    """Returns the first node of a kind, wherever it stands in a state."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return next(node for node in nodes if isinstance(node, kind))


def run_steps(
    optimizer: Any, params: Tree, grads: list[Tree], losses: np.ndarray
) -> tuple[Tree, Any, emo_optax.Emotion]:
    """Runs an optimizer in one scan: the parameters after every step, the last state, every emotion."""

    def step(carry: tuple[Any, Any], inputs: tuple[Any, Any]) -> tuple[Any, Any]:
        params, state = carry
        updates, state = optimizer.update(inputs[0], state, params, value=inputs[1])
        params = optax.apply_updates(params, updates)
        return (params, state), (params, emo_optax.get_emotion(state))

    def run(params: Any, grads: Any, losses: Any) -> Any:
        (_, state), (all_params, emotions) = jax.lax.scan(
            step, (params, optimizer.init(params)), (grads, losses)
        )
        return all_params, state, emotions

    result: tuple[Tree, Any, emo_optax.Emotion] = jax.jit(run)(
        jax.tree.map(jnp.asarray, params),
        jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *grads),
        jnp.asarray(losses),
    )
    return jax.tree.map(np.asarray, result[0]), result[1], result[2]


def test_reference_repeats_two_steps_of_emo_sens_made_by_hand() -> None:
    reference = Reference("emo_sens", {"p": 1.0}, learning_rate=0.1, weight_decay=0.5, eps=0.0)
    reference.step({"p": 2.0}, 1.0)  # m = 0.2, v = 0.004, s = 0: p = 0.95 - 0.1 * 3.1623
    assert reference.params["p"] == pytest.approx(0.95 - 0.1 * 10**0.5, abs=1e-15)
    before = float(reference.params["p"])
    reference.step({"p": 0.0}, 1.1)  # short = 1.03, long = 1.001; a gradient of 0 is stopped
    assert reference.scalar == pytest.approx(np.tanh(0.145), abs=1e-15)
    assert reference.params["p"] == pytest.approx(0.95 * before, abs=1e-15)


def test_losses_pass_through_every_branch_of_both_shadow_ratios() -> None:
    reference = Reference("emo_sens", {})
    for loss in spiky_losses():
        reference.feel(loss)
    s = np.asarray(reference.scalars)
    branches = (s > 0.6, s < -0.6, (s > 0.3) & (s < 0.6), (s < -0.3) & (s > -0.6), abs(s) < 0.1)
    assert [int(branch.sum()) > 1 for branch in branches] == [True] * 5
    assert np.sum((abs(s) > 0.1) & (abs(s) < 0.3)) > 1
