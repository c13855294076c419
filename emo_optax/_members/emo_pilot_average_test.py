import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.emo_pilot_test import jitted, problem, run


@pytest.mark.parametrize("wrap", ["chain", "masked", "partition", "multi_steps"])
def test_averages_are_found_in_what_stands_around(wrap: str) -> None:
    params, grads, losses = problem(dtype=np.float32)
    pilot = emo_optax.emo_pilot()
    optimizer = {
        "chain": optax.chain(optax.clip_by_global_norm(1e9), pilot),
        "masked": optax.masked(pilot, {"a": True, "b": False, "c": True}),
        "partition": optax.partition(
            {"x": pilot, "y": emo_optax.emo_pilot(1e-3)}, {"a": "x", "b": "y", "c": "x"}
        ),
        "multi_steps": optax.MultiSteps(pilot, 1).gradient_transformation(),
    }[wrap]
    if wrap == "masked":
        optimizer = optax.chain(
            optimizer, optax.masked(optax.set_to_zero(), {"a": False, "b": True, "c": False})
        )
    ended, state = run(optimizer, params, grads, losses)
    average = emo_optax.eval_params(state, ended)
    moved = jax.tree.map(lambda a, p: bool(np.any(a != p)), average, ended)
    assert moved == {"a": True, "b": wrap != "masked", "c": True}


def test_a_mask_may_stand_for_a_whole_branch() -> None:
    params = {"head": {"w": jnp.ones(3), "b": jnp.zeros(2)}, "body": {"w": jnp.ones(4)}}
    optimizer = optax.masked(emo_optax.emo_pilot(), {"head": True, "body": False})
    state, update = optimizer.init(params), jitted(optimizer)
    for _ in range(5):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params, 1.0)
        updates["body"] = jax.tree.map(jnp.zeros_like, params["body"])
        params = optax.apply_updates(params, updates)
    average = emo_optax.eval_params(state, params)
    assert np.any(average["head"]["w"] != params["head"]["w"])
    np.testing.assert_array_equal(average["body"]["w"], params["body"]["w"])


def test_a_masked_branch_without_arrays_moves_no_average_to_another_parameter() -> None:
    # The state has holes for `a` and `c`, as many as `c` has parameters.
    params = {"a": {}, "b": jnp.ones(3), "c": {"x": jnp.full(3, 2.0), "y": jnp.full(3, 3.0)}}
    optimizer = optax.masked(emo_optax.emo_pilot(0.1), {"a": False, "b": True, "c": False})
    state, grads = optimizer.init(params), jax.tree.map(jnp.ones_like, params)
    for _ in range(3):
        updates, state = jitted(optimizer)(grads, state, params, 1.0)
        params = {**params, "b": params["b"] + updates["b"]}
    average = emo_optax.eval_params(state, params)
    assert np.all(average["b"] > params["b"])
    assert [float(value[0]) for value in average["c"].values()] == [2.0, 3.0]


def test_the_average_needs_values_and_not_only_shapes() -> None:
    pilot, params = emo_optax.emo_pilot(), {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(TypeError, match=r"call jax.eval_shape\(optimizer.init, params\)"):
        pilot.init(params)
    assert jax.eval_shape(pilot.init, params).average["w"] == params["w"]
    assert emo_optax.emo_pilot(average=False).init(params).average == ()


def test_parameters_of_other_names_are_refused() -> None:
    state = emo_optax.emo_pilot().init({"a": jnp.ones(3), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match="another tree structure than params"):
        emo_optax.eval_params(state, {"a": jnp.ones(3), "c": jnp.ones(3)})


def test_an_average_of_other_shapes_is_refused_and_average_weights_stands_outside() -> None:
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"another tree structure than params.*average_weights"):
        emo_optax.eval_params(emo_optax.emo_pilot().init({"a": jnp.ones(3)}), params)
    with pytest.raises(ValueError, match=r"shape \(9,\) where params has.*optax\.flatten"):
        emo_optax.eval_params(optax.flatten(emo_optax.emo_pilot()).init(params), jnp.ones(3))
    flat = emo_optax.average_weights(optax.flatten(emo_optax.emo_pilot(average=False)))
    ended, state = run(flat, params, [jax.tree.map(jnp.ones_like, params)] * 2, [1.0, 0.9])
    average = emo_optax.eval_params(state, ended)
    assert jax.tree.map(jnp.shape, average) == jax.tree.map(jnp.shape, params)
    complex_params = {"c": jnp.asarray([1 + 1j, 2.0]), "r": jnp.ones(2)}
    split = emo_optax.bind_extra_args(optax.contrib.split_real_and_imaginary, emo_optax.emo_pilot())
    with pytest.raises(ValueError, match=r"another tree structure than params"):
        emo_optax.eval_params(split.init(complex_params), complex_params)
