from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

MEMBERS = [emo_optax.emo_sens, emo_optax.emo_airy, emo_optax.emo_cats]
DROPPERS = [
    "optax.lookahead",
    "optax.contrib.sam",
    "optax.contrib.split_real_and_imaginary",
    "optax.contrib.galore",
    "optax.MultiSteps.gradient_transformation()",
    "optax.GradientTransformation(",
    "TrainState.apply_gradients",
    "update(grads, state, params, value=loss)",
]
OPTIMIZERS = [
    emo_optax.emo_sens(),
    emo_optax.emo_airy(),
    emo_optax.emo_cats(),
    emo_optax.emotional(optax.sgd(0.1)),
    emo_optax.share_emotion(optax.sgd(0.1)),
    emo_optax.track_emotion(),
    emo_optax.share_emotion(emo_optax.scale_by_emotion()),
    emo_optax.share_emotion(emo_optax.filter_by_emotion(optax.sgd(0.1))),
    emo_optax.share_emotion(emo_optax.blend_with_shadow(optax.sgd(0.1))),
]


def emotion_after(*losses: Any) -> emo_optax.Emotion:
    optimizer = emo_optax.track_emotion()
    params = jnp.ones(1, jnp.float32)
    state = optimizer.init(params)
    for loss in losses:
        _, state = optimizer.update(params, state, value=loss)
    return emo_optax.get_emotion(state)


def test_a_number_that_is_text_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"'1e-3'; it must be .* schedule, such as float\('1e-3'\)$"):
        emo_optax.emo_sens("1e-3")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_missing_loss_is_named_with_what_may_have_dropped_it(optimizer: Any) -> None:
    params = jnp.ones(2)
    state = optimizer.init(params)
    for arguments in ({}, {"value": None}, {"loss": 1.0}):
        with pytest.raises(emo_optax.LossMissingError) as caught:
            optimizer.update(params, state, params, **arguments)
        assert all(dropper in str(caught.value) for dropper in DROPPERS)
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(1,), (0,), (2, 3)])
def test_a_loss_that_is_not_a_scalar_is_refused_with_its_shape(
    optimizer: Any, shape: tuple[int, ...]
) -> None:
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="must be a scalar") as caught:
        optimizer.update(params, optimizer.init(params), params, value=jnp.ones(shape))
    assert str(shape) in str(caught.value)
    assert "jnp.mean" in str(caught.value)


