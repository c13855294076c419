"""Steps that plain low precision loses, and that Kahan summation and stochastic rounding keep."""

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.reference_test import find_in_state
from emo_optax._pieces.rounding import Rounding, round_bits, rounding_keys, scramble

FAMILY: list[Any] = [
    *(emo_optax.emo_sens, emo_optax.emo_airy, emo_optax.emo_cats),
    *(emo_optax.emo_navi, emo_optax.emo_fact, emo_optax.emo_lynx),
    *(emo_optax.emo_clan, emo_optax.emo_neco, emo_optax.emo_zeal),
    emo_optax.ref_adamw_mini_schedule_free,
]
OF_EACH_RULE: list[Any] = [
    *(emo_optax.emo_sens, emo_optax.emo_airy, emo_optax.emo_cats, emo_optax.emo_clan, emo_optax.emo_zeal),
    emo_optax.ref_adamw_mini_schedule_free,
]
NARROW = [jnp.bfloat16, jnp.float16]
every_narrow_dtype = pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.__name__)
every_rounding = pytest.mark.parametrize("rounding", ["kahan", "stochastic"])
PIECES = {"kahan": emo_optax.round_with_kahan, "stochastic": emo_optax.round_stochastically}


def finfo(dtype: Any) -> Any:
    return jnp.finfo(dtype)  # type: ignore[no-untyped-call]


compiled_round_bits = jax.jit(round_bits, static_argnums=1)


@functools.partial(jax.jit, static_argnums=0)
def draws(count: int, key: int = 0) -> jax.Array:
    return scramble(jnp.arange(count, dtype=jnp.uint32) + jnp.uint32(key))


# Rounding itself.


def values(dtype: Any) -> jax.Array:
    """Numbers of every size of a dtype, and its limits."""
    random = np.random.default_rng(0)
    info = finfo(dtype)
    least, most = float(info.smallest_normal), float(info.max)
    # Numbers that float32 has no normal ones for are 0 to XLA.
    lowest = max(least * 1e-3, 2.0**-126)
    sizes = 10.0 ** random.uniform(np.log10(lowest), np.log10(most), 20_000)
    edges = [0.0, least, most, *(np.arange(-300, 300) / 512 + 1.0), np.inf, -np.inf]
    return jnp.asarray(np.concatenate([random.choice([-1.0, 1.0], sizes.size) * sizes, edges]), jnp.float32)


@every_narrow_dtype
def test_without_draws_bits_are_rounded_as_a_cast_rounds(dtype: Any) -> None:
    given = values(dtype)
    given = given[jnp.isfinite(given.astype(dtype)) | jnp.isinf(given)]
    expected = np.asarray(given.astype(dtype)).astype(np.float32)
    np.testing.assert_array_equal(compiled_round_bits(given, dtype), expected)
    assert jnp.isnan(round_bits(jnp.asarray([jnp.nan, 1.0]), dtype)).tolist() == [True, False]


