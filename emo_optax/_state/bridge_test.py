"""The states that the bridge refuses and the parts that it carries over, on this side alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_shared.arrays import check_arrays

PARAMS: Any = {"bias": jnp.ones(3), "weight": jnp.ones((2, 3))}


def test_two_parameters_of_one_name_are_refused() -> None:
    optimizer = emo_optax.emo_sens()
    twice = {"a": {"b": jnp.ones(2)}, "a.b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"'exp_avg/a\.b'"):
        emo_optax.to_arrays(optimizer.init(twice))
    arrays = emo_optax.to_arrays(optimizer.init({"a.b": jnp.ones(3)}))
    with pytest.raises(ValueError, match=r"'exp_avg/a\.b'"):
        emo_optax.from_arrays(arrays, optimizer.init(twice))


def test_states_of_two_members_are_refused() -> None:
    members = {"slow": emo_optax.emo_sens(1e-4), "fast": emo_optax.emo_sens(1e-2)}
    state = optax.partition(members, {"bias": "slow", "weight": "fast"}).init(PARAMS)
    with pytest.raises(ValueError, match="'emotion/"):
        emo_optax.to_arrays(state)


def test_one_member_of_a_partition_is_not() -> None:
    members = {"plain": optax.sgd(1e-2), "emo": emo_optax.emo_sens(1e-2)}
    state = optax.partition(members, {"bias": "plain", "weight": "emo"}).init(PARAMS)
    arrays = emo_optax.to_arrays(state)
    assert "exp_avg/weight" in arrays
    assert "exp_avg/bias" not in arrays


@pytest.mark.parametrize(
    ("name", "length"), [("emo_sens", 23), ("emo_navi36", 29), ("emo_sens3", 31), ("emo_pilot", 37)]
)
def test_a_state_is_read_without_a_program_of_xla(
    name: str, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    # An axis of a length that no other test has, so that no program is in a cache.
    state = jax.vmap(lambda _: emo_optax.create_optimizer(name, 1e-3).init(PARAMS))(jnp.arange(length))
    with jax.log_compiles():
        arrays = emo_optax.to_arrays(state)
        assert [record for record in caplog.records if "Compiling" in record.getMessage()] == []
        # The log is where programs are seen.
        jax.jit(lambda x: x + 1.0)(1.0)
        assert any("Compiling" in record.getMessage() for record in caplog.records)
    assert arrays["exp_avg/weight"].shape == (length, 2, 3)


def test_a_key_beside_a_state_is_no_array_to_copy() -> None:
    state = {"key": jax.random.key(0), "name": "run", "emo": emo_optax.emo_sens().init(PARAMS)}
    assert emo_optax.to_arrays(state)["exp_avg/weight"].shape == (2, 3)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "complex64", "<U4", "S4", "O", "m8[s]"])
def test_floats_are_not_read_from_another_kind(dtype: str) -> None:
    expected = emo_optax.to_arrays(emo_optax.emo_sens().init(PARAMS))
    arrays = {**expected, "exp_avg/bias": np.zeros(3, dtype)}
    with pytest.raises(ValueError, match=r"'exp_avg/bias' holds .*, not floating-point numbers"):
        check_arrays(arrays, expected)


@pytest.mark.parametrize("dtype", [">f4", "float16", "float64", "longdouble", jnp.bfloat16])
def test_floats_of_every_width_are_read(dtype: Any) -> None:
    state = emo_optax.emo_sens().init(PARAMS)
    arrays = emo_optax.to_arrays(state)
    arrays["exp_avg/bias"] = np.full(3, 0.5).astype(dtype)
    arrays["emotion/felt"] = np.asarray(7, ">i8")
    moved = emo_optax.to_arrays(emo_optax.from_arrays(arrays, state))
    np.testing.assert_array_equal(moved["exp_avg/bias"], np.full(3, 0.5, np.float32), strict=True)
    assert moved["emotion/felt"] == 7


def _runs() -> dict[str, Any]:
    injected = optax.inject_hyperparams(emo_optax.emo_sens)
    schedule = optax.linear_schedule(1e-1, 0.0, 10)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), emo_optax.emo_sens(schedule))
    return {
        "bare": emo_optax.emo_sens(schedule, weight_decay=schedule),
        "injected": injected(schedule),
        "injected decay": injected(1e-2, weight_decay=schedule),
        "injected inside": optax.chain(optax.clip_by_global_norm(1.0), injected(schedule, b1=schedule)),
        "injected outside": optax.inject_hyperparams(
            lambda scale: optax.chain(clipped, optax.scale(scale))
        )(schedule),
        "accumulated": emo_optax.accumulate(emo_optax.emo_sens(schedule), lambda step: step // 4 + 1),
        "accumulated by optax": optax.MultiSteps(emo_optax.emo_sens(), lambda step: step // 4 + 1),
    }


@pytest.mark.parametrize("name", _runs())
def test_schedules_go_on(name: str) -> None:
    optimizer = _runs()[name]
    grads = jax.tree.map(lambda param: 0.3 * param, PARAMS)
    stayed = optimizer.init(PARAMS)
    for loss in (1.0, float("nan"), 0.5, 0.7):
        _, stayed = optimizer.update(grads, stayed, PARAMS, value=loss)
    moved = emo_optax.from_arrays(emo_optax.to_arrays(stayed), optimizer.init(PARAMS))
    for loss in (0.6, 0.4):
        ours, stayed = optimizer.update(grads, stayed, PARAMS, value=loss)
        theirs, moved = optimizer.update(grads, moved, PARAMS, value=loss)
        jax.tree.map(np.testing.assert_array_equal, (theirs, moved), (ours, stayed))


@pytest.mark.parametrize("make", [emo_optax.accumulate, optax.MultiSteps])
def test_a_step_that_is_not_complete_is_refused(make: Any) -> None:
    optimizer = make(emo_optax.emo_sens(), 3)
    state = optimizer.init(PARAMS)
    for step in range(3):
        _, state = optimizer.update(PARAMS, state, PARAMS, value=1.0)
        if step < 2:
            with pytest.raises(ValueError, match=rf"gradients of {step + 1} micro-batches"):
                emo_optax.to_arrays(state)
    assert emo_optax.to_arrays(state)["emotion/felt"] == 1


@pytest.mark.parametrize("name", ["emo_airy", "emo_clan", "emo_fact", "emo_zeal"])
def test_vectors_of_the_factored_rule_have_the_names_of_moments(name: str) -> None:
    state = emo_optax.create_optimizer(name).init({"w": jnp.ones((2, 3)), "b": jnp.ones(3)})
    arrays = emo_optax.to_arrays(state)
    begin = "fact_" if name == "emo_clan" else ""
    assert {arrays[f"{begin}{kind}/b"].shape for kind in ("exp_avg", "exp_avg_sq")} == {(3,)}
    assert (arrays[f"{begin}row/w"].shape, arrays[f"{begin}column/w"].shape) == ((2, 1), (1, 3))
    assert not {f"{begin}row/b", f"{begin}column/b", f"{begin}exp_avg/w"} & arrays.keys()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: emo_optax.average_weights(emo_optax.emo_cats()), "`average_weights` has no plain arrays"),
        (lambda: emo_optax.average_weights(emo_optax.emo_pilot()), "`average_weights`"),
        (lambda: optax.chain(emo_optax.gate_by_norm(), emo_optax.emo_cats()), "`gate_by_norm`"),
        (lambda: optax.chain(optax.trace(0.9), emo_optax.emo_cats()), r"\[0\]\.trace.*of the shape \(3,\)"),
        (
            lambda: optax.MultiSteps(
                optax.chain(optax.ema(0.9), emo_optax.emo_cats()), 2
            ).gradient_transformation(),
            "another transformation",
        ),
    ],
)
def test_states_that_arrays_would_carry_in_part_are_refused(make: Any, what: str) -> None:
    state = make().init(PARAMS)
    arrays = emo_optax.to_arrays(emo_optax.emo_cats().init(PARAMS))
    for call in (lambda: emo_optax.to_arrays(state), lambda: emo_optax.from_arrays(arrays, state)):
        with pytest.raises(ValueError, match=what):
            call()


def test_numbers_of_other_transformations_may_stay_behind() -> None:
    clipped = optax.chain(
        optax.adaptive_grad_clip(0.1), emo_optax.emo_sens(optax.cosine_decay_schedule(0.1, 9))
    )
    safe = optax.apply_if_finite(emo_optax.scale_by_runaway(clipped), 3)
    arrays = emo_optax.to_arrays(emo_optax.accumulate(safe, 2).init(PARAMS))
    assert set(arrays) == set(emo_optax.to_arrays(emo_optax.emo_sens().init(PARAMS)))


def test_numbers_beyond_their_dtype_are_refused() -> None:
    state = emo_optax.emo_sens().init(PARAMS)
    arrays = emo_optax.to_arrays(state)
    for name, value, what in (
        ("emotion/felt", np.asarray(2**40), "count beyond 2147483647"),
        ("emotion/short", np.asarray(1e300), "'emotion/short' has a number that float32 cannot hold"),
        ("exp_avg_sq/bias", np.full(3, 1e300), "'exp_avg_sq/bias'"),
    ):
        with pytest.raises(ValueError, match=what):
            emo_optax.from_arrays({**arrays, name: value}, state)
