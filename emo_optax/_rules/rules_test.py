from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.reference_test import find_in_state
from emo_optax._rules.moments import average, interpolate

RULES = [
    emo_optax.scale_by_uncorrected_adam,
    emo_optax.scale_by_lion,
    emo_optax.scale_by_factored_moments,
]


def test_a_momentum_of_another_rule_is_refused() -> None:
    """The states of both rules have a field `mu` with leaves of the same shapes."""
    gradient = jnp.ones(2)
    lion, signs = emo_optax.scale_by_lion(), emo_optax.scale_by_cautious_sign()
    for ours, theirs in ((lion, signs), (signs, lion)):
        with pytest.raises(ValueError, match=r"does not fit this optimizer.*State where ScaleBy"):
            ours.update(gradient, theirs.init(gradient))


def test_uncorrected_adam_gives_two_steps_made_by_hand() -> None:
    with jax.enable_x64(True):
        rule = emo_optax.scale_by_uncorrected_adam(0.5, 0.75, 1.0)
        state = rule.init(jnp.zeros(2))
        updates, state = rule.update(jnp.asarray([4.0, -2.0]), state)
        np.testing.assert_array_equal(state.mu, [2.0, -1.0])
        np.testing.assert_array_equal(state.nu, [4.0, 1.0])
        np.testing.assert_allclose(updates, [2 / 3, -1 / 2], rtol=1e-15)
        updates, state = rule.update(jnp.asarray([0.0, 2.0]), state)
        np.testing.assert_array_equal(state.mu, [1.0, 0.5])
        np.testing.assert_array_equal(state.nu, [3.0, 1.75])
        np.testing.assert_allclose(updates, [1 / (3**0.5 + 1), 0.5 / (1.75**0.5 + 1)], rtol=1e-15)


def test_defaults_of_uncorrected_adam_are_adams() -> None:
    with jax.enable_x64(True):
        rule = emo_optax.scale_by_uncorrected_adam()
        gradient = jnp.asarray([3.0, 1e-8, 0.0])
        updates, _ = rule.update(gradient, rule.init(gradient))
        expected = [0.1 / 0.001**0.5 * 3 / (3 + 1e-8 / 0.001**0.5), 1e-9 / (1e-8 * 0.001**0.5 + 1e-8), 0.0]
        np.testing.assert_allclose(updates, expected, rtol=1e-13)


def test_uncorrected_adam_is_optax_adam_without_its_correction() -> None:
    with jax.enable_x64(True):
        rule, corrected = emo_optax.scale_by_uncorrected_adam(eps=0.0), optax.scale_by_adam(eps=0.0)
        gradients = np.random.default_rng(0).normal(size=(9, 4))
        mine, theirs = rule.init(jnp.zeros(4)), corrected.init(jnp.zeros(4))
        for step, gradient in enumerate(gradients, 1):
            updates, mine = rule.update(jnp.asarray(gradient), mine)
            expected, theirs = corrected.update(jnp.asarray(gradient), theirs)
            factor = (1 - 0.9**step) / np.sqrt(1 - 0.999**step)
            np.testing.assert_allclose(updates, expected * factor, rtol=1e-12)


def test_the_largest_step_of_uncorrected_adam_comes_near_the_twelfth() -> None:
    rule = emo_optax.scale_by_uncorrected_adam()
    state = rule.init(jnp.zeros(1))
    sizes = []
    for _ in range(25):
        updates, state = rule.update(jnp.ones(1), state)
        sizes.append(float(updates[0]))
    assert sizes[0] == pytest.approx(3.162, abs=1e-3)
    assert max(sizes) == pytest.approx(6.6, abs=0.06)
    assert 10 <= int(np.argmax(sizes)) + 1 <= 14


def test_lion_steps_by_the_sign_of_the_mix_and_moves_its_momentum_by_another() -> None:
    rule = emo_optax.scale_by_lion(0.5, 0.75)
    state = rule.init(jnp.zeros(3))
    updates, state = rule.update(jnp.asarray([4.0, -8.0, 0.0]), state)
    np.testing.assert_array_equal(updates, [1.0, -1.0, 0.0])
    np.testing.assert_array_equal(state.mu, [1.0, -2.0, 0.0])
    # Mixed with the momentum before this step: 0.5 (-0.5) + 0.5, 0.5 3 - 1, -0.5.
    updates, state = rule.update(jnp.asarray([-0.5, 3.0, -1.0]), state)
    np.testing.assert_array_equal(updates, [1.0, 1.0, -1.0])
    np.testing.assert_array_equal(state.mu, [0.625, -0.75, -0.25])


