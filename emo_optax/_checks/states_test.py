"""Numbers put into a state by hand, over every field of every state class."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._checks.states import check_kind

PARAMS = {"w": jnp.ones((2, 3)), "s": jnp.ones(())}
MEMBERS = emo_optax.list_optimizers()


def scheduled(name: str, rounding: str) -> Any:
    schedules = (optax.linear_schedule(0.1, 0.0, 10), optax.constant_schedule(0.1))
    without_shadow = ("emo_pilot", "emo_pilot_airy", "ref_adamw_mini_schedule_free")
    options = {} if name in without_shadow else {"use_shadow": True}
    return emo_optax.create_optimizer(
        name, schedules[0], weight_decay=schedules[1], rounding=rounding, **options
    )


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    **{
        f"{name} {rounding}": functools.partial(scheduled, name, rounding)
        for name, rounding in zip(MEMBERS, ["nearest", "kahan", "stochastic"] * 10, strict=False)
    },
    "divided": lambda: emo_optax.emo_cats(0.1, decoupled_weight_decay=True),
    "emotional": lambda: emo_optax.emotional(optax.sgd(0.1), use_shadow=True),
    "accumulate": lambda: emo_optax.accumulate(emo_optax.emo_sens(0.1), 2),
    "runaway": lambda: emo_optax.scale_by_runaway(optax.sgd(0.1)),
    "track_runaway": lambda: emo_optax.track_runaway(),
    "track_emotion": lambda: emo_optax.track_emotion(),
    "share_emotion": lambda: emo_optax.share_emotion(
        optax.chain(emo_optax.filter_by_emotion(optax.sgd(0.1)), emo_optax.scale_by_emotion())
    ),
    "switch": lambda: emo_optax.share_emotion(
        emo_optax.switch_by_emotion([emo_optax.scale_by_lion()], lambda s: 0 * s.astype(jnp.int32))
    ),
    "step_first": lambda: emo_optax.step_first(emo_optax.emo_sens(0.1), optax.sgd(0.1)),
    "decay": lambda: emo_optax.add_weight_decay(optax.constant_schedule(0.1), divisor=0.5),
    "kahan": lambda: emo_optax.round_with_kahan(),
    "stochastic": lambda: emo_optax.round_stochastically(),
    "adam": lambda: emo_optax.scale_by_uncorrected_adam(),
    "lion": lambda: emo_optax.scale_by_lion(),
    "softsign": lambda: emo_optax.scale_by_softsign(),
    "factors": lambda: emo_optax.scale_by_factored_moments(),
}


def numbers_for(leaf: jax.Array) -> list[Any]:
    """Returns numbers that stand for a leaf of the shape `[]`."""
    if leaf.dtype == jnp.bool_:
        return [False, np.bool_(True)]
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return [0, np.int64(1)]
    return [0, 0.5, np.float64(0.5), np.float32(0.5), np.int32(1)]


def kinds(tree: Any) -> list[Any]:
    return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_number_in_a_state_is_an_array_of_the_dtype_of_its_place(name: str) -> None:
    optimizer = OPTIMIZERS[name]()

    def update(state: Any) -> Any:
        return optimizer.update(PARAMS, state, PARAMS, value=2.0)

    state = optimizer.init(PARAMS)
    expected = kinds(jax.eval_shape(update, state))
    leaves, structure = jax.tree.flatten(state)
    choices = [numbers_for(leaf) if leaf.shape == () else [] for leaf in leaves]

    def changes(choices: list[list[Any]]) -> Iterator[Any]:
        """Yields states with a number for one half of the leaves (even or odd index)."""
        numbers = max(map(len, choices), default=0)
        # A member takes its pieces' states; here each piece meets all numbers.
        numbers = min(numbers, 1) if name.partition(" ")[0] in MEMBERS else numbers
        for number, parity in itertools.product(range(numbers), (0, 1)):
            given = [
                each[(number + index) % len(each)] if each and index % 2 == parity else leaf
                for index, (each, leaf) in enumerate(zip(choices, leaves, strict=True))
            ]
            yield jax.tree.unflatten(structure, given)

    for changed in changes(choices):
        assert kinds(jax.eval_shape(lambda changed=changed: update(changed))) == expected
    # Under jit, as an argument: NumPy's numbers are arrays there, and Python's numbers are left.
    for changed in changes([[one for one in each if type(one) in (bool, int, float)] for each in choices]):
        assert kinds(jax.eval_shape(update, changed)) == expected
    numbers = [each[0] if each else leaf for each, leaf in zip(choices, leaves, strict=True)]
    arrays = [jnp.asarray(one).astype(leaf.dtype) for one, leaf in zip(numbers, leaves, strict=True)]
    # All at once, by the numbers.
    given = [jax.tree.unflatten(structure, each) for each in (numbers, arrays)]
    got, wanted = jax.jit(lambda: [update(state) for state in given])()
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("in_jit", [False, True])
def test_a_flag_and_a_count_may_be_set_by_their_names(in_jit: bool) -> None:
    for name in MEMBERS:
        if "gain" not in inspect.signature(getattr(emo_optax, name)).parameters:
            continue  # The emotion of v2.0 is not the memory of this member.
        optimizer = optax.chain(optax.clip(1.0), emo_optax.create_optimizer(name, 0.1))
        init = optimizer.init(PARAMS)
        state = emo_optax.set_emotion(init, should_stop=True, felt=7, short=1, long=np.float64(0.5))
        assert kinds(state) == kinds(init)
        update = jax.jit(optimizer.update) if in_jit else optimizer.update
        _, state = update(PARAMS, state, PARAMS, value=1.0)
        emotion = emo_optax.get_emotion(state)
        assert (bool(emotion.should_stop), int(emotion.felt)) == (True, 8)
        assert float(emotion.short) == 1.0
        assert float(emotion.long) == pytest.approx(0.505)


@pytest.mark.parametrize(
    ("field", "value"),
    [("felt", 1.5), ("felt", True), ("should_stop", 1), ("should_stop", 0.0), ("scalar", True)],
)
@pytest.mark.parametrize("in_jit", [False, True])
def test_a_number_of_another_kind_is_refused_by_its_place(field: str, value: Any, in_jit: bool) -> None:
    optimizer = emo_optax.emo_sens(0.1)
    state = optimizer.init(PARAMS)

    def change(state: Any) -> Any:
        return emo_optax.set_emotion(state, **{field: value})

    with pytest.raises(TypeError, match=rf"EmotionState.{field} must be"):
        (jax.jit(change) if in_jit else change)(state)


def test_a_number_where_an_array_of_another_shape_belongs_is_refused() -> None:
    optimizer = emo_optax.emo_sens(0.1)
    with pytest.raises(TypeError, match=r"history must be a number of the shape \(32,\)"):
        emo_optax.set_emotion(optimizer.init(PARAMS), history=0.5)
    state = optax.tree.set(optimizer.init(PARAMS), numbers=0.5)
    with pytest.raises(TypeError, match=r"numbers of the optimizer's state must be an array of float32"):
        optimizer.update(PARAMS, state, PARAMS, value=1.0)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("felt", 2**40, "from 0 to 2147483647, and is 1099511627776"),
        ("held", np.int64(2**40), "from 0 to 2147483647"),
        ("felt", -3, "from 0 to 2147483647, and is -3"),
        ("short", 1e300, "finite in float32"),
        ("long", 10**400, "finite in float32"),
        ("short", float("nan"), "finite in float32, and is nan"),
        ("history", np.full(32, np.inf), "finite in float32"),
    ],
)
def test_a_number_out_of_its_range_is_refused(field: str, value: Any, says: str) -> None:
    state = emo_optax.emo_sens(0.1).init(PARAMS)
    with pytest.raises(ValueError, match=rf"^EmotionState.{field} must be {says}"):
        emo_optax.set_emotion(state, **{field: value})


def test_a_text_is_no_number() -> None:
    with pytest.raises(TypeError, match="felt must be a number, and is the text '3'"):
        emo_optax.set_emotion(emo_optax.emo_sens(0.1).init(PARAMS), felt="3")


def test_a_value_that_no_emotion_has_is_refused() -> None:
    with pytest.raises(TypeError, match="no value 'joy'; its values are felt, held, short"):
        emo_optax.set_emotion(emo_optax.emo_sens(0.1).init(PARAMS), joy=1.0)
    with pytest.raises(ValueError, match="no emotion and no pulse"):
        emo_optax.set_emotion(optax.adam(0.1).init(PARAMS), felt=1)


def test_the_values_of_a_pulse_are_set_by_their_names() -> None:
    optimizer = emo_optax.emo_sens3(0.1)
    state = emo_optax.set_emotion(optimizer.init(PARAMS), level=2, held=np.int64(3), should_stop=np.True_)
    assert kinds(state) == kinds(optimizer.init(PARAMS))
    pulse = emo_optax.get_pulse(state)
    assert (float(pulse.level), int(pulse.held), bool(pulse.should_stop)) == (2.0, 3, True)
    assert int(pulse.felt) == 0
    _, state = optimizer.update(PARAMS, state, PARAMS, value=1.0)
    assert (int(emo_optax.get_pulse(state).held), int(emo_optax.get_pulse(state).felt)) == (3, 1)


def test_the_functions_that_take_a_state_ask_for_arrays() -> None:
    emotion: Any = emo_optax.init_emotion(jnp.float32)
    for name in emotion._fields:
        with pytest.raises(ValueError, match=rf"{name}' must be an array"):
            emo_optax.feel(emotion._replace(**{name: 0}), jnp.ones([]))
    divergence: Any = emo_optax.init_divergence(jnp.float32)
    for name in divergence._fields:
        with pytest.raises(ValueError, match=rf"{name}' must be an array"):
            emo_optax.update_divergence(divergence._replace(**{name: 0}), jnp.ones([]))
    with pytest.raises(ValueError, match="'x' must be an array, and is None"):
        check_kind("x", None, jnp.floating, ())
    expected = r"'x' is int32 of the shape \(2,\); expected floating of the shape \(\)"
    with pytest.raises(ValueError, match=expected):
        check_kind("x", jnp.zeros(2, jnp.int32), jnp.floating, ())


def test_the_monitor_and_the_looks_take_numbers() -> None:
    stop = emo_optax.early_stop()
    state: Any = stop.init()
    for number in (True, np.bool_(True)):
        assert stop.update(state._replace(is_quiet=number), 1.0).is_quiet.dtype == jnp.bool_
    changed = state._replace(emotion=state.emotion.replace(felt=3, short=1))
    for update in (stop.update, jax.jit(stop.update)):
        assert int(update(changed, 1.0).emotion.felt) == 4
    optimizer = emo_optax.emo_sens(0.1)
    values = {"should_stop": False, "felt": 2, "short": 1, "scalar": 0.5}
    state = emo_optax.set_emotion(optimizer.init(PARAMS), **values)
    assert emo_optax.get_metrics(state)["emotion/felt"] == 2.0
    assert float(emo_optax.get_emotion(state).step_scale) == 0.5
