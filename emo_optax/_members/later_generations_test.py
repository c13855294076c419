"""The members of v3.6.1 and v3.9.1 against plain NumPy, and in the ways that optimizers are used in."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._members.reference_test import SHAPES, SOME, make_grads, make_params
from emo_optax._pieces.pulse_reference_test import OF_36, THIRD, Reference, spiky_losses

MEMBERS: dict[str, Callable[..., Any]] = {name: getattr(emo_optax, name) for name in (*THIRD, *OF_36)}
every_member = pytest.mark.parametrize("name", MEMBERS)
third_only = pytest.mark.parametrize("name", THIRD)
each_memory = pytest.mark.parametrize("name", ["emo_sens3", "emo_navi36"])
"""For what the memory of the losses decides; `every_member_test.py` has all members in other ways."""


def rate_of(name: str) -> float:
    return 20.0 if name in THIRD else 2e-3


def look(name: str, state: Any) -> Any:
    return (emo_optax.get_pulse if name in THIRD else emo_optax.get_drive)(state)


def run(
    optimizer: Any, params: Any, grads: Any, losses: Any, name: str = "emo_sens3"
) -> tuple[Any, Any, Any]:
    """Runs in one scan: the parameters after each step, the last state, a look after each step."""

    def step(carry: Any, given: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(given[0], state, params, value=given[1])
        params = optax.apply_updates(params, updates)
        return (params, state), (params, look(name, state))

    def whole(params: Any, grads: Any, losses: Any) -> Any:
        (_, state), seen = jax.lax.scan(step, (params, optimizer.init(params)), (grads, losses))
        return seen[0], state, seen[1]

    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *grads)
    every, state, seen = jax.jit(whole)(jax.tree.map(jnp.asarray, params), stacked, jnp.asarray(losses))
    every, seen = jax.tree.map(np.asarray, (every, seen))
    return every, state, seen


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "shadow": {"use_shadow": True, "b1": 0.8, "b2": 0.95, "eps": 1e-6, "weight_decay": 0.1},
    "l2": {"weight_decay": 0.05, "weight_decay_mode": "l2", "use_shadow": True},
    "absolute": {"weight_decay": 0.002, "weight_decay_mode": "absolute"},
    "ours": {"steady": True, "spike_limit": 2.0, "loss_unit": "first", "stopcoef": 0.4},
}


@every_member
@pytest.mark.parametrize("options", OPTIONS)
def test_follows_the_definition(name: str, options: str) -> None:
    if options == "ours" and name in OF_36:
        return
    steps, chosen = 90, dict(OPTIONS[options])
    names = SHAPES if options == "default" else SOME
    losses, params, grads = spiky_losses(steps), make_params(names=names), make_grads(steps, names=names)
    losses[[0, 6, 40]] = np.nan, np.inf, np.nan
    mask = {key: key != "matrix" for key in params}
    reference = Reference(name, params, rate_of(name), mask=mask, **chosen)
    with jax.enable_x64(True):
        optimizer = MEMBERS[name](rate_of(name), mask=mask, **chosen)
        every, _, seen = run(optimizer, params, grads, losses, name)
    expected: dict[str, list[Any]] = {key: [] for key in params}
    looks = []
    for step in range(steps):
        reference.step(grads[step], float(losses[step]))
        for key, leaf in reference.params.items():
            expected[key].append(np.array(leaf))
        memory = reference.memory
        stop = memory.should_stop if name in THIRD else memory.has_stopped
        looks.append((memory.felt, memory.held, stop, memory.trust))
    for key, leaves in expected.items():
        np.testing.assert_allclose(every[key], np.stack(leaves), rtol=1e-12, atol=1e-12, err_msg=key)
    *exact, trusts = zip(*looks, strict=True)
    for found, wanted in zip((seen.felt, seen.held, seen.should_stop), exact, strict=True):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(seen.trust, trusts, atol=1e-12)
    taken = {"up", "settle", "stay"} if name in THIRD else {"fast", "slow", "plain"}
    assert reference.memory.branches >= taken
    far = [abs(s) > 0.625 for s in reference.memory.scalars]
    assert any(far)
    assert not all(far)


@every_member
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_trace_serves_all_and_states_keep_their_kinds(name: str, dtype: Any) -> None:
    schedule = optax.linear_schedule(rate_of(name), 0.1 * rate_of(name), 10)
    optimizer = MEMBERS[name](schedule, weight_decay=optax.constant_schedule(0.01), use_shadow=True)
    params = {key: jnp.asarray(leaf, dtype) for key, leaf in make_params(names=SOME).items()}
    state, traces = optimizer.init(params), []

    def kinds(tree: Any) -> Any:
        return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]

    assert kinds(jax.eval_shape(optimizer.init, params)) == kinds(state)
    leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.size]
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)

    @jax.jit
    def step(params: Any, state: Any, grads: Any, loss: Any) -> Any:
        traces.append(loss)
        with jax.numpy_dtype_promotion("strict"):
            updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    whole = {key: jax.ShapeDtypeStruct(leaf.shape, dtype) for key, leaf in make_params().items()}
    start = (whole, jax.eval_shape(optimizer.init, whole))
    assert kinds(jax.eval_shape(step, *start, whole, jnp.float32(1.0))) == kinds(start)
    traces.clear()
    for grads, loss in zip(
        make_grads(8, names=SOME), (2.0, np.nan, 3e38, 0.0, -1.0, 5.0, 1.0, 1.0), strict=True
    ):
        before = kinds((params, state))
        grads = {key: jnp.asarray(leaf, dtype) for key, leaf in grads.items()}
        params, state = step(params, state, grads, jnp.asarray(loss, jnp.float32))
        assert kinds((params, state)) == before
    assert len(traces) == 1
    for leaf in jax.tree.leaves((params, state)):
        assert np.all(np.isfinite(np.asarray(leaf).astype(np.float64)))
    assert int(look(name, state).held) == 1


@each_memory
def test_many_optimizers_run_side_by_side_under_vmap(name: str) -> None:
    optimizer = MEMBERS[name](rate_of(name), use_shadow=True)
    params = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    losses = jnp.asarray([[1.0, 3.0, 1.0], [1.0, np.nan, 0.2], [0.01, 0.01, 0.01]])

    def step(carry: Any, loss: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jnp.cos(params), state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    def train(params: Any, losses: Any) -> Any:
        return jax.lax.scan(step, (params, optimizer.init(params)), losses)[0][0]

    together, alone = jax.jit(jax.vmap(train))(params, losses), jax.jit(train)
    for index in range(3):
        np.testing.assert_allclose(together[index], alone(params[index], losses[index]), rtol=1e-5)


@every_member
def test_injected_hyperparameters_keep_their_own_dtype(name: str) -> None:
    static = ("mask", "moment_dtype") if "moment_dtype" in _parameters(name) else ("mask",)
    injected = optax.inject_hyperparams(MEMBERS[name], static_args=static, hyperparam_dtype=jnp.float32)
    params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    results = []
    for optimizer in (MEMBERS[name](rate_of(name)), injected(rate_of(name))):
        current, state = params, optimizer.init(params)
        for loss in (1.0, 3.0, 0.5):
            updates, state = optimizer.update(current, state, current, value=loss)
            assert updates["w"].dtype == jnp.bfloat16
            current = optax.apply_updates(current, updates)
        results.append((current["w"], look(name, state)))
    assert isinstance(state, optax.InjectStatefulHyperparamsState)
    assert float(state.hyperparams["b2"]) == pytest.approx(0.995, rel=1e-6)
    np.testing.assert_array_equal(results[0][0].astype(float), results[1][0].astype(float))
    for one, other in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def _parameters(name: str) -> tuple[str, ...]:
    code: Any = MEMBERS[name].__code__
    names: tuple[str, ...] = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return names


@each_memory
def test_wrapped_and_alone_train_alike(name: str) -> None:
    params = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([[3.0]])}
    make = MEMBERS[name]
    wrapped: dict[str, Any] = {
        "alone": make(rate_of(name)),
        "chain": optax.chain(optax.clip_by_global_norm(1e9), make(rate_of(name))),
        "partition": optax.partition({"on": make(rate_of(name))}, {"a": "on", "b": "on"}),
        "MultiSteps": optax.MultiSteps(make(rate_of(name)), 1),
        "accumulate": emo_optax.accumulate(make(rate_of(name)), 1),
    }

    def end(optimizer: Any) -> Any:
        def step(carry: Any, loss: Any) -> Any:
            current, state = carry
            updates, state = optimizer.update(current, state, current, value=loss)
            return (optax.apply_updates(current, updates), state), None

        start = (params, optimizer.init(params))
        current, state = jax.lax.scan(step, start, jnp.asarray([1.0, 2.0, 0.5]))[0]
        return current, look(name, state)

    # One program for all of them: XLA compiles each part that they share once.
    ends = jax.jit(lambda: {way: end(optimizer) for way, optimizer in wrapped.items()})()
    for way, found in ends.items():
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(ends["alone"]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=way)


@every_member
def test_frozen_parameters_are_left_alone_and_count_for_nothing(name: str) -> None:
    params = {"on": jnp.asarray([1.0, -2.0]), "off": jnp.asarray([500.0])}
    optimizer = optax.partition(
        {"on": MEMBERS[name](rate_of(name)), "off": optax.set_to_zero()}, {"on": "on", "off": "off"}
    )
    alone = MEMBERS[name](rate_of(name))
    current, state, single = params, optimizer.init(params), {"on": params["on"]}
    lone = alone.init(single)
    for loss in (1.0, 2.0, 0.5):
        updates, state = optimizer.update(current, state, current, value=loss)
        current = optax.apply_updates(current, updates)
        moves, lone = alone.update(single, lone, single, value=loss)
        single = optax.apply_updates(single, moves)
    np.testing.assert_array_equal(current["off"], params["off"])
    np.testing.assert_array_equal(current["on"], single["on"])


@every_member
def test_bad_input_is_refused_before_anything_has_changed(name: str) -> None:
    make = MEMBERS[name]
    optimizer, params = make(), jnp.ones(2)
    state = optimizer.init(params)
    with pytest.raises(emo_optax.LossMissingError):
        optimizer.update(params, state, params)
    with pytest.raises(ValueError, match="params"):
        optimizer.update(params, state, value=1.0)
    with pytest.raises(ValueError, match="must be a scalar"):
        optimizer.update(params, state, params, value=jnp.ones(2))
    with pytest.raises(ValueError, match="complex"):
        optimizer.init(jnp.ones(2, jnp.complex64))
    with pytest.raises(ValueError, match="The state does not fit this optimizer"):
        optimizer.update(params, make(use_shadow=True).init(jnp.ones(3)), params, value=1.0)
    wrong = {"b1": 1.0, "b2": -0.1, "eps": -1.0, "weight_decay": -1.0, "weight_decay_mode": "L2"}
    wrong |= {"learning_rate": -1.0, "rounding": "up", "mask": {"a": 1}, "use_shadow": 1, "axis_name": 1}
    for option, value in wrong.items():
        with pytest.raises((ValueError, TypeError), match="Invalid"):
            make(**{option: value})


@every_member
def test_state_crosses_the_bridge_and_goes_on(name: str) -> None:
    schedule = optax.linear_schedule(rate_of(name), 0.0, 30)
    optimizer = MEMBERS[name](schedule, use_shadow=True)
    params = {"w": jnp.asarray([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.asarray(0.5)}
    state, losses = optimizer.init(params), (1.0, np.nan, 3.0, 0.2, 0.2)
    for loss in losses:
        _, state = optimizer.update(params, state, params, value=loss)
    arrays = emo_optax.to_arrays(state)
    again = emo_optax.from_arrays(arrays, optimizer.init(params))
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    memory = "pulse" if name in THIRD else "emotion"
    assert {f"{memory}/{field}" for field in ("short", "medium", "long", "scalar", "felt")} < set(arrays)
    broken = {**arrays, f"{memory}/long": np.asarray(np.nan, np.float32)}
    with pytest.raises(ValueError, match="damaged"):
        emo_optax.from_arrays(broken, state)
    with pytest.raises(ValueError, match=r"missing|another optimizer|does not have"):
        emo_optax.from_arrays(emo_optax.to_arrays(emo_optax.emo_sens().init(params)), state)


@every_member
def test_the_metrics_show_the_rate_of_the_step(name: str) -> None:
    optimizer, params = MEMBERS[name](rate_of(name)), jnp.ones(2)
    state = optimizer.init(params)
    for loss in (2.0, 0.1):
        _, state = optimizer.update(params, state, params, value=loss)
    metrics = emo_optax.get_metrics(state, grads=params, learning_rate=rate_of(name))
    if name in THIRD:
        assert set(metrics) == {f"pulse/{field}" for field in emo_optax.Pulse._fields}
        assert metrics["pulse/pulse"] == float(emo_optax.get_pulse(state).pulse)
        with pytest.raises(ValueError, match="get_pulse"):
            emo_optax.get_emotion(state)
        return
    assert metrics["emotion/drive"] == pytest.approx(6.255, abs=1e-3)
    assert metrics["emotion/learning_rate"] == pytest.approx(6.255 * rate_of(name), rel=1e-3)
    assert metrics["emotion/trust"] == pytest.approx(1.0 - metrics["emotion/scalar"], rel=1e-6)
    assert metrics["emotion/medium"] == pytest.approx(1.905, rel=1e-6)
    assert "emotion/masked_share" not in metrics
    assert int(emo_optax.get_emotion(state).felt) == 2
    with pytest.raises(ValueError, match=r"no emotion of v3\.6\.1"):
        emo_optax.get_drive(emo_optax.emo_sens().init(params))


@third_only
def test_the_scope_is_never_overwritten(name: str) -> None:
    scopes = jnp.asarray([1.0, 10.0, 0.0, 1.0])
    optimizer, params = MEMBERS[name](lambda step: scopes[step], weight_decay=0.0), jnp.full(2, 3.0)
    state, pulses = optimizer.init(params), []
    for _ in scopes:
        _, state = optimizer.update(params, state, params, value=1.0)
        pulses.append(float(emo_optax.get_pulse(state).pulse))
    np.testing.assert_allclose(pulses, [1e-4, 1e-3, 1e-8, 1e-4], rtol=1e-5)


@pytest.mark.parametrize("name", OF_36)
def test_the_stop_signal_of_v3_6_1_is_latched(name: str) -> None:
    optimizer, params = MEMBERS[name](1e-3), jnp.ones(2)
    _, _, seen = run(optimizer, params, [np.ones(2, np.float32)] * 40, [0.5] * 34 + [9.0] * 6, name)
    assert [bool(stop) for stop in seen.should_stop] == [False] * 31 + [True] * 9
    assert not bool(seen.is_quiet[-1])