def test_lion_agrees_with_the_one_of_optax() -> None:
    mine, theirs = emo_optax.scale_by_lion(), optax.scale_by_lion(0.9, 0.99)
    gradients = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    my_state, their_state = mine.init(jnp.zeros(50)), theirs.init(jnp.zeros(50))
    for gradient in gradients:
        updates, my_state = mine.update(jnp.asarray(gradient), my_state)
        expected, their_state = theirs.update(jnp.asarray(gradient), their_state)
        np.testing.assert_array_equal(updates, expected)
    np.testing.assert_allclose(my_state.mu, their_state.mu, rtol=1e-5, atol=1e-7)


def test_factors_of_a_matrix_give_two_steps_made_by_hand() -> None:
    with jax.enable_x64(True):
        rule = emo_optax.scale_by_factored_moments(0.75, eps=1.0)
        gradient = jnp.asarray([[4.0, 2.0, 2.0], [0.0, 0.0, 3.0]])
        updates, state = rule.update(gradient, rule.init(gradient))
        # Means of squares: rows 8, 3; columns 8, 2, 6.5. Plus eps: 9, 4; 9, 3, 7.5.
        factors = find_in_state(state, emo_optax.ScaleByFactorsState)
        row, column = np.asarray([[0.75], [0.5]]), 0.25 * np.sqrt([[9, 3, 7.5]])
        np.testing.assert_allclose(factors.row, row, rtol=1e-15)
        np.testing.assert_allclose(factors.column, column, rtol=1e-15)
        np.testing.assert_allclose(updates, gradient / (np.sqrt(row * column) + 1), rtol=1e-14)
        updates, state = rule.update(jnp.zeros((2, 3)), state)
        factors = find_in_state(state, emo_optax.ScaleByFactorsState)
        np.testing.assert_allclose(factors.row, 0.75 * row + 0.25, rtol=1e-15)
        np.testing.assert_allclose(factors.column, 0.75 * column + 0.25, rtol=1e-15)
        assert not np.any(np.asarray(updates))


def test_a_row_is_all_but_the_first_axis_of_a_tensor() -> None:
    with jax.enable_x64(True):
        rule = emo_optax.scale_by_factored_moments(0.0, eps=0.0)
        gradient = np.arange(1.0, 25.0).reshape(2, 3, 4)
        _, state = rule.update(jnp.asarray(gradient), rule.init(jnp.asarray(gradient)))
        factors = find_in_state(state, emo_optax.ScaleByFactorsState)
        assert (factors.row.shape, factors.column.shape) == ((2, 1, 1), (1, 3, 4))
        rows = [
            np.sqrt(sum(x**2 for x in range(1, 13)) / 12),
            np.sqrt(sum(x**2 for x in range(13, 25)) / 12),
        ]
        np.testing.assert_allclose(factors.row.ravel(), rows, rtol=1e-14)
        assert float(factors.column[0, 1, 2]) == pytest.approx(np.sqrt((7**2 + 19**2) / 2), rel=1e-14)


def test_vectors_and_scalars_of_the_factored_rule_take_uncorrected_adam() -> None:
    tree = {"v": jnp.asarray([3.0, -1.0]), "s": jnp.asarray(2.0), "m": jnp.ones((2, 2))}
    vectors = {"v": tree["v"], "s": tree["s"]}
    factored = emo_optax.scale_by_factored_moments(0.8, 0.9, 1e-3)
    adam = emo_optax.scale_by_uncorrected_adam(0.8, 0.9, 1e-3)
    state, expected_state = factored.init(tree), adam.init(vectors)
    for _ in range(2):
        updates, state = factored.update(tree, state)
        expected, expected_state = adam.update(vectors, expected_state)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(updates[name], leaf)


def test_the_second_decay_rate_of_the_factored_rule_acts_on_vectors_alone() -> None:
    tree = {"v": jnp.asarray([3.0, -1.0]), "m": jnp.ones((2, 2))}
    results = []
    for b2 in (0.9, 0.999):
        rule = emo_optax.scale_by_factored_moments(0.8, b2)
        results.append(rule.update(tree, rule.init(tree))[0])
    np.testing.assert_array_equal(results[0]["m"], results[1]["m"])
    assert np.all(np.asarray(results[0]["v"] != results[1]["v"]))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 2)])
