"""The three members against plain NumPy in float64, over 60 steps of spiky losses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.reference_test import (
    SHAPES,
    SOME,
    Reference,
    Tree,
    find_in_state,
    make_grads,
    make_params,
    run_steps,
    spiky_losses,
)

MEMBERS = ("emo_sens", "emo_airy", "emo_cats")
MASK = {name: name not in ("one", "matrix", "tensor") for name in make_params()}


def _is_small(params: Any) -> Any:
    return jax.tree.map(lambda p: np.size(p) < 12, params)


def _halving(step: Any) -> Any:
    return 0.1 * 0.5 ** (0.05 * step)


def _rising(step: Any) -> Any:
    return 0.02 + 0.003 * step


def _gaps(losses: np.ndarray) -> np.ndarray:
    losses = losses.copy()
    losses[[0, 20, 21, 45]] = np.nan, np.inf, -np.inf, np.nan
    return losses


# Options that both sides take alike; `mask` is named where it has two forms.
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "shadow": {"learning_rate": 0.05, "use_shadow": True, "weight_decay": 0.3},
    "shadow of v1.0, absolute decay by a schedule": {
        "learning_rate": 0.02,
        "use_shadow": True,
        "shadow_ratio": "v1.0",
        "weight_decay": _rising,
        "weight_decay_mode": "absolute",
    },
    "shadow of a function, L2 with a mask": {
        "learning_rate": _halving,
        "use_shadow": True,
        "shadow_ratio": lambda s: 0.25 * s * s,
        "shadow_rate": 0.35,
        "weight_decay": 0.2,
        "weight_decay_mode": "l2",
        "mask": MASK,
    },
    "schedules, decoupled with a mask": {"learning_rate": _halving, "weight_decay": _rising, "mask": MASK},
    "other numbers": {
        "learning_rate": 0.03,
        "b1": 0.7,
        "b2": 0.8,
        "eps": 1e-3,
        "weight_decay": 0.4,
        "theta": 0.55,
        "short_factor": 0.6,
        "long_factor": 0.04,
        "gain": 1.3,
    },
    "theta that bites, absolute decay with a mask": {
        "learning_rate": 0.1,
        "theta": 0.4,
        "weight_decay": 0.05,
        "weight_decay_mode": "absolute",
        "mask": MASK,
        "use_shadow": True,
        "shadow_rate": 1.0,
    },
    "L2 under a theta that bites": {
        "learning_rate": 0.05,
        "theta": 0.6,
        "weight_decay": _rising,
        "weight_decay_mode": "l2",
    },
    "gaps in the loss": {"learning_rate": 0.05, "use_shadow": True, "gain": 2.0},
}
CATS_CASES: dict[str, dict[str, Any]] = {
    "divided decay": {"learning_rate": 0.2, "decoupled_weight_decay": True, "weight_decay": 0.03},
    "decay divided by a schedule's first value": {
        "learning_rate": _halving,
        "decoupled_weight_decay": True,
        "weight_decay": _rising,
        "mask": MASK,
    },
}


def _compare(got: Any, expected: Any, what: str) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-12, atol=1e-12, err_msg=what)


def _check_moments(member: str, state: Any, reference: Reference) -> None:
    if member == "emo_cats":
        trees = [(find_in_state(state, emo_optax.ScaleByLionState).mu, reference.first)]
    elif member == "emo_airy":  # For a vector its moments, in the place of row and column.
        factors = find_in_state(state, emo_optax.ScaleByFactorsState)
        trees = [(factors.row, reference.first), (factors.column, reference.second)]
    else:
        adam = find_in_state(state, emo_optax.ScaleByUncorrectedAdamState)
        trees = [(adam.mu, reference.first), (adam.nu, reference.second)]
    compared = set()
    for tree, expected in trees:
        for name, leaf in tree.items():
            if isinstance(leaf, jax.Array):
                _compare(leaf, expected[name], f"moment of {name}")
                compared.add(name)
    assert compared == set(reference.params)


@pytest.mark.parametrize(
    ("member", "case"),
    [(member, case) for member in MEMBERS for case in CASES] + [("emo_cats", case) for case in CATS_CASES],
)
def test_member_and_its_state_follow_the_definition(member: str, case: str) -> None:
    options = {**CASES, **CATS_CASES}[case]
    losses = _gaps(spiky_losses()) if case == "gaps in the loss" else spiky_losses()
    names = SHAPES if case in ("defaults", "shadow") else SOME
    params, grads = make_params(names=names), make_grads(names=names)
    mask = options.get("mask")
    if mask is not None:
        options = {**options, "mask": {name: mask[name] for name in names}}
    reference = Reference(member, params, **options)
    expected: list[Tree] = []
    ratios = []
    for tree, loss in zip(grads, losses, strict=True):
        reference.step(tree, loss)
        expected.append(dict(reference.params))
        ratios.append(reference.ratio)

    with jax.enable_x64(True):
        optimizer = getattr(emo_optax, member)(**options)
        got, state, emotions = run_steps(optimizer, params, grads, losses)
    for name in params:
        _compare(got[name], np.stack([tree[name] for tree in expected]), name)
    felt = find_in_state(state, emo_optax.EmotionState)
    assert (int(felt.felt), int(felt.held)) == (reference.felt, reference.held)
    assert bool(felt.should_stop) == reference.should_stop
    _compare(felt.short, reference.short, "short")
    _compare(felt.long, reference.long, "long")
    _compare(felt.scalar, reference.scalar, "scalar")
    _compare(felt.history, reference.scalars[-32:], "history")
    _compare(emotions.shadow_ratio, ratios, "shadow ratio")
    _compare(emotions.step_scale[-1], 1 - abs(reference.scalar), "step scale")
    _check_moments(member, state, reference)
    if reference.use_shadow:
        blend = find_in_state(state, emo_optax.BlendWithShadowState)
        assert bool(blend.exists)
        for name, shadow in reference.shadow.items():
            _compare(blend.shadow[name], shadow, f"shadow of {name}")


@pytest.mark.parametrize("mode", ["decoupled", "l2"])
def test_mask_may_be_a_function_of_the_parameters(mode: str) -> None:
    params, grads = make_params(names=SOME), make_grads(5, names=SOME)
    mask = _is_small(params)
    assert set(mask.values()) == {True, False}
    options: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.3, "weight_decay_mode": mode}
    reference = Reference("emo_cats", params, mask=mask, **options)
    for tree, loss in zip(grads, spiky_losses(), strict=False):
        reference.step(tree, loss)
    with jax.enable_x64(True):
        got, _, _ = run_steps(emo_optax.emo_cats(mask=_is_small, **options), params, grads, spiky_losses(5))
    for name in params:
        _compare(got[name][-1], reference.params[name], name)


@pytest.mark.parametrize("member", MEMBERS)
def test_member_in_float32_stays_near_the_definition(member: str) -> None:
    params, grads = make_params(names=SOME), make_grads(20, names=SOME)
    reference = Reference(member, params, learning_rate=1e-2)
    for tree, loss in zip(grads, spiky_losses(), strict=False):
        reference.step(tree, loss)
    got, _, _ = run_steps(getattr(emo_optax, member)(1e-2), params, grads, spiky_losses(20))
    for name in params:
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(
            got[name][-1], reference.params[name], rtol=2e-5, atol=2e-5, err_msg=name
        )


@pytest.mark.parametrize("member", MEMBERS)
def test_hyperparameters_stand_in_the_same_order_as_those_of_optax(member: str) -> None:
    optimizer = getattr(emo_optax, member)(0.1, 0.5, 0.6, 1e-3, 0.2, None)
    by_name = getattr(emo_optax, member)(
        learning_rate=0.1, b1=0.5, b2=0.6, eps=1e-3, weight_decay=0.2, mask=None
    )
    params = jnp.asarray([[1.0, -2.0]])
    results = []
    for each in (optimizer, by_name):
        state = each.init(params)
        for loss in (1.0, 1.2):
            updates, state = each.update(params + loss, state, params, value=loss)
        results.append(np.asarray(updates))
    np.testing.assert_array_equal(results[0], results[1])


def test_emo_cats_steps_by_a_sign_and_leaves_eps_aside() -> None:
    params = jnp.zeros(3)
    optimizer = emo_optax.emo_cats(0.5, eps=7.0)
    updates, _ = optimizer.update(jnp.asarray([3.0, 0.0, -1e-3]), optimizer.init(params), params, value=2.0)
    np.testing.assert_array_equal(updates, [-0.5, 0.0, 0.5])


@pytest.mark.parametrize("member", MEMBERS)
def test_a_learning_rate_of_zero_moves_nothing(member: str) -> None:
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    optimizer = getattr(emo_optax, member)(0.0)
    updates, _ = optimizer.update(params, optimizer.init(params), params, value=2.0)
    assert all(not np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(updates))


def test_emo_cats_refuses_a_divided_decay_in_another_mode() -> None:
    for mode in ("absolute", "l2"):
        with pytest.raises(ValueError, match=f"do not pass it with weight_decay_mode='{mode}'"):
            emo_optax.emo_cats(decoupled_weight_decay=True, weight_decay_mode=mode)


def test_emo_cats_refuses_to_divide_decay_by_a_learning_rate_of_zero() -> None:
    for learning_rate in (0.0, 0, optax.linear_schedule(0.0, 1.0, 5)):
        with pytest.raises(ValueError, match="Start with a positive learning rate"):
            emo_optax.emo_cats(learning_rate, decoupled_weight_decay=True)