@every_narrow_dtype
def test_with_draws_a_value_becomes_one_of_its_neighbours(dtype: Any) -> None:
    given = values(dtype)
    given = given[jnp.abs(given) < float(finfo(dtype).max)]
    random = draws(given.size)
    rounded = compiled_round_bits(given, dtype, random)
    held = np.asarray(rounded).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(held, rounded)  # It is one that the dtype has.
    down, up = (compiled_round_bits(given, dtype, jnp.full_like(random, draw)) for draw in (0, 2**32 - 1))
    assert bool(((rounded == down) | (rounded == up)).all())
    assert bool((jnp.abs(down) <= jnp.abs(given)).all())
    # Where float16 is evenly spaced, by 2^-24, it is not looked closer at than 2^-37.
    assert bool((jnp.abs(up) >= jnp.abs(given) - 2.0**-38).all())
    np.testing.assert_array_equal(compiled_round_bits(rounded, dtype, random), rounded)
    lost = jnp.asarray([jnp.inf, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(compiled_round_bits(lost, dtype, random[:3]), lost)


@pytest.mark.parametrize("value", [1.0001, -2.7182817, 300.3, 3e-6, -0.0])
@every_narrow_dtype
def test_the_mean_of_what_is_rounded_at_random_is_the_value(dtype: Any, value: float) -> None:
    exact = jnp.full((200_000,), value, jnp.float32)
    rounded = np.asarray(compiled_round_bits(exact, dtype, draws(exact.size)), np.float64)
    unit = rounded.max() - rounded.min()
    share = (abs(value) - np.abs(rounded).min()) / unit if unit else 0.0
    error = unit * np.sqrt(share * (1.0 - share) / exact.size)
    assert abs(rounded.mean() - float(exact[0])) <= 4.0 * error


def test_random_numbers_are_even_and_do_not_follow_from_one_another() -> None:
    keys = rounding_keys(jnp.int32(7), 3)
    assert len({*keys.tolist(), *rounding_keys(jnp.int32(8), 3).tolist()}) == 6
    assert rounding_keys(jnp.int32(7), 3, seed=1).tolist() != keys.tolist()
    assert rounding_keys(jnp.int32(7), 5)[:3].tolist() == keys.tolist()
    ours, other = (np.asarray(draws(100_000, int(key)), np.float64) for key in keys[:2])
    counts, _ = np.histogram(ours, 256, (0.0, 2.0**32))
    # Chi-squared with 255 degrees of freedom: 4 standard deviations of 22.6 around its mean.
    assert abs(np.square(counts - 390.625).sum() / 390.625 - 255.0) < 4 * 22.6
    for one, two in ((ours[1:], ours[:-1]), (ours, other)):
        assert abs(np.corrcoef(one, two)[0, 1]) < 4 / 100_000**0.5


def test_what_is_not_to_move_does_not_move_by_its_rest() -> None:
    params = jnp.asarray([1.0078125, 1.0078125], jnp.bfloat16)
    # Half a unit: a tie, which is not even.
    state = emo_optax.RoundWithKahanState(jnp.full((2,), 2.0**-8, jnp.bfloat16))
    updates, state = emo_optax.round_with_kahan().update(jnp.asarray([0.0, 1e-9]), state, params)
    assert updates.tolist() == [0.0, 2.0**-8]
    assert optax.apply_updates(params, updates).tolist() == [1.0078125, 1.015625]
    assert state.compensation.tolist() == [2.0**-8, -(2.0**-8)]


@every_narrow_dtype
def test_kahan_keeps_the_sum(dtype: Any) -> None:
    random = np.random.default_rng(0)
    piece = emo_optax.round_with_kahan()
    params = jnp.asarray(random.normal(size=500), dtype)
    state = piece.init(params)
    exact = np.asarray(params, np.float64)

    @jax.jit
    def step(params: Any, state: Any, updates: Any) -> Any:
        updates, state = piece.update(updates, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(200):
        update = np.asarray(1e-3 * random.normal(size=500), np.float32)
        exact = exact + update
        params, state = step(params, state, update)
    unit = float(finfo(dtype).eps)
    ours = np.asarray(params, np.float64)
    # Of 200 roundings of the rest, each off by half a unit of half a unit at most.
    assert np.abs(ours + np.asarray(state.compensation, np.float64) - exact).max() < 200 * unit * unit
    assert np.abs(ours - exact).max() < 0.51 * unit * 4.0


@every_narrow_dtype
def test_a_step_at_random_lands_on_a_neighbour_of_where_it_should(dtype: Any) -> None:
    random = np.random.default_rng(0)
    piece = emo_optax.round_stochastically(seed=5)
    params = jnp.asarray(random.normal(size=5000), dtype)
    update = jnp.asarray(1e-2 * random.normal(size=5000), jnp.float32)
    aim = params.astype(jnp.float32) + update
    rounded, _ = piece.update(update, piece.init(params), params)
    assert rounded.dtype == dtype
    moved = optax.apply_updates(params, rounded).astype(jnp.float32)
    is_small = jnp.abs(aim) > 2.1 * jnp.abs(update)  # A longer update is itself rounded first.
    whole = jnp.zeros(aim.shape, jnp.uint32)
    down, up = (compiled_round_bits(aim, dtype, whole + jnp.uint32(draw)) for draw in (0, 2**32 - 1))
    assert int(is_small.sum()) > 4000
    assert bool(((moved == down) | (moved == up))[is_small].all())
    assert float(jnp.abs(moved - aim).max()) < float(finfo(dtype).eps) * 4.0


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "0", None])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"^Invalid seed"):
        emo_optax.round_stochastically(seed)


def test_a_seed_of_numpy_is_the_same_whole_number() -> None:
    seeds: list[Any] = [7, np.int64(7), np.uint32(7)]
    keys = [rounding_keys(jnp.int32(1), 2, seed=seed) for seed in seeds]
    for seed in seeds:
        emo_optax.round_stochastically(seed)
    np.testing.assert_array_equal(keys[0], keys[1])
    np.testing.assert_array_equal(keys[0], keys[2])


# The pieces.