def test_empty_tensors_pass_the_factored_rule_and_leave_its_state_finite(shape: tuple[int, ...]) -> None:
    rule = emo_optax.scale_by_factored_moments()

    @jax.jit
    def two_steps(zeros: Any) -> Any:
        _, state = rule.update(zeros, rule.init(zeros))
        return rule.update(zeros, state)

    updates, state = two_steps(jnp.zeros(shape))
    assert updates.shape == shape
    assert all(np.all(np.isfinite(np.asarray(leaf))) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("rule", RULES)
def test_no_gradient_at_all_is_no_step(rule: Any) -> None:
    tree = {"v": jnp.zeros(2), "m": jnp.zeros((2, 2))}
    updates, _ = rule().update(tree, rule().init(tree))
    assert all(not np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("rule", RULES)
def test_moments_are_float32_at_least_and_updates_too(rule: Any) -> None:
    with jax.enable_x64(True):
        tree = {
            "h": jnp.ones((2, 2), jnp.bfloat16),
            "f": jnp.ones(2, jnp.float16),
            "s": jnp.ones(2, jnp.float32),
            "d": jnp.ones((2, 2), jnp.float64),
        }
        transformation = rule()
        state = transformation.init(tree)
        updates, new_state = jax.eval_shape(transformation.update, tree, state)
    expected = {"h": np.float32, "f": np.float32, "s": np.float32, "d": np.float64}
    assert {name: leaf.dtype for name, leaf in updates.items()} == expected
    for each in (state, new_state):
        paths = jax.tree_util.tree_leaves_with_path(each)
        assert {(path[-1].key, leaf.dtype) for path, leaf in paths} == {
            (name, np.dtype(kind)) for name, kind in expected.items()
        }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float16, np.float64])
