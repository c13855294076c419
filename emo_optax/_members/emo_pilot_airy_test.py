"""EmoPilotAiry: its rule against plain NumPy, its state, and what its factors must survive."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emo_optax
from emo_optax._members.emo_pilot_test import LOSSES, problem, reference, run


def factors(v: Any, g: Any, m: Any, t: int) -> Any:
    """Moves the factors and the momentum; returns the direction."""
    for n, each in g.items():
        square, rest = each**2, tuple(range(1, each.ndim))
        if each.ndim < 2:
            estimate = v[n] = 0.999 * v.get(n, 0.0) + 0.001 * square
        else:
            row, column = v.get(n, (0.0, 0.0))
            row = 0.999 * row + 0.001 * square.mean(rest, keepdims=True)
            column = 0.999 * column + 0.001 * square.mean(0, keepdims=True)
            v[n], estimate = (row, column), row * column / row.mean()
        u = each / (np.sqrt(estimate / (1 - 0.999**t)) + 1e-8)
        m[n] = 0.9 * m[n] + 0.1 * u / max(1.0, math.sqrt(float((u**2).mean())))
    return {n: m[n] / (1 - 0.9**t) for n in g}


def with_a_cube() -> tuple[Any, list[Any], list[float]]:
    """The problem of EmoPilot, with a parameter of three dimensions."""
    params, grads, losses = problem()
    rng = np.random.default_rng(7)
    params["cube"] = rng.normal(size=(2, 3, 4)) * 0.3
    for step, each in enumerate(grads):
        noise = 0.1 * rng.normal(size=(2, 3, 4))
        each["cube"] = (0.3 * params["cube"] + noise) * (50.0 if step == 20 else 1.0)
    return params, grads, losses


def single(tree: Any) -> Any:
    """Returns a tree in float32."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)


def test_the_rule_is_that_of_plain_numpy() -> None:
    params, grads, losses = with_a_cube()
    with jax.enable_x64(True):
        ended, state = run(emo_optax.emo_pilot_airy(), params, grads, losses)
        courage = float(emo_optax.get_pilot(state).courage)
    wanted, average, k = reference(params, grads, losses, turn=factors)
    for name, value in wanted.items():
        np.testing.assert_allclose(ended[name], value, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(state.average[name], average[name], rtol=1e-12, atol=1e-12)
    assert courage == pytest.approx(k, rel=1e-11)


def test_the_state_of_a_matrix_is_two_thirds_of_emo_pilots_and_has_the_nodes_of_the_parameters() -> None:
    params = {"matrix": jnp.ones((128, 128)), "vector": jnp.ones(3), "number": jnp.ones([])}

    def state_of(name: str) -> Any:
        return jax.eval_shape(emo_optax.create_optimizer(name).init, params)

    def size(state: Any) -> int:
        kept = [*state.rule, state.average]
        return sum(math.prod(tree["matrix"].shape) for tree in kept)

    ours = state_of("emo_pilot_airy")
    assert size(ours) / size(state_of("emo_pilot")) == pytest.approx(2 / 3, abs=0.01)
    shapes = {name: [tree[name].shape for tree in ours.rule] for name in params}
    assert shapes["matrix"] == [(128, 128), (128, 1), (1, 128)]
    assert shapes["vector"] == [(3,), (1,), (3,)]
    assert shapes["number"] == [(), (), ()]


def test_empty_and_one_element_arrays_and_rows_of_0() -> None:
    params: Any = {"none": np.zeros((0, 3)), "none too": np.zeros((3, 0)), "one": np.ones((1, 1))}
    params |= {"number": np.asarray(2.0), "still": np.ones((3, 2)), "rows": np.ones((3, 2))}
    grads = {name: value.copy() for name, value in params.items()}
    grads["still"][:] = 0.0
    grads["rows"][1] = 0.0
    optimizer = emo_optax.emo_pilot_airy(eps=0.0, weight_decay=0.0)
    ended, state = run(optimizer, single(params), [single(grads)] * 8, LOSSES[:8])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state))
    np.testing.assert_array_equal(ended["still"], np.ones((3, 2)))
    assert [bool((row < 1.0).all()) for row in ended["rows"]] == [True, False, True]
    assert float(ended["one"][0, 0]) < 1.0


def test_the_gate_cuts_an_enormous_gradient_to_its_limit_in_the_factors_too() -> None:
    usual = np.asarray([[1e-9, -2e-9, 3e-9], [2e-9, 1e-9, -1e-9]], np.float32)
    # The square of the gate is below all numbers of float32.
    grads = [{"matrix": np.float32(unit) * usual} for unit in (1.0, 1e24)]
    params = {"matrix": np.ones((2, 3), np.float32)}
    _, state = run(emo_optax.emo_pilot_airy(), params, grads, [1.0, 1.0])
    share = 0.001 * 0.999 + 0.001 * 2.5**2
    wanted = share * np.square(usual.astype(np.float64)).mean(1, keepdims=True)
    np.testing.assert_allclose(state.rule.row["matrix"], wanted, rtol=1e-5)


def test_small_gradients_take_the_same_steps() -> None:
    params, grads, losses = with_a_cube()
    scaled = [jax.tree.map(lambda leaf: leaf * 1e-11, each) for each in grads]
    optimizer = emo_optax.emo_pilot_airy(eps=0.0)
    ended, _ = run(optimizer, single(params), single(scaled), losses)
    wanted, _, _ = reference(params, grads, losses, turn=factors)
    for name, value in wanted.items():
        np.testing.assert_allclose(ended[name], value, rtol=1e-4, atol=1e-4)


def test_factors_in_two_bytes_follow_the_rule() -> None:
    params, grads, losses = with_a_cube()
    optimizer = emo_optax.emo_pilot_airy(moment_dtype=jnp.float16)
    ended, state = run(optimizer, single(params), single(grads), losses)
    assert state.rule.row["a"].dtype == jnp.float16
    wanted, _, _ = reference(params, grads, losses, turn=factors)
    for name, value in wanted.items():
        np.testing.assert_allclose(ended[name], value, rtol=0.05, atol=0.05)


def test_the_state_of_emo_pilot_is_refused() -> None:
    params = {"matrix": jnp.ones((2, 3))}
    theirs = emo_optax.to_arrays(emo_optax.emo_pilot().init(params))
    with pytest.raises(ValueError, match="pilot_factors"):
        emo_optax.from_arrays(theirs, emo_optax.emo_pilot_airy().init(params))


@pytest.mark.parametrize(
    ("option", "value"), [("b1", 1.0), ("b2", -0.1), ("eps", -1.0), ("gate_limit", -1.0)]
)
def test_options_out_of_range(option: str, value: float) -> None:
    make: Any = emo_optax.emo_pilot_airy
    with pytest.raises(ValueError, match=option):
        make(**{option: value})
    with pytest.raises(ValueError, match="emo_pilot_airy"):
        make(moment_dtype="8bit")