@every_rounding
def test_a_piece_needs_params_and_names_them(rounding: str) -> None:
    piece = PIECES[rounding]()
    params = jnp.ones(2, jnp.bfloat16)
    assert isinstance(piece, optax.GradientTransformationExtraArgs)
    with pytest.raises(ValueError, match="params"):
        piece.update(params, piece.init(params))


@every_rounding
def test_a_piece_leaves_full_precision_and_what_is_masked_alone(rounding: str) -> None:
    params = {"wide": jnp.ones(3), "narrow": jnp.ones(3, jnp.bfloat16), "none": None}
    updates = {"wide": jnp.full(3, 1e-9), "narrow": jnp.full(3, 0.4), "none": None}
    piece = PIECES[rounding]()
    state = piece.init(params)
    rounded, state = piece.update(updates, state, params, value=1.0)
    assert rounded["wide"] is updates["wide"]
    assert rounded["narrow"].dtype == jnp.bfloat16
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == (
        [(3,), (1,)] if rounding == "kahan" else [()]
    )
    masked = optax.masked(piece, {"wide": True, "narrow": False, "none": False})
    rounded, _ = masked.update(updates, masked.init(params), params)
    assert rounded["narrow"] is updates["narrow"]


@every_rounding
def test_a_piece_stands_at_the_end_of_any_chain(rounding: str) -> None:
    def run(dtype: Any, last: Any) -> Any:
        optimizer = optax.chain(optax.sgd(1e-3), last)
        params = jnp.full((500,), 3.0, dtype)
        state = optimizer.init(params)

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = optimizer.update(params - 1.0, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.jit(lambda carry: jax.lax.scan(step, carry, length=200))((params, state))[0][0]

    exact = float(run(jnp.float32, optax.identity()).mean())
    assert bool((run(jnp.bfloat16, optax.identity()) == 3.0).all())
    found = run(jnp.bfloat16, PIECES[rounding]()).astype(jnp.float32)
    assert abs(float(found.mean()) - exact) < 2.0**-8


# The option.


@functools.cache
def compiled(make: Any, options: tuple[tuple[str, Any], ...]) -> Any:
    optimizer = make(2e-4, **dict(options))

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        grads = (params.astype(jnp.float32) - 1.0).astype(params.dtype)
        updates, state = optimizer.update(grads, state, params, value=1.0)
        return (optax.apply_updates(params, updates), state), None

    def run(params: Any, state: Any) -> Any:
        return jax.lax.scan(step, (params, state), length=300)[0][0]

    return optimizer.init, jax.jit(run)


def descend(make: Any, dtype: Any, **options: Any) -> np.ndarray:
    """Goes down (w - 1)^2 / 2 from 3; half a bfloat16 unit of 3 is 40 learning rates."""
    init, run = compiled(make, tuple(options.items()))
    params = jnp.full((16, 8), 3.0, dtype)
    return np.asarray(run(params, init(params)), np.float64)


@every_rounding
def test_every_member_takes_the_option(rounding: Rounding) -> None:
    kind = {"kahan": emo_optax.RoundWithKahanState, "stochastic": emo_optax.RoundStochasticallyState}
    for make in FAMILY:
        state = jax.eval_shape(make(rounding=rounding).init, jnp.ones(2, jnp.bfloat16))
        assert find_in_state(state, kind[rounding]), make


@pytest.mark.parametrize("make", OF_EACH_RULE, ids=lambda make: make.__name__)
def test_small_steps_are_lost_in_plain_bfloat16_and_add_up_with_rounding(make: Any) -> None:
    exact = descend(make, jnp.float32).mean()
    assert exact < 2.96
    assert (descend(make, jnp.bfloat16) == 3.0).all()
    unit = 2.0**-6  # Of bfloat16 between 2 and 4.
    kahan = descend(make, jnp.bfloat16, rounding="kahan")
    assert np.abs(kahan - exact).max() <= unit / 2.0 + 0.02 * (3.0 - exact)
    found = descend(make, jnp.bfloat16, rounding="stochastic")
    # Every step adds the variance of one draw, at most its own length times the unit.
    assert abs(found.mean() - exact) <= 4.0 * np.sqrt((3.0 - exact) * unit / found.size)
    assert found.std() > 0.0


@every_rounding
def test_float16_gains_too(rounding: str) -> None:
    exact = descend(emo_optax.emo_cats, jnp.float32).mean()
    assert (descend(emo_optax.emo_cats, jnp.float16) == 3.0).all()
    found = descend(emo_optax.emo_cats, jnp.float16, rounding=rounding)
    assert abs(found.mean() - exact) < 2e-3


def train(optimizer: Any, params: Any, state: Any, first: int, last: int, in_jit: bool = True) -> Any:
    update = jax.jit(optimizer.update) if in_jit else optimizer.update
    for step in range(first, last):
        draw = np.random.default_rng(step).normal
        grads = {name: jnp.asarray(draw(size=p.shape), p.dtype) for name, p in params.items()}
        loss = float("nan") if step == 3 else 1.0
        updates, state = update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
    return params, state


def start(*dtypes: Any) -> dict[str, jax.Array]:
    random = np.random.default_rng(0)
    return {f"{d.__name__}{n}": jnp.asarray(random.normal(size=(n, 3)), d) for d in dtypes for n in (1, 4)}


@every_rounding
def test_full_precision_is_left_alone_to_the_last_bit(rounding: Rounding) -> None:
    params = start(jnp.float32, jnp.bfloat16)
    plain = emo_optax.emo_sens(use_shadow=True, rounding="nearest")
    other = emo_optax.emo_sens(use_shadow=True, rounding=rounding)
    # Outside of jit: XLA may round two programs in two ways.
    expected, _ = train(plain, params, plain.init(params), 0, 8, in_jit=False)
    found, _ = train(other, params, other.init(params), 0, 8, in_jit=False)
    is_same = {name: bool((found[name] == expected[name]).all()) for name in params}
    assert {name for name in params if is_same[name]} >= {"float321", "float324"}
    assert not all(is_same.values())
    assert all(found[name].dtype == params[name].dtype for name in params)


@every_rounding
def test_no_step_is_none(rounding: Rounding) -> None:
    def step_size(step: Any) -> Any:
        return jnp.where(step < 20, 3e-4, 0.0)

    optimizer = emo_optax.emo_cats(step_size, rounding=rounding)
    params, state = train(optimizer, start(jnp.bfloat16), optimizer.init(start(jnp.bfloat16)), 0, 20)
    moved, _ = train(optimizer, params, state, 20, 30)
    jax.tree.map(np.testing.assert_array_equal, moved, params)


@every_rounding
def test_a_run_that_was_broken_off_goes_on_as_if_it_had_not(rounding: Rounding) -> None:
    optimizer = emo_optax.emo_sens(1e-4, rounding=rounding)
    params, state = train(optimizer, start(jnp.bfloat16), optimizer.init(start(jnp.bfloat16)), 0, 6)
    copied = pickle.loads(pickle.dumps((params, state)))
    moved = emo_optax.from_arrays(emo_optax.to_arrays(state), optimizer.init(params))
    expected = train(optimizer, params, state, 6, 12)
    for begun in (copied, (params, moved)):
        jax.tree.map(np.testing.assert_array_equal, train(optimizer, begun[0], begun[1], 6, 12), expected)


def test_every_step_and_every_leaf_draws_numbers_of_its_own() -> None:
    piece = emo_optax.round_stochastically()
    params = {name: jnp.ones(1000, jnp.bfloat16) for name in "ab"}
    updates = {name: jnp.full(1000, 2.0**-8) for name in "ab"}
    first, state = piece.update(updates, piece.init(params), params)
    second, state = piece.update(updates, state, params)
    assert int(state.steps) == 2
    seen = [first["a"], first["b"], second["a"], second["b"]]
    for index, one in enumerate(seen):
        for other in seen[:index]:
            # Half of them go up in either: 500 are equal by chance, 16 is the standard deviation.
            assert abs(int((one == other).sum()) - 500) < 4 * 16


@pytest.mark.parametrize("make", [*FAMILY, emo_optax.emotional], ids=lambda make: make.__name__)
def test_an_unknown_rounding_is_refused_by_name(make: Any) -> None:
    arguments = (optax.sgd(1e-3),) if make is emo_optax.emotional else ()
    known = "^Invalid rounding: 'up'; it must be one of 'nearest', 'kahan', 'stochastic'$"
    with pytest.raises(ValueError, match=known):
        make(*arguments, rounding="up")


def test_any_optimizer_made_emotional_rounds_too() -> None:
    optimizer = emo_optax.emotional(optax.sgd(1e-3), rounding="kahan")
    params = jnp.ones(4, jnp.bfloat16)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(10):
        updates, state = update(jnp.ones(4, jnp.bfloat16), state, params, value=1.0)
        params = optax.apply_updates(params, updates)
    assert params.tolist() == [0.98828125] * 4
