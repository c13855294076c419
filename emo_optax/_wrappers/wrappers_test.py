"""The members under Optax's own wrappers: wrappers that pass the loss on, and wrappers that drop it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.reference_test import (
    find_in_state,
)

MEMBERS = {"emo_sens": emo_optax.emo_sens, "emo_airy": emo_optax.emo_airy, "emo_cats": emo_optax.emo_cats}
PARAMS = {"w": jnp.asarray([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.asarray([0.5, -1.0])}
GRADS = {"w": jnp.asarray([[0.3, -0.1], [0.0, 2.0]]), "b": jnp.asarray([0.1, 1.0])}
LOSSES = (1.0, 1.5, 1.2, 0.4)

every_member = pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)


def train(optimizer: Any, losses: Any = LOSSES, grads: Any = GRADS) -> tuple[Any, Any]:
    """Trains in jit; looks at the emotion inside, and outside it must look the same."""

    @jax.jit
    def step(params: Any, state: Any, loss: Any) -> Any:
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, emo_optax.get_emotion(state)

    params, state = PARAMS, optimizer.init(PARAMS)
    for loss in losses:
        params, state, inside = step(params, state, jnp.asarray(loss, jnp.float32))
        np.testing.assert_allclose(
            [float(field) for field in inside], [float(field) for field in emo_optax.get_emotion(state)]
        )
    return params, state


def assert_same(one: Any, other: Any, tolerance: float = 1e-6) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def _as_extra_args(optimizer: Any) -> Any:
    return optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)


TRANSPARENT: dict[str, Any] = {
    "chain": lambda o: optax.chain(optax.identity(), optax.chain(o, optax.identity())),
    "named_chain": lambda o: optax.named_chain(("clip", optax.clip(1e9)), ("emo", o)),
    "masked": lambda o: optax.masked(o, {"w": True, "b": True}),
    "partition": lambda o: optax.partition({"a": o, "z": optax.set_to_zero()}, {"w": "a", "b": "a"}),
    "MultiSteps": lambda o: optax.MultiSteps(o, 1),
    "MultiSteps in a chain": lambda o: optax.chain(_as_extra_args(optax.MultiSteps(o, 1)), optax.clip(9.0)),
    "apply_if_finite": lambda o: optax.apply_if_finite(o, 3),
    "conditionally_transform": lambda o: optax.conditionally_transform(
        o, lambda step, value, **_: (step >= 0) & (value < 9), forward_extra_args=True
    ),
    "conditionally_mask": lambda o: optax.conditionally_mask(o, lambda step: step >= 0),
    "with_extra_args_support": optax.with_extra_args_support,
    "reduce_on_plateau": lambda o: optax.chain(o, optax.contrib.reduce_on_plateau(patience=9)),
    "mask_compatible_extra_args": lambda o: optax.masked(
        o, {"w": True, "b": True}, mask_compatible_extra_args=True
    ),
    "MultiSteps(skip_not_finite)": lambda o: optax.MultiSteps(
        o, 1, should_skip_update_fn=optax.skip_not_finite
    ),
    "freeze": lambda o: optax.chain(o, optax.freeze({"w": False, "b": False})),
    "selective_transform": lambda o: optax.selective_transform(o, freeze_mask={"w": False, "b": False}),
    "monitor": lambda o: optax.chain(optax.monitor({"norm": optax.tree.norm}), o),
    "accumulate": lambda o: emo_optax.accumulate(o, 1),
    "bind_extra_args": lambda o: emo_optax.bind_extra_args(
        lambda inner: optax.GradientTransformation(inner.init, inner.update), o
    ),
}


@pytest.mark.parametrize("wrap", TRANSPARENT.values(), ids=TRANSPARENT)
def test_a_wrapper_that_passes_the_loss_on_changes_nothing(wrap: Any) -> None:
    optimizer = emo_optax.emo_airy(0.1, use_shadow=True)
    expected, expected_state = train(optimizer)
    params, state = train(wrap(optimizer))
    assert_same(params, expected)
    assert_same(emo_optax.get_emotion(state), emo_optax.get_emotion(expected_state))
    assert int(emo_optax.get_emotion(state).felt) == 4


@pytest.mark.filterwarnings("ignore:inject_stateful_hyperparams is deprecated")  # by Optax; it still works
@pytest.mark.parametrize("inject", ["inject_hyperparams", "inject_stateful_hyperparams"])
def test_injecting_hyperparameters_passes_the_loss_on(inject: str) -> None:
    # Numbers become arrays in float32: 1 - b1 differs in the last places.
    expected, expected_state = train(emo_optax.emo_airy(0.1, use_shadow=True))
    params, state = train(getattr(optax, inject)(emo_optax.emo_airy)(0.1, use_shadow=True))
    assert_same(params, expected, 1e-4)
    assert_same(emo_optax.get_emotion(state), emo_optax.get_emotion(expected_state), 1e-4)


@every_member
def test_every_transformation_of_the_package_takes_extra_arguments(member: Any) -> None:
    for optimizer in (member(), optax.chain(member()), optax.inject_hyperparams(member)(0.1)):
        assert isinstance(optimizer, optax.GradientTransformationExtraArgs)


def test_a_flat_tree_gives_the_same_elementwise_steps() -> None:
    optimizer = emo_optax.emo_sens(0.1, use_shadow=True)
    expected, _ = train(optimizer)
    params, state = train(optax.flatten(optimizer))
    assert_same(params, expected)
    assert int(emo_optax.get_emotion(state).felt) == 4


@every_member
def test_masked_out_leaves_pass_and_take_no_room_in_the_state(member: Any) -> None:
    optimizer = optax.masked(member(0.1, use_shadow=True), {"w": True, "b": False})
    params, state = train(optimizer)
    alone = member(0.1, use_shadow=True)
    expected, _ = train(optax.chain(alone, optax.identity()))
    assert_same(params["w"], expected["w"])
    np.testing.assert_allclose(params["b"], PARAMS["b"] + 4 * GRADS["b"], rtol=1e-6)
    assert isinstance(find_in_state(state, emo_optax.BlendWithShadowState).shadow["b"], optax.MaskedNode)


def test_partitioned_members_feel_alike_and_the_first_ones_emotion_is_found() -> None:
    parts = {"s": emo_optax.emo_sens(0.1), "c": emo_optax.emo_cats(0.05, use_shadow=True)}
    params, state = train(optax.partition(parts, {"w": "s", "b": "c"}))
    assert_same(params["w"], train(parts["s"])[0]["w"])
    assert_same(params["b"], train(parts["c"])[0]["b"])
    emotions = [
        node
        for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, emo_optax.EmotionState))
        if isinstance(node, emo_optax.EmotionState)
    ]
    assert len(emotions) == 2
    assert_same(emotions[0], emotions[1])
    found = emo_optax.get_emotion(state)
    first = emotions[0]
    assert_same((found.short, found.scalar, found.felt), (first.short, first.scalar, first.felt))


def test_multi_steps_feels_the_last_loss_of_each_group() -> None:
    optimizer = emo_optax.emo_sens(0.1)
    _, state = train(optax.MultiSteps(optimizer, 2), (9.0, 1.0, 7.0, 1.5))
    emotion = emo_optax.get_emotion(state)
    assert int(emotion.felt) == 2
    assert float(emotion.short) == pytest.approx(1.15)


def test_a_gradient_that_is_not_finite_is_skipped_with_its_loss_under_apply_if_finite() -> None:
    optimizer = optax.apply_if_finite(emo_optax.emo_sens(0.1), 3)
    before, state = train(optimizer)
    bad = jax.tree.map(lambda g: g * jnp.nan, GRADS)
    updates, after = optimizer.update(bad, state, before, value=jnp.asarray(jnp.nan))
    assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(updates))
    assert_same(after.inner_state, state.inner_state, 0.0)


def test_a_loss_that_is_not_finite_passes_apply_if_finite_and_is_held_inside() -> None:
    optimizer = optax.apply_if_finite(emo_optax.emo_sens(0.1), 3)
    before, state = train(optimizer)
    updates, after = optimizer.update(GRADS, state, before, value=jnp.asarray(jnp.nan))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((updates, after)))
    emotions = [emo_optax.get_emotion(each) for each in (state, after)]
    assert [int(emotion.held) for emotion in emotions] == [0, 1]
    assert_same(emotions[0][:3], emotions[1][:3], 0.0)
    assert float(jnp.max(jnp.abs(updates["w"]))) > 0.0


def test_a_micro_batch_that_multi_steps_skips_is_not_felt() -> None:
    optimizer = optax.MultiSteps(emo_optax.emo_sens(0.1), 2, should_skip_update_fn=optax.skip_not_finite)
    bad = jax.tree.map(lambda g: g * jnp.nan, GRADS)
    params, state = PARAMS, optimizer.init(PARAMS)
    for loss, grads in ((9.0, GRADS), (np.nan, bad), (0.3, GRADS)):
        updates, state = optimizer.update(grads, state, params, value=jnp.asarray(loss))
        params = optax.apply_updates(params, updates)
    emotion = emo_optax.get_emotion(state)
    assert (int(emotion.felt), int(emotion.held)) == (1, 0)
    assert float(emotion.long) == pytest.approx(0.3)


def test_parameters_kept_from_below_zero_stay_so() -> None:
    optimizer = optax.chain(emo_optax.emo_sens(0.1), optax.keep_params_nonnegative())
    start = jax.tree.map(jnp.abs, PARAMS)
    state = optimizer.init(start)
    grads = jax.tree.map(lambda p: jnp.full_like(p, 50.0), start)
    params = start
    for loss in LOSSES:
        updates, state = optimizer.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
    assert min(float(leaf.min()) for leaf in jax.tree.leaves(params)) == 0.0
    assert int(emo_optax.get_emotion(state).felt) == 4


# Two step sizes on one step: the loss arrives, and whether the product is of use is another question.
BESIDE: dict[str, Any] = {
    "momo": lambda o: optax.chain(o, optax.contrib.momo()),
    "schedule_free": lambda o: optax.contrib.schedule_free(o, 0.1),
    "mechanize": optax.contrib.mechanize,
    "prodigy": lambda o: optax.chain(o, optax.contrib.prodigy()),
}


@pytest.mark.parametrize("wrap", BESIDE.values(), ids=BESIDE)
def test_the_loss_arrives_beside_another_controller_of_the_step(wrap: Any) -> None:
    optimizer = emo_optax.emo_sens(0.1)
    _, expected = train(optimizer)
    params, state = train(wrap(optimizer))
    assert_same(emo_optax.get_emotion(state), emo_optax.get_emotion(expected))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


def test_a_line_search_after_a_member_never_raises_the_loss() -> None:
    optimizer = optax.chain(emo_optax.emo_sens(0.5), optax.scale_by_backtracking_linesearch(15))

    def loss_of(params: Any) -> Any:
        return sum(jnp.sum(jnp.square(p)) for p in params.values())

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params, value=loss, grad=grads, value_fn=loss_of)
        return optax.apply_updates(params, updates), state, loss

    params, state, losses = PARAMS, optimizer.init(PARAMS), []
    for _ in range(8):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    assert int(emo_optax.get_emotion(state).felt) == 8


def test_a_condition_on_the_loss_may_stand_around_a_member() -> None:
    member = emo_optax.emo_cats(0.5, weight_decay=0.0)
    optimizer = optax.conditionally_mask(member, lambda _, value: value < 2.0, forward_extra_args=True)
    params, state = train(optimizer, (1.0, 5.0, 5.0))
    assert_same(params, train(member, (1.0,))[0])
    assert int(emo_optax.get_emotion(state).felt) == 1


def test_reduce_on_plateau_reads_the_same_loss_and_multiplies() -> None:
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    optimizer = optax.chain(emo_optax.emo_cats(0.1, weight_decay=0.0), plateau)
    _, state = train(optimizer, (1.0,) * 4)
    scale = float(state[1].scale)
    assert scale < 1.0
    updates, state = optimizer.update(GRADS, state, PARAMS, value=1.0)
    assert float(state[1].scale) < scale
    assert float(jnp.max(jnp.abs(updates["b"]))) == pytest.approx(0.1 * float(state[1].scale), rel=1e-6)


@every_member
def test_what_stands_beside_a_member_in_a_chain_keeps_its_work(member: Any) -> None:
    clipped = optax.chain(optax.clip(0.5), member(0.1), optax.scale(2.0))
    _, state = train(clipped)
    updates, _ = clipped.update(GRADS, state, PARAMS, value=1.0)
    alone = member(0.1)
    expected, _ = alone.update(
        jax.tree.map(lambda g: jnp.clip(g, -0.5, 0.5), GRADS), state[1], PARAMS, value=1.0
    )
    assert_same(updates, jax.tree.map(lambda u: 2 * u, expected))


@every_member
def test_trees_like_the_parameters_are_found_in_the_state(member: Any) -> None:
    optimizer = optax.chain(optax.clip(1.0), member(0.1, use_shadow=True))
    _, state = train(optimizer)
    mapped = optax.tree.map_params(optimizer, lambda leaf: leaf + 1, state)
    assert_same(find_in_state(mapped, emo_optax.EmotionState), find_in_state(state, emo_optax.EmotionState))
    seen = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        new = dict(jax.tree_util.tree_leaves_with_path(mapped))[path]
        of_parameters = any(getattr(key, "key", None) in ("w", "b") for key in path)
        np.testing.assert_array_equal(new, leaf + 1 if of_parameters else leaf)
        seen += of_parameters
    assert seen == (4 if member is emo_optax.emo_cats else 6)


# ---- Wrappers that drop the loss


DROPPING: dict[str, Any] = {
    "lookahead": lambda o: optax.lookahead(o, 5, 0.5),
    "MultiSteps.gradient_transformation": lambda o: optax.chain(
        optax.MultiSteps(o, 2).gradient_transformation(), optax.identity()
    ),
    "MultiSteps object in a chain": lambda o: optax.chain(optax.MultiSteps(o, 2), optax.identity()),
    "sam": lambda o: optax.contrib.sam(o, optax.sgd(0.1)),
    "split_real_and_imaginary": optax.contrib.split_real_and_imaginary,
    "plain GradientTransformation": lambda o: optax.chain(optax.GradientTransformation(o.init, o.update)),
}


@pytest.mark.parametrize("wrap", DROPPING.values(), ids=DROPPING)
@every_member
def test_a_wrapper_that_drops_the_loss_fails_loudly(wrap: Any, member: Any) -> None:
    optimizer = wrap(member(0.1))
    params = optax.LookaheadParams.init_synced(PARAMS) if wrap is DROPPING["lookahead"] else PARAMS
    state = optimizer.init(params)
    with pytest.raises((emo_optax.LossMissingError, TypeError)) as caught:
        optimizer.update(GRADS, state, params, value=1.0)
    assert isinstance(caught.value, emo_optax.LossMissingError) or "value" in str(caught.value)


def test_galore_drops_the_parameters_too_and_fails_loudly() -> None:
    optimizer = optax.contrib.galore(0.1, base_optimizer=emo_optax.emo_sens(0.1), rank=1)
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=r"was not given|none was given"):
        optimizer.update(GRADS, state, PARAMS, value=1.0)


def test_flax_train_state_without_an_update_of_its_own_fails_loudly() -> None:
    train_state = pytest.importorskip("flax.training.train_state")
    state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=emo_optax.emo_sens(0.1))
    with pytest.raises(emo_optax.LossMissingError):
        state.apply_gradients(grads=GRADS)


# ---- Values of the loss


@pytest.mark.parametrize(
    "loss",
    [1.5, 2, jnp.float32(1.5), jnp.bfloat16(1.5), jnp.float16(1.5), np.float32(1.5), np.float64(1.5)],
    ids=["float", "int", "float32", "bfloat16", "float16", "np.float32", "np.float64"],
)
def test_a_loss_of_any_kind_is_compiled_for_once_and_felt(loss: Any) -> None:
    optimizer = optax.chain(emo_optax.emo_sens(0.1))
    traces = []

    @jax.jit
    def step(params: Any, state: Any, loss: Any) -> Any:
        traces.append(loss)
        return optimizer.update(GRADS, state, params, value=loss)[1]

    state = optimizer.init(PARAMS)
    for factor in (1, 2, 3):
        state = step(PARAMS, state, type(loss)(loss * factor) if not isinstance(loss, jax.Array) else loss)
    assert len(traces) == 1
    assert int(emo_optax.get_emotion(state).felt) == 3
    first = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS, value=loss)[1]
    assert float(emo_optax.get_emotion(first).long) == float(loss)


def test_a_static_loss_is_compiled_for_again_each_time() -> None:
    # Why the loss should go into a jitted step as an argument, or be computed in it.
    jax.clear_caches()  # JAX keeps so many programs, and forgets the oldest ones where there are more.
    optimizer = emo_optax.emo_sens(0.1)
    step: Any = jax.jit(
        lambda state, loss: optimizer.update(GRADS, state, PARAMS, value=loss)[1], static_argnums=1
    )
    state = optimizer.init(PARAMS)
    for loss in (1.0, 1.5, 1.2):
        state = step(state, loss)
    assert step._cache_size() == 3


@pytest.mark.parametrize("wrap", TRANSPARENT.values(), ids=TRANSPARENT)
def test_a_loss_of_one_element_is_refused_through_every_wrapper(wrap: Any) -> None:
    optimizer = wrap(emo_optax.emo_airy(0.1, use_shadow=True))
    state = optimizer.init(PARAMS)
    # A condition on the loss meets it first: there it is JAX that refuses.
    with pytest.raises((ValueError, TypeError), match="must be a scalar"):
        optimizer.update(GRADS, state, PARAMS, value=jnp.ones(1))