class WithGraph:
    """A number of another framework that gives no array, as a tensor of PyTorch with a graph."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("use detach()")


@pytest.mark.parametrize(
    "loss",
    [np.timedelta64(1, "s"), np.ma.masked, np.ma.array(1.0, mask=True), WithGraph()],
    ids=["a time", "masked", "a masked array", "with a graph"],
)
def test_an_object_without_a_number_is_refused(loss: Any) -> None:
    with pytest.raises(TypeError, match="`value` must be the loss, a real number, and is"):
        emotion_after(loss)


@pytest.mark.parametrize(
    "loss", [1j, jnp.asarray(1j), True, np.True_, jnp.asarray(True), "high", object(), {"loss": 1.0}]
)
def test_a_loss_that_is_no_real_number_is_refused(loss: Any) -> None:
    with pytest.raises(TypeError, match="`value` must be the loss, a real number"):
        emotion_after(loss)


@pytest.mark.parametrize(
    "loss",
    [
        2.0,
        2,
        np.float16(2),
        np.float32(2),
        np.float64(2),
        np.int64(2),
        np.asarray(2.0),
        jnp.asarray(2.0, jnp.float16),
        jnp.asarray(2.0, jnp.bfloat16),
        jnp.asarray(2.0, jnp.float32),
        jnp.asarray(2, jnp.int32),
        jnp.asarray(2, jnp.uint8),
        jnp.asarray(2, jnp.int8),
    ],
)
@pytest.mark.parametrize("x64", [False, True])
def test_a_loss_may_have_any_real_dtype(loss: Any, x64: bool) -> None:
    expected = emotion_after(jnp.asarray(1.0, jnp.float32), jnp.asarray(2.0, jnp.float32))
    with jax.enable_x64(x64):
        emotion = emotion_after(1.0, loss)
        if x64:
            emotion_after(jnp.asarray(loss, jnp.float64))
    for got, wanted in zip(emotion, expected, strict=True):
        assert got.dtype == wanted.dtype
        assert float(got) == float(wanted)


@pytest.mark.parametrize("loss", [1e300, -1e300, np.float64(1e300), np.asarray(1e39), jnp.inf])
@pytest.mark.parametrize("x64", [False, True])
def test_a_loss_too_large_for_float32_is_held(loss: Any, x64: bool) -> None:
    with jax.enable_x64(x64):
        optimizer = emo_optax.track_emotion()
        params = jnp.ones(1, jnp.float32)
        _, state = optimizer.update(params, optimizer.init(params), params, value=loss)
    emotion = emo_optax.get_emotion(state)
    assert (int(emotion.felt), int(emotion.held)) == (0, 1)


def test_a_loss_too_large_for_float32_is_felt_in_float64() -> None:
    with jax.enable_x64(True):
        optimizer = emo_optax.track_emotion()
        params = jnp.ones(1, jnp.float64)
        _, state = optimizer.update(params, optimizer.init(params), params, value=1e300)
        assert float(emo_optax.get_emotion(state).long) == 1e300


def test_a_whole_number_too_large_for_int32_is_felt_like_any_other() -> None:
    assert float(emotion_after(3_000_000_000).long) == 3e9


@pytest.mark.parametrize("member", MEMBERS)
def test_a_caller_may_stop_the_gradient_through_the_loss(member: Any) -> None:
    optimizer = member(0.1, use_shadow=True)
    params = jnp.asarray([1.0, 2.0])
    state = optimizer.init(params)
    for loss in (1.0, 1.3):
        _, state = optimizer.update(params, state, params, value=loss)

    def stepped(loss: jax.Array) -> jax.Array:
        value = jax.lax.stop_gradient(loss)
        updates, new_state = optimizer.update(params, state, params * 2, value=value)
        emotion = emo_optax.get_emotion(new_state)
        return jnp.sum(optax.apply_updates(params, updates)) + emotion.scalar + emotion.short

    assert float(jax.grad(stepped)(jnp.asarray(1.1))) == 0.0
    assert float(stepped(jnp.asarray(1.1))) != float(stepped(jnp.asarray(1.4)))


@pytest.mark.parametrize(
    "optimizer", [*(member() for member in MEMBERS), emo_optax.emotional(optax.sgd(0.1), use_shadow=True)]
)
def test_missing_parameters_are_named(optimizer: Any) -> None:
    with pytest.raises(ValueError, match="`params` was not given"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), value=1.0)


OUT_OF_RANGE: dict[str, list[Any]] = {
    "learning_rate": [-0.1, np.nan, np.inf],
    "b1": [-0.1, 1.0, 1.5, np.nan],
    "b2": [-0.1, 1.0, 1.5, np.nan],
    "eps": [-1e-8, np.nan, np.inf],
    "weight_decay": [-0.1, np.nan, np.inf],
    "theta": [-1e-4, np.nan, np.inf],
    "short_factor": [0.0, -0.3, 1.1, np.nan],
    "long_factor": [0.0, -0.3, 1.1, np.nan],
    "gain": [-5.0, np.nan, np.inf],
    "shadow_rate": [0.0, -0.1, 1.1, np.nan],
    "shadow_ratio": ["v3.0", "2.0", None, 0.5],
    "weight_decay_mode": ["L2", "", None],
}
INTERPRETED = [
    ("b1", np.float64(1.5)),
    ("b1", np.float32(1.5)),
    ("gain", np.float32(-1.0)),
    ("learning_rate", np.float32(-0.1)),
    ("short_factor", np.int64(2)),
]


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_a_hyperparameter_out_of_its_range_is_refused_by_name(member: Any, name: str, value: Any) -> None:
    options = {"use_shadow": True, name: value}
    with pytest.raises(ValueError, match="Invalid ") as caught:
        member(**options)
    assert name.replace("_", " ") in str(caught.value).replace("_", " ")
    assert repr(value) in str(caught.value) or str(value) in str(caught.value)


@pytest.mark.parametrize(("name", "value"), INTERPRETED)
def test_a_numpy_number_out_of_its_range_is_refused_like_pythons(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="Invalid "):
        emo_optax.emo_sens(**{name: value})


@pytest.mark.parametrize("member", MEMBERS)
def test_the_edges_of_the_ranges_are_allowed(member: Any) -> None:
    member(
        0.0, 0.0, 0.0, 0.0, 0.0, theta=0.0, short_factor=1.0, long_factor=1.0, gain=0.0,
        use_shadow=True, shadow_rate=1.0,
    )  # fmt: skip
    member(0, 0, 0, 0, 0, gain=5)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (emo_optax.track_emotion, {"short_factor": 0.0}),
        (emo_optax.track_emotion, {"long_factor": 2.0}),
        (lambda **o: emo_optax.share_emotion(emo_optax.scale_by_emotion(), **o), {"gain": -1.0}),
        (lambda **o: emo_optax.share_emotion(optax.identity(), **o), {"long_factor": 0.0}),
        (
            lambda **o: emo_optax.filter_by_emotion(optax.identity(), **o),
            {"theta": -1.0},
        ),
        (
            lambda **o: emo_optax.share_emotion(emo_optax.filter_by_emotion(optax.identity()), **o),
            {"short_factor": 1.5},
        ),
        (lambda **o: emo_optax.emotional(optax.identity(), **o), {"theta": -1.0}),
        (lambda **o: emo_optax.emotional(optax.identity(), use_shadow=True, **o), {"shadow_ratio": "v9"}),
        (emo_optax.blend_with_shadow, {"ratio": "v9"}),
        (emo_optax.blend_with_shadow, {"shadow_rate": 0.0}),
        (lambda **o: emo_optax.share_emotion(emo_optax.blend_with_shadow(), **o), {"gain": -1.0}),
        (emo_optax.add_weight_decay, {"weight_decay": -0.1}),
        (emo_optax.scale_by_uncorrected_adam, {"b1": 1.0}),
        (emo_optax.scale_by_uncorrected_adam, {"b2": 1.0}),
        (emo_optax.scale_by_uncorrected_adam, {"eps": -1.0}),
        (emo_optax.scale_by_lion, {"b1": 1.0}),
        (emo_optax.scale_by_lion, {"b2": -0.1}),
        (emo_optax.scale_by_factored_moments, {"b1": 1.0}),
        (emo_optax.scale_by_factored_moments, {"b2": 1.0}),
        (emo_optax.scale_by_factored_moments, {"eps": -1.0}),
    ],
)
def test_every_piece_refuses_what_is_out_of_range(make: Any, options: Any) -> None:
    with pytest.raises(ValueError, match="Invalid "):
        make(**options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", None),
        ("learning_rate", "0.1"),
        ("b1", "0.9"),
        ("gain", None),
        ("weight_decay", "1"),
    ],
)
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"Invalid {name}: "):
        emo_optax.emo_sens(**{name: value})


def test_options_of_what_is_off_are_looked_at_too() -> None:
    with pytest.raises(ValueError, match="Invalid shadow_ratio: 'v3'"):
        emo_optax.emo_sens(shadow_ratio="v3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Invalid shadow_rate: 7"):
        emo_optax.emo_sens(shadow_rate=7.0)
    with pytest.raises(ValueError, match="Invalid theta"):
        emo_optax.emotional(optax.sgd(0.1), shadow_effect=False, theta=-1.0)


def test_what_is_no_transformation_or_emotional_already_is_refused() -> None:
    with pytest.raises(TypeError, match=r"such as optax\.adam\(1e-3\)"):
        emo_optax.emotional(optax.adam)
    with pytest.raises(TypeError, match="emotional already"):
        emo_optax.emotional(emo_optax.emo_sens(1e-3)).init(jnp.ones(2))


def test_a_wrapper_that_drops_parameters_is_named() -> None:
    optimizer = emo_optax.emo_sens(1e-3)
    state = optimizer.init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"`params` was not given.* optax\.contrib\.galore"):
        optimizer.update(jnp.ones(2), state, value=1.0)


def test_of_two_emotions_the_first_one_is_shown_whole() -> None:
    params = {"a": jnp.ones(2), "z": jnp.ones(2)}
    optimizer = optax.partition(
        {"a": emo_optax.emo_sens(gain=0.0), "z": emo_optax.emo_sens(use_shadow=True)},
        {"a": "a", "z": "z"},
    )
    state = optimizer.init(params)
    for loss in (1.0, 9.0, 9.0):
        _, state = optimizer.update(params, state, params, value=loss)
    emotion = emo_optax.get_emotion(state)
    assert (float(emotion.scalar), float(emotion.shadow_ratio)) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["emo_sens", "emo_navi", "emo_clan"])
def test_moments_in_half_precision_stay_finite_and_do_not_vanish(name: str) -> None:
    ends = []
    for dtype in (jnp.float16, jnp.float32):
        optimizer = emo_optax.create_optimizer(name, 1e-3, weight_decay=0.0, moment_dtype=dtype)
        params = jnp.ones(1)
        state = optimizer.init(params)
        for gradient in (*[1e-4] * 5, *[0.0] * 3, 1e4, *[1.0] * 5):
            updates, state = optimizer.update(jnp.asarray([gradient]), state, params, value=1.0)
            params = params + updates
        ends.append(float(params[0]))
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state))
    assert abs(ends[0] - ends[1]) < 0.05


@pytest.mark.parametrize("name", ["emo_sens", "emo_pilot", "emo_sens3", "ref_adamw_mini_schedule_free"])
def test_a_mask_with_a_boolean_for_each_element_is_refused(name: str) -> None:
    params = {"w": jnp.ones(3), "v": jnp.ones(2)}
    mask = {"w": jnp.asarray([True, False, True]), "v": True}
    with pytest.raises(ValueError, match=r"mask\['w'\] has the shape \(3,\); a mask has one boolean"):
        emo_optax.create_optimizer(name, mask=mask).init(params)