def test_moments_may_be_kept_in_a_dtype_of_choice(rule: Any, dtype: Any) -> None:
    tree = {"v": jnp.ones(2), "m": jnp.ones((2, 2))}
    with jax.enable_x64(True):
        transformation = rule(moment_dtype=dtype)
        state = transformation.init(tree)
        updates, new_state = jax.eval_shape(transformation.update, tree, state)
    for each in (state, new_state):
        assert {leaf.dtype for leaf in jax.tree.leaves(each)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {np.dtype(np.float32)}


def test_moments_of_low_precision_are_rounded_only_where_they_are_kept() -> None:
    rule = emo_optax.scale_by_uncorrected_adam(0.0, 0.0, 0.0, moment_dtype=jnp.bfloat16)
    gradient = jnp.asarray([1.00390625])  # 1 + 2^-8, which bfloat16 rounds to 1
    updates, state = rule.update(gradient, rule.init(gradient))
    np.testing.assert_array_equal(updates, [1.0])
    np.testing.assert_array_equal(state.mu.astype(jnp.float32), [1.0])
    lion = emo_optax.scale_by_lion(0.0, 0.0, moment_dtype=jnp.bfloat16)
    _, state = lion.update(gradient, lion.init(gradient))
    np.testing.assert_array_equal(state.mu.astype(jnp.float32), [1.0])


@pytest.mark.parametrize("dtype", [jnp.int32, complex, bool])
@pytest.mark.parametrize("rule", RULES)
def test_moments_that_are_not_floating_point_are_refused(rule: Any, dtype: Any) -> None:
    with pytest.raises(ValueError, match="Invalid moment_dtype"):
        rule(moment_dtype=dtype)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_reads_neither_loss_nor_parameters(rule: Any) -> None:
    gradient = jnp.ones((2, 2))
    optimizer = optax.chain(rule(), optax.scale(-0.1))
    updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    assert np.all(np.asarray(updates) < 0)


@pytest.mark.parametrize("rule", RULES)
def test_a_numpy_double_as_a_decay_rate_keeps_updates_in_float32(rule: Any) -> None:
    with jax.enable_x64(True):
        transformation = rule(np.float64(0.9), np.float64(0.99))
        gradient = jnp.ones((2, 2), jnp.float32)
        updates, _ = jax.eval_shape(transformation.update, gradient, transformation.init(gradient))
        assert updates.dtype == jnp.float32


@pytest.mark.parametrize(
    ("b1", "b2"), [(0.9, 0.99), (0.0, 0.5), (0.5, 0.5), (0.3, 1e-6), (0.95, 0.2), (0.4, 0.0), (0.0, 0.0)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mix_is_the_same_from_the_momentum_after_the_step(b1: float, b2: float, dtype: Any) -> None:
    random = np.random.default_rng(0)
    gradient, before = random.normal(size=(2, 4000)).astype(dtype)
    # All the zeros that are not an accident: no gradient, no momentum, neither.
    gradient[:20], before[10:30] = 0.0, 0.0

    @jax.jit
    def mix(gradient: jax.Array, before: jax.Array) -> jax.Array:
        # The momentum is stored between two steps.
        after = jax.lax.optimization_barrier(average(gradient, before, b2))
        mixed: jax.Array = interpolate(gradient, before, after, b1, b2)
        return mixed

    with jax.enable_x64(True):
        found = np.asarray(mix(gradient, before), np.float64)
    expected = (1.0 - b1) * gradient.astype(np.float64) + b1 * before.astype(np.float64)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=8 * np.finfo(dtype).eps)
    clear = (np.abs(expected) > 8 * np.finfo(dtype).eps) | (np.arange(4000) < 30)
    np.testing.assert_array_equal(np.sign(found[clear]), np.sign(expected[clear]))


def test_the_mix_of_an_infinite_gradient_is_infinite() -> None:
    gradient = jnp.asarray([jnp.inf, -jnp.inf])
    for b1, b2 in ((0.9, 0.99), (0.5, 0.5), (0.5, 0.2)):
        rule = emo_optax.scale_by_lion(b1, b2)
        updates, _ = rule.update(gradient, rule.init(gradient))
        np.testing.assert_array_equal(updates, [1.0, -1.0])


@pytest.mark.parametrize("b2", [0.0, 0.3, 0.99])
def test_traced_decay_rates_are_as_good_as_known_ones(b2: float) -> None:
    gradients = np.random.default_rng(1).normal(size=(5, 30))

    @jax.jit
    def last(b1: Any, b2: Any) -> Any:
        rule = emo_optax.scale_by_lion(b1, b2)
        state = rule.init(jnp.zeros(30))
        for gradient in gradients:
            updates, state = rule.update(jnp.asarray(gradient, jnp.float32), state)
        return updates

    rule = emo_optax.scale_by_lion(0.9, b2)
    state = rule.init(jnp.zeros(30))
    for gradient in gradients:
        updates, state = rule.update(jnp.asarray(gradient, jnp.float32), state)
    np.testing.assert_array_equal(last(jnp.float32(0.9), jnp.float32(b2)), updates)


@pytest.mark.parametrize("rule", [*RULES, emo_optax.scale_by_cautious_sign, emo_optax.scale_by_softsign])
@pytest.mark.parametrize("dtype", [None, jnp.float16])
def test_a_rule_that_is_not_chosen_keeps_its_state(rule: Any, dtype: Any) -> None:
    tree = {"v": jnp.asarray([3.0, -1.0]), "m": jnp.asarray([[1.0, -2.0], [0.5, 1e-6]])}
    transformation = rule(moment_dtype=dtype)
    update = jax.jit(transformation.update)
    _, state = update(tree, transformation.init(tree))
    expected, moved = update(tree, state)
    updates, chosen = update(tree, state, is_chosen=jnp.asarray(True))
    _, rested = update(tree, state, is_chosen=jnp.asarray(False))
    for one, other in ((updates, expected), (chosen, moved), (rested, state)):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("rule", [*RULES, emo_optax.scale_by_cautious_sign, emo_optax.scale_by_softsign])
def test_a_rule_is_traced_once_for_all_leaves_of_a_shape(rule: Any) -> None:
    tree = [jnp.ones((3, 4)), jnp.ones((3, 4)), jnp.ones((3, 4))]
    transformation = rule()
    equations = jax.make_jaxpr(transformation.update)(tree, transformation.init(tree)).eqns
    calls = [equation.params["jaxpr"] for equation in equations if equation.primitive.name == "jit"]
    assert len(calls) == len(tree)
    assert len({id(call) for call in calls}) == 1


def test_means_are_behind_a_branch_where_factors_may_not_be_chosen() -> None:
    tree = [jnp.ones((3, 4)), jnp.ones((5, 4))]
    rule: Any = emo_optax.scale_by_factored_moments()
    state = rule.init(tree)
    lines = str(jax.make_jaxpr(lambda chosen: rule.update(tree, state, is_chosen=chosen))(True)).split("\n")
    assert sum(" cond[" in line for line in lines) == 1
