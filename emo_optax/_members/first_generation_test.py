"""The first generation: its rules against NumPy, and its pieces alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.emo_clan import choose_rule as clan_rule
from emo_optax._members.emo_neco import choose_rule as neco_rule
from emo_optax._members.emo_zeal import choose_first_step
from emo_optax._pieces.weight_decay import WeightDecayMode
from emo_optax._rules.switch import select_by_emotion

MEMBERS: dict[str, Callable[..., Any]] = {
    name: getattr(emo_optax, name)
    for name in ("emo_navi", "emo_fact", "emo_lynx", "emo_clan", "emo_neco", "emo_zeal")
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
    "emo_clan": (_clan, 3),
    "emo_neco": (_neco, 2),
    "emo_zeal": (_zeal, 3),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_follows_the_formulas(name: str) -> None:
    step, branches = REFERENCES[name]
    losses = _losses(80)
    start, grads = _problem(80)
    with jax.enable_x64(True):
        optimizer = MEMBERS[name](LR, weight_decay=DECAY)
        params: Any = jax.tree.map(jnp.asarray, start)
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        expected, own = dict(start), {key: Reference(value) for key, value in start.items()}
        short = long = losses[0]
        taken = set()
        for loss, grad in zip(losses, grads, strict=True):
            short, long = 0.3 * loss + 0.7 * short, 0.01 * loss + 0.99 * long
            size = abs(np.tanh(5.0 * (short - long)))
            for key in expected:
                expected[key], branch = step(size, expected[key], grad[key], own[key])
                taken.add(branch)
            updates, state = update(jax.tree.map(jnp.asarray, grad), state, params, value=loss)
            params = optax.apply_updates(params, updates)
            for key, value in params.items():
                np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-12, err_msg=key)
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
    with jax.enable_x64(True):
        assert {size: int(choose(jnp.asarray(size, jnp.float64))) for size in expected} == expected


@pytest.mark.parametrize("name", MEMBERS)
def test_compiles_once_and_scans(name: str) -> None:
    losses = jnp.asarray(_losses(40), jnp.float32).at[7].set(jnp.nan)
    start, grads = _problem(40)
    stacked = {key: jnp.asarray(np.stack([g[key] for g in grads]), jnp.float32) for key in start}
    params = {key: jnp.asarray(value, jnp.float32) for key, value in start.items()}
    optimizer = MEMBERS[name](LR, use_shadow=True)
    traces = 0

    def step(carry: Any, given: Any) -> tuple[Any, jax.Array]:
        nonlocal traces
        traces += 1
        params, state = carry
        grad, loss = given
        updates, state = optimizer.update(grad, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), loss

    scanned, _ = jax.lax.scan(step, (params, optimizer.init(params)), (stacked, losses))
    traces = 0
    jitted = jax.jit(step)
    carry = (params, optimizer.init(params))
    for index in range(40):
        given = ({key: value[index] for key, value in stacked.items()}, losses[index])
        carry, _ = jitted(carry, given)
    assert traces == 1
    for one, other in zip(jax.tree.leaves(carry), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert np.all(np.isfinite(one))
    assert emo_optax.get_emotion(carry[1]).held == 1


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_state_is_shaped_from_shapes_alone(name: str, dtype: Any) -> None:
    optimizer = MEMBERS[name](LR, use_shadow=True)
    params = {"matrix": jnp.ones((3, 4), dtype), "scalar": jnp.ones((), dtype)}
    shapes = jax.eval_shape(lambda: params)
    state = optimizer.init(params)
    outlined = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), optimizer.init(shapes))
    assert outlined == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    updates, moved = jax.eval_shape(lambda: optimizer.update(params, state, params, value=1.0))
    assert outlined == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), moved)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(updates))


def test_only_the_chosen_rule_of_a_switch_moves() -> None:
    rules = (optax.trace(0.9), optax.trace(0.5))
    piece = emo_optax.share_emotion(
        emo_optax.switch_by_emotion(rules, lambda s: (s > 0.5).astype(jnp.int32))
    )
    params = jnp.zeros(2)
    state = piece.init(params)
    moved = []
    for loss in (1.0, 1.0, 3.0, float("nan")):
        before = state.inner_state.states
        updates, state = piece.update(jnp.ones(2), state, params, value=loss)
        after = state.inner_state.states
        pairs = zip(before, after, strict=True)
        moved.append([bool(jnp.any(one.trace != other.trace)) for one, other in pairs])
    assert moved == [[True, False], [True, False], [False, True], [False, True]]
    np.testing.assert_allclose(updates, [1.5, 1.5])


@pytest.mark.parametrize("one_state", [False, True])
def test_selecting_among_rules_is_switching_between_them(one_state: bool) -> None:
    together = (emo_optax.scale_by_cautious_sign(), emo_optax.scale_by_softsign())
    apart = (
        emo_optax.scale_by_uncorrected_adam(),
        emo_optax.scale_by_factored_moments(),
        emo_optax.scale_by_lion(),
    )
    rules, choose = (together, neco_rule) if one_state else (apart, clan_rule)
    selecting = emo_optax.share_emotion(select_by_emotion(rules, choose, one_state=one_state))
    switching = emo_optax.share_emotion(emo_optax.switch_by_emotion(rules, choose, one_state=one_state))
    start, grads = _problem(40)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), start)
    states: list[Any] = [selecting.init(params), switching.init(params)]
    steps = [jax.jit(piece.update) for piece in (selecting, switching)]
    assert str(jax.tree.structure(states[0])) == str(jax.tree.structure(states[1]))
    rested = 0
    for loss, grad in zip(_losses(40), grads, strict=True):
        before, updates = jax.tree.leaves(states[0].inner_state), []
        for index, step in enumerate(steps):
            grad32 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), grad)
            update, states[index] = step(grad32, states[index], params, value=loss)
            updates.append(update)
        for one, other in zip(
            *(jax.tree.leaves(pair) for pair in zip(updates, states, strict=True)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        after = jax.tree.leaves(states[0].inner_state)
        rested += sum(bool(jnp.all(a == b)) for a, b in zip(before, after, strict=True))
    assert (rested == 0) == one_state


def test_a_switch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one rule"):
        emo_optax.switch_by_emotion((), lambda s: s)


def test_a_shared_switch_without_an_emotion_says_so() -> None:
    piece = emo_optax.switch_by_emotion((optax.identity(),), lambda s: 0 * s)
    with pytest.raises(emo_optax.EmotionMissingError):
        piece.update(jnp.ones(1), piece.init(jnp.ones(1)))


def test_what_follows_a_first_step_sees_the_moved_parameters() -> None:
    optimizer = emo_optax.step_first(optax.sgd(0.5), optax.add_decayed_weights(-0.1))
    params = jnp.asarray([1.0])
    updates, _ = optimizer.update(jnp.ones(1), optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.5 + 1.0 - 0.1 * 0.5], rtol=1e-6)
    with pytest.raises(ValueError, match="params"):
        optimizer.update(jnp.ones(1), optimizer.init(params))


@pytest.mark.parametrize("rule", [emo_optax.scale_by_cautious_sign, emo_optax.scale_by_softsign])
def test_without_a_momentum_none_is_kept(rule: Callable[..., Any]) -> None:
    gradient = jnp.asarray([3.0, -2.0, 0.0])
    lasting, none = rule(0.9, 0.99), rule(0.9, None)
    first, _ = lasting.update(gradient, lasting.init(gradient))
    state = none.init(gradient)
    assert not jax.tree.leaves(state)
    for _ in range(2):
        updates, state = none.update(gradient, state)
        np.testing.assert_array_equal(updates, first)


@pytest.mark.parametrize("name", ["emo_navi", "emo_lynx"])
def test_a_schedule_drives_the_step(name: str) -> None:
    params = jnp.ones((2, 2))
    schedule = optax.piecewise_constant_schedule(1e-2, {1: 0.0})
    optimizer = MEMBERS[name](schedule)
    state = optimizer.init(params)
    moves = []
    for _ in range(2):
        updates, state = optimizer.update(params, state, params, value=1.0)
        moves.append(bool(jnp.any(updates != 0)))
    assert moves == [True, False]


def test_both_steps_of_zeal_follow_the_schedule() -> None:
    params = jnp.ones((2, 2))
    optimizer = emo_optax.emo_zeal(optax.piecewise_constant_schedule(1e-2, {2: 0.0}))
    state = optimizer.init(params)
    for loss, still in ((3.0, False), (1.0, False), (1.0, True)):
        updates, state = optimizer.update(params, state, params, value=loss)
        assert bool(jnp.all(updates == 0)) is still


def test_l2_decay_is_the_gradients_own_for_both_steps_of_zeal() -> None:
    ends = []
    with jax.enable_x64(True):
        decays: dict[WeightDecayMode, float] = {"l2": 0.1, "decoupled": 0.0}
        for mode, decay in decays.items():
            optimizer = emo_optax.emo_zeal(0.1, weight_decay=decay, weight_decay_mode=mode)
            params = jnp.full((2, 3), 2.0)
            state, update = optimizer.init(params), jax.jit(optimizer.update)
            for loss in (1.0, 1.2, 3.0):
                grads = jnp.full((2, 3), 0.01) + (0.1 * params if mode == "decoupled" else 0.0)
                updates, state = update(grads, state, params, value=loss)
                params = params + updates
            ends.append(params)
        np.testing.assert_allclose(ends[0], ends[1], rtol=0.0, atol=1e-12)
