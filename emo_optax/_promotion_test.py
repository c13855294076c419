"""Dtypes of hyperparameters, and a JAX that promotes no dtype on its own, over all members."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._devices_test import OF_EACH_RULE
from emo_optax._pieces.pulse_reference_test import OF_36, THIRD

NAMES = emo_optax.list_optimizers()
STATIC = ("mask", "shadow_ratio", "moment_dtype")
every_member = pytest.mark.parametrize("name", NAMES)
in_jit_or_not = pytest.mark.parametrize("in_jit", [False, True])
LATER = (*THIRD, *OF_36)
"""Injected in float32 beside bfloat16 parameters in later_generations_test.py."""
half = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])


def injected(name: str, *args: Any, **options: Any) -> optax.GradientTransformationExtraArgs:
    maker = getattr(emo_optax, name)
    static = tuple(option for option in STATIC if option in inspect.signature(maker).parameters)
    return optax.inject_hyperparams(maker, static_args=static, **options)(*args)


def make_params(dtype: Any) -> dict[str, jax.Array]:
    return {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3).astype(dtype), "b": jnp.ones(3, dtype)}


def train(optimizer: Any, dtype: Any, steps: int = 40) -> tuple[Any, float]:
    params = make_params(dtype)
    state = optimizer.init(params)

    def loss_of(params: Any) -> jax.Array:
        return sum(jnp.sum((leaf.astype(jnp.float32) - 0.3) ** 2) for leaf in jax.tree.leaves(params))  # type: ignore[return-value]

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, float(loss_of(params))


# Injected hyperparameters.


@every_member
@in_jit_or_not
@half
def test_hyperparameters_that_optax_would_make_coarse_are_refused(
    name: str, in_jit: bool, dtype: Any
) -> None:
    optimizer = injected(name, 1e-2)
    init = jax.jit(optimizer.init) if in_jit else optimizer.init
    with pytest.raises(TypeError, match=r"hyperparam_dtype=jnp\.float32"):
        init(make_params(dtype))


@half
def test_a_state_made_in_nnx_jit_is_refused_likewise(dtype: Any) -> None:
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")

    @nnx.jit  # type: ignore[untyped-decorator]
    def make() -> Any:
        model = nnx.Linear(2, 1, rngs=nnx.Rngs(0), param_dtype=dtype)
        return nnx.Optimizer(model, injected("emo_navi", 1e-2), wrt=nnx.Param)

    with pytest.raises(TypeError, match=r"hyperparam_dtype=jnp\.float32"):
        make()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LATER])
def test_hyperparameters_injected_in_float32_train_bfloat16_parameters_as_without(name: str) -> None:
    optimizer = injected(name, 1e-2, hyperparam_dtype=jnp.float32)
    _, loss = train(optimizer, jnp.bfloat16)
    _, expected = train(emo_optax.create_optimizer(name, 1e-2), jnp.bfloat16)
    # In float32 1 - b2 is off by a part in 100000, and bfloat16 has a digit in 256.
    assert loss == pytest.approx(expected, rel=0.02)


@every_member
def test_a_state_with_injected_hyperparameters_may_be_made_in_jit(name: str) -> None:
    optimizer, params = injected(name, 1e-2, hyperparam_dtype=jnp.float32), make_params(jnp.bfloat16)
    made, compiled = optimizer.init(params), jax.jit(optimizer.init)(params)
    structure: Any = jax.tree.structure(made)
    assert structure == jax.tree.structure(compiled)
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(compiled), strict=True):
        assert one.dtype == other.dtype
        assert one.weak_type == other.weak_type
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_a_model_of_nnx_trains_with_hyperparameters_injected_in_float32() -> None:
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed")
    losses = {}
    plain = emo_optax.emo_sens(1e-2)
    for key, tx in (("with", injected("emo_sens", 1e-2, hyperparam_dtype=jnp.float32)), ("without", plain)):
        model = nnx.Linear(2, 1, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit  # type: ignore[untyped-decorator]
        def step(model: Any, optimizer: Any) -> jax.Array:
            def loss_of(model: Any) -> jax.Array:
                return jnp.mean((model(jnp.ones((4, 2), jnp.bfloat16)).astype(jnp.float32) - 2.0) ** 2)

            loss, grads = nnx.value_and_grad(loss_of)(model)
            optimizer.update(model, grads, value=loss)
            return loss  # type: ignore[no-any-return]

        losses[key] = [float(step(model, optimizer)) for _ in range(40)]
    assert losses["with"][-1] < losses["with"][0]
    np.testing.assert_allclose(losses["with"], losses["without"], rtol=0.05, atol=1e-4)


# Both 16-bit dtypes take the same way through every member: one of them for each member, in turn.
half_in_turn = pytest.mark.parametrize(
    ("name", "dtype"), [(name, (jnp.bfloat16, jnp.float16)[turn % 2]) for turn, name in enumerate(NAMES)]
)


@half_in_turn
def test_a_learning_rate_and_a_weight_decay_may_have_16_bits(name: str, dtype: Any) -> None:
    optimizer = emo_optax.create_optimizer(
        name, jnp.asarray(1e-2, dtype), weight_decay=jnp.asarray(0.1, dtype)
    )
    params = make_params(jnp.float32)
    moves, _ = jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p, value=1.0), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(moves)} == {jnp.dtype(jnp.float32)}
    if name not in OF_EACH_RULE:
        return
    got, _ = train(optimizer, jnp.float32, 3)
    expected, _ = train(emo_optax.create_optimizer(name, 1e-2, weight_decay=0.1), jnp.float32, 3)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-2, atol=1e-3)


PARAMS = jnp.ones((2, 2))
PIECES: dict[str, Callable[[Any], Any]] = {
    "member b1": lambda x: emo_optax.emo_sens(b1=x),
    "member b2": lambda x: emo_optax.emo_navi(b2=x),
    "member eps": lambda x: emo_optax.emo_airy(eps=x),
    "member theta": lambda x: emo_optax.emo_cats(theta=x),
    "member shadow_rate": lambda x: emo_optax.emo_lynx(shadow_rate=x),
    "member short_factor": lambda x: emo_optax.emo_fact(short_factor=x),
    "member long_factor": lambda x: emo_optax.emo_zeal(long_factor=x),
    "member gain": lambda x: emo_optax.emo_clan(gain=x),
    "unused eps": lambda x: emo_optax.emo_lynx(eps=x),
    "ref_max_steps": lambda x: emo_optax.ref_adamw_mini_schedule_free(ref_max_steps=x),
    "ref_alpha": lambda x: emo_optax.ref_adamw_mini_schedule_free(ref_alpha=x),
    "min_lr": lambda x: emo_optax.ref_adamw_mini_schedule_free(min_lr=x),
    "max_lr": lambda x: emo_optax.ref_adamw_mini_schedule_free(max_lr=x),
    "schedulefree_alpha": lambda x: emo_optax.ref_adamw_mini_schedule_free(schedulefree_alpha=x),
    "injection_bound": lambda x: emo_optax.ref_adamw_mini_schedule_free(injection_bound=x),
    "scale_by_uncorrected_adam": lambda x: emo_optax.scale_by_uncorrected_adam(x),
    "scale_by_lion": lambda x: emo_optax.scale_by_lion(b2=x),
    "scale_by_cautious_sign": lambda x: emo_optax.scale_by_cautious_sign(x),
    "scale_by_softsign": lambda x: emo_optax.scale_by_softsign(eps=x),
    "scale_by_factored_moments": lambda x: emo_optax.scale_by_factored_moments(eps=x),
    "filter_by_emotion": lambda x: emo_optax.filter_by_emotion(optax.identity(), x),
    "keep_rows_and_columns": lambda x: emo_optax.keep_rows_and_columns(x),
    "blend_with_shadow": lambda x: emo_optax.blend_with_shadow(shadow_rate=x),
    "share_emotion": lambda x: emo_optax.share_emotion(optax.identity(), long_factor=x),
    "track_emotion": lambda x: emo_optax.track_emotion(gain=x),
    "emotional": lambda x: emo_optax.emotional(optax.sgd(0.1), theta=x),
    "scale_by_runaway": lambda x: emo_optax.scale_by_runaway(eps=x),
    "track_runaway": lambda x: emo_optax.track_runaway(eps=x),
    "bounds": lambda x: emo_optax.scale_by_runaway(bounds=(x, 2.0)),
    "early_stop": lambda x: emo_optax.early_stop(mean_below=x),
    "feel": lambda x: emo_optax.feel(emo_optax.init_emotion(jnp.float32), jnp.ones([]), gain=x),
    "went_quiet": lambda x: emo_optax.went_quiet(jnp.ones(32), jnp.asarray(32), variance_below=x),
    "smooth_norm": lambda x: emo_optax.smooth_norm(jnp.ones([]), jnp.ones([]), x),
    "learning_rate_from_norm": lambda x: emo_optax.learning_rate_from_norm(
        0.1, jnp.ones([]), jnp.ones([]), min_lr=x
    ),
    "injection_strength": lambda x: emo_optax.injection_strength(
        emo_optax.init_divergence(jnp.float32), x, jnp.float32
    ),
    "runaway_emotion": lambda x: emo_optax.runaway_emotion(jnp.ones(4), x),
    "get_metrics": lambda x: emo_optax.get_metrics(
        emo_optax.emo_sens().init(PARAMS), grads=PARAMS, theta=x
    ),
}
COARSE: dict[str, Callable[[], Any]] = {
    "bfloat16": lambda: jnp.asarray(0.5, jnp.bfloat16),
    "float16": lambda: jnp.asarray(0.5, jnp.float16),
    "float8": lambda: jnp.asarray(0.5, jnp.float8_e4m3fn),
    "NumPy's scalar": lambda: np.float16(0.5),
    "NumPy's array": lambda: np.asarray(0.5, np.float16),
    "NumPy's bfloat16": lambda: ml_dtypes.bfloat16(0.5),
}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("kind", COARSE)
def test_a_coarse_hyperparameter_is_refused_with_the_way_out(piece: str, kind: str) -> None:
    with pytest.raises(TypeError, match="Give a Python float or a float32 array"):
        PIECES[piece](COARSE[kind]())


@pytest.mark.parametrize("piece", [name for name in PIECES if name != "get_metrics"])
@half
def test_a_coarse_hyperparameter_is_refused_in_jit(piece: str, dtype: Any) -> None:
    def use(value: Any) -> jax.Array:
        PIECES[piece](value)
        return value  # type: ignore[no-any-return]

    with pytest.raises(TypeError, match=r"hyperparam_dtype=jnp\.float32"):
        jax.eval_shape(use, jnp.asarray(0.5, dtype))


@pytest.mark.parametrize("make", [emo_optax.emo_sens, emo_optax.add_weight_decay])
def test_eight_bits_are_too_few_for_a_learning_rate_or_a_weight_decay(make: Any) -> None:
    with pytest.raises(TypeError, match="Give a Python float or a float32 array"):
        make(jnp.asarray(0.5, jnp.float8_e5m2))


# Strict promotion.

WRAPPED: dict[str, Callable[[str], Any]] = {
    "alone": lambda name: emo_optax.create_optimizer(name, 0.1),
    "kahan": lambda name: emo_optax.create_optimizer(name, 0.1, rounding="kahan"),
    "stochastic": lambda name: emo_optax.create_optimizer(name, 0.1, rounding="stochastic"),
    "scheduled": lambda name: emo_optax.create_optimizer(
        name, lambda step: 0.1 + 0.01 * step.astype(jnp.float32), weight_decay=optax.constant_schedule(0.1)
    ),
    "absolute decay": lambda name: emo_optax.create_optimizer(name, 0.1, weight_decay_mode="absolute"),
    "l2": lambda name: emo_optax.create_optimizer(name, 0.1, weight_decay_mode="l2"),
    "narrow moments": lambda name: emo_optax.create_optimizer(name, 0.1, moment_dtype=jnp.bfloat16),
    "accumulate": lambda name: emo_optax.accumulate(emo_optax.create_optimizer(name, 0.1), 2),
    "chain": lambda name: optax.chain(
        emo_optax.track_runaway(), emo_optax.create_optimizer(name, 0.1), emo_optax.track_emotion()
    ),
    "runaway": lambda name: emo_optax.scale_by_runaway(
        emo_optax.create_optimizer(name, 0.1), bounds=(0.0, 2.0)
    ),
    "injected": lambda name: injected(name, 0.1, hyperparam_dtype=jnp.float32),
}


def shadowed(ratio: str, name: str) -> Any:
    return emo_optax.create_optimizer(name, 0.1, use_shadow=True, shadow_ratio=ratio)


def has(name: str, option: str) -> bool:
    """Returns whether a member has an option."""
    return option in inspect.signature(getattr(emo_optax, name)).parameters


SHADOWED = [name for name in NAMES if has(name, "shadow_ratio")]
DIVIDED = ["emo_cats", "emo_lynx", "emo_neco"]
STRICT: dict[str, tuple[Callable[[str], Any], str]] = {
    **{
        f"{name}, {how}": (make, name)
        for how, make in WRAPPED.items()
        for name in NAMES
        if (how != "narrow moments" or has(name, "moment_dtype"))
        # EmoPilot's steps are not to be scaled from outside.
        and (how != "runaway" or not has(name, "max_courage"))
    },
    **{
        f"{name}, shadow {ratio}": (
            functools.partial(shadowed, ratio),
            name,
        )
        for ratio in ("v1.0", "v2.0")
        for name in SHADOWED
    },
    **{
        f"{name}, divided": (
            lambda name: emo_optax.create_optimizer(
                name, jnp.asarray(0.1, jnp.float16), decoupled_weight_decay=True, weight_decay=0.1
            ),
            name,
        )
        for name in DIVIDED
    },
    "emotional": (lambda _: emo_optax.emotional(optax.sgd(0.1, momentum=0.9), use_shadow=True), ""),
    "softsign": (lambda _: emo_optax.scale_by_softsign(), ""),
    "cautious sign": (lambda _: emo_optax.scale_by_cautious_sign(), ""),
    "round with kahan": (lambda _: emo_optax.round_with_kahan(), ""),
    "round stochastically": (lambda _: emo_optax.round_stochastically(), ""),
    "decay": (lambda _: emo_optax.add_weight_decay(jnp.asarray(0.1, jnp.bfloat16), divisor=0.5), ""),
    "step_first": (lambda _: emo_optax.step_first(optax.sgd(0.1), optax.sgd(0.1)), ""),
    "switch": (
        lambda _: emo_optax.share_emotion(
            emo_optax.switch_by_emotion(
                [emo_optax.scale_by_lion(), emo_optax.scale_by_softsign()],
                lambda s: (s > 0.0).astype(jnp.int32),
            )
        ),
        "",
    ),
}


DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]
REMEMBERING = ("emo_sens", "emo_sens3", "emo_navi36", "emo_pilot", "ref_adamw_mini_schedule_free")
OF_EACH_MEMORY = [f"{name}, alone" for name in REMEMBERING]


def _check_strict(case: str, dtype: Any) -> None:
    make, name = STRICT[case]
    params = make_params(dtype)
    with jax.numpy_dtype_promotion("strict"):
        optimizer = make(name)
        state = jax.eval_shape(optimizer.init, params)
        values = (jnp.asarray(1.0, jnp.float32), jnp.asarray(1.0, dtype), 1.0, 2)
        # Members of one memory read the loss in one place: all losses for one member of each memory and
        # for each piece, and one of them in turn for any other member.
        turn = (list(STRICT).index(case) + DTYPES.index(dtype)) % 4
        has_all = not name or case in OF_EACH_MEMORY
        for value in values if has_all else values[turn : turn + 1]:
            updates, after = jax.eval_shape(
                lambda p, s, v: optimizer.update(p, s, p, value=v, val_value=v), params, state, value
            )
            jax.tree.map(lambda *_: None, after, state)  # An error for another tree.
            assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [
                leaf.dtype for leaf in jax.tree.leaves(state)
            ]
        if name:
            assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}


def _in_turn() -> list[tuple[str, Any]]:
    """Returns each case with a narrow and a wide dtype. A member alone and a piece have all four."""
    cases: list[tuple[str, Any]] = []
    for turn, (case, (_, name)) in enumerate(STRICT.items()):
        has_all = not name or case.endswith(", alone")
        dtypes = DTYPES if has_all else (DTYPES[turn % 2], DTYPES[2 + turn // 2 % 2])
        cases += [(case, dtype) for dtype in dtypes]
    return cases


@pytest.mark.parametrize(("case", "dtype"), _in_turn())
def test_no_dtype_is_promoted_without_a_word(case: str, dtype: Any) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        _check_strict(case, dtype)


@half_in_turn
def test_a_step_outside_of_jit_and_the_metrics_promote_nothing(name: str, dtype: Any) -> None:
    params = make_params(dtype)
    with jax.numpy_dtype_promotion("strict"):
        optimizer = emo_optax.create_optimizer(name, 0.1, rounding="kahan")
        _, state = optimizer.update(params, optimizer.init(params), params, value=1.0)
        if name != "ref_adamw_mini_schedule_free":
            metrics = emo_optax.get_metrics(state, grads=params, learning_rate=0.1)
            assert metrics
            assert all(bool(jnp.isfinite(number)) for number in metrics.values())
