import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

LOSSES = [
    3.0,
    2.5,
    2.6,
    2.2,
    2.4,
    2.0,
    1.9,
    2.3,
    1.7,
    1.6,
    9.0,
    1.5,
    1.4,
    1.2,
    1.3,
    1.1,
    1.0,
    0.9,
    1.0,
    0.8,
]


def problem(seed: int = 0, steps: int = 40, dtype: Any = np.float64) -> tuple[Any, list[Any], list[float]]:
    rng = np.random.default_rng(seed)
    params = {"a": rng.normal(size=(4, 3)) * 0.2, "b": rng.normal(size=(3,)), "c": np.array([[0.01]])}
    grads = [
        {
            k: (0.3 * v + 0.1 * rng.normal(size=v.shape)) * (50.0 if t == 20 else 1.0)
            for k, v in params.items()
        }
        for t in range(steps)
    ]
    losses = [LOSSES[t % len(LOSSES)] * 0.9 ** (t // len(LOSSES)) for t in range(steps)]

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x, dtype), tree)

    return cast(params), [cast(g) for g in grads], losses


def adam(v: Any, g: Any, m: Any, t: int) -> Any:
    """Moves Adam's moments; returns his direction."""
    for n in g:
        m[n] = 0.9 * m[n] + 0.1 * g[n]
        v[n] = 0.999 * v.get(n, 0.0) + 0.001 * g[n] ** 2
    return {n: (m[n] / (1 - 0.9**t)) / (np.sqrt(v[n] / (1 - 0.999**t)) + 1e-8) for n in g}


def reference(
    params: Any, grads: list[Any], losses: list[float], lr: float = 1e-2, turn: Any = adam
) -> tuple[Any, Any, float]:
    """The rule in plain NumPy, one number after the other."""
    wd, kmin, kmax = 0.01, 0.03, 1000.0
    p = {k: v.copy() for k, v in params.items()}
    v: Any = {}
    m = {k: np.zeros_like(x) for k, x in p.items()}
    average = {k: x.copy() for k, x in p.items()}
    t, k, q, c, a, a2 = 0, 1.0, 0.0, 0.0, 0.0, 0.0
    short = long = previous = norm_average = 0.0

    for g, loss in zip(grads, losses, strict=True):
        norm = math.sqrt(sum(float((x * x).sum()) for x in g.values()))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            continue
        t += 1
        if t == 1:
            short = long = previous = loss
            norm_average = norm
        sigma = math.sqrt(q / c) if c else 0.0
        d, previous = abs(loss - previous), loss
        if t > 5:
            d, loss = min(d, 4 * sigma), min(loss, short + 8 * sigma)
        short += 0.3 * (loss - short)
        long += max(0.05, 1 / (t + 1)) * (loss - long)
        q, c = 0.95 * q + 0.025 * d * d, 0.95 * c + 0.05
        s = math.tanh((short - long) / (2 * math.sqrt(q / c) + 1e-7 * abs(long))) if t > 5 else 0.0
        factor = min(1.0, 2.5 * norm_average / norm) if t > 1 else 1.0
        g = {n: factor * x for n, x in g.items()}
        if t > 1:
            norm_average += max(0.05, 1 / t) * (factor * norm - norm_average)
            size = math.sqrt(sum(float((x * x).sum()) for x in m.values()))
            # The agreement of this step is for the next step.
            last, a = a, sum(float((g[n] * m[n]).sum()) for n in p) / (factor * norm * size)
            if t > 2:
                a2 += 0.05 * (last * last - a2)
            rise, fall = max(0.0, (s - 0.5) / 0.5), max(0.0, (-s - 0.5) / 0.5)
            if t > 5:
                growth = 0.05 * (1 + 40 / (t + 10)) * (math.tanh(last / math.sqrt(a2)) + 0.4 * fall)
                growth += 6.0 / (t + 20) * max(0.0, math.log(0.008 / (k * lr)))
                k = min(kmax, max(kmin, k * math.exp(-0.2 * rise if s > 0.5 else growth)))
        u = turn(v, g, m, t)
        for n in p:
            ceiling = 0.08 * min(0.1, max(0.02, math.sqrt(float((p[n] ** 2).mean()))))
            step = k * min(lr, ceiling)
            p[n] = p[n] - step * (u[n] + wd * p[n])
            average[n] = average[n] + min(1.0, 9 / (t + 8)) * (p[n] - average[n])
    return p, average, k


def jitted(optimizer: Any) -> Any:
    """Returns the update, compiled as one program: faster than one program for each operation."""
    return jax.jit(lambda g, s, p, loss: optimizer.update(g, s, p, value=loss))


def run(optimizer: Any, params: Any, grads: list[Any], losses: list[float]) -> tuple[Any, Any]:
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    update = jitted(optimizer)
    for g, loss in zip(grads, losses, strict=True):
        updates, state = update(g, state, params, loss)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(tree: Any, other: Any, rtol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), tree, other)


@pytest.mark.parametrize("rate", [1e-4, 1e-2])
def test_the_rule_is_that_of_plain_numpy(rate: float) -> None:
    params, grads, losses = problem()
    with jax.enable_x64(True):
        ended, state = run(emo_optax.emo_pilot(rate), params, grads, losses)
        wanted, average, courage = reference(params, grads, losses, rate)
        assert_close(ended, wanted, 1e-12)
        assert_close(emo_optax.eval_params(state, ended), average, 1e-12)
        assert emo_optax.get_pilot(state).courage == pytest.approx(courage, rel=1e-11)


def test_float32_follows_float64() -> None:
    params, grads, losses = problem(dtype=np.float32)
    ended, _ = run(emo_optax.emo_pilot(1e-2), params, grads, losses)
    wanted, _, _ = reference(*problem())
    assert_close(ended, wanted, 1e-5)


@pytest.mark.parametrize("spike", [1e20, 3e38])
def test_the_noise_falls_again_after_an_early_loss_with_a_square_above_float32(spike: float) -> None:
    def step(state: Any, number: Any) -> tuple[Any, Any]:
        loss = jnp.where(number == 3, jnp.float32(spike), 1.0 + 0.1 * (number % 2))
        state = emo_optax.feel_relative(state, loss, number)
        return state, jnp.stack([jnp.isfinite(part) for part in state]).all()

    first = emo_optax.init_relative_emotion(jnp.float32)
    last, are_finite = jax.lax.scan(step, first, jnp.arange(1, 3000))
    assert bool(are_finite.all())
    assert float(last.square) < 1.0


@pytest.mark.parametrize("place", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_is_skipped(place: str, bad: float) -> None:
    params, grads, losses = problem(dtype=np.float32)
    spoilt, lost = list(grads), list(losses)
    at = {"a": grads[0]["a"] * 0 + np.float32(bad), "b": grads[0]["b"], "c": grads[0]["c"]}
    for index in (0, 7, 30):
        spoilt.insert(index, at if place == "gradient" else grads[index])
        lost.insert(index, losses[index] if place == "gradient" else bad)
    ended, state = run(emo_optax.emo_pilot(1e-2), params, spoilt, lost)
    wanted, other = run(emo_optax.emo_pilot(1e-2), params, grads, losses)
    jax.tree.map(np.testing.assert_array_equal, ended, wanted)
    assert emo_optax.get_pilot(state).skipped == 3
    assert emo_optax.get_pilot(state).steps == emo_optax.get_pilot(other).steps == 40


@pytest.mark.parametrize("unit", [1e-3, 10.0, 100.0])
def test_a_loss_in_another_unit_takes_the_same_steps(unit: float) -> None:
    params, grads, losses = problem(dtype=np.float32)
    scaled = [jax.tree.map(lambda x: np.float32(unit) * x, g) for g in grads]
    optimizer = emo_optax.emo_pilot(1e-2, eps=0.0)
    ended, _ = run(optimizer, params, scaled, [unit * loss for loss in losses])
    wanted, _ = run(optimizer, params, grads, losses)
    assert_close(ended, wanted, 1e-4)


def test_courage_of_at_most_1_never_steps_longer_than_the_learning_rate() -> None:
    params, grads, losses = problem()
    losses = [loss * 0.9**t for t, loss in enumerate(losses)]
    longest = []
    optimizer = emo_optax.emo_pilot(1e-3, max_courage=1.0)
    state, update = optimizer.init(params), jitted(optimizer)
    for g, loss in zip(grads, losses, strict=True):
        _, state = update(g, state, params, loss)
        longest.append(float(emo_optax.get_pilot(state).learning_rate))
    assert max(longest) <= 1e-3 * (1 + 1e-6)
    bold = emo_optax.get_pilot(run(emo_optax.emo_pilot(1e-3), params, grads, losses)[1])
    assert bold.learning_rate > 1e-3


def test_a_schedule_multiplies_the_step_also_where_the_ceiling_bounds_it() -> None:
    params, grads, losses = problem(steps=4)
    lengths = {}
    for name, rate in (("constant", 0.5), ("half", lambda t: jnp.where(t < 3, 0.5, 0.25))):
        _, state = run(emo_optax.emo_pilot(rate), params, grads, losses)
        lengths[name] = float(emo_optax.get_pilot(state).learning_rate)
    assert lengths["half"] == pytest.approx(lengths["constant"] / 2)


def test_a_learning_rate_of_0_moves_nothing() -> None:
    params, grads, losses = problem(dtype=np.float32)
    ended, _ = run(emo_optax.emo_pilot(0.0), params, grads, losses)
    jax.tree.map(np.testing.assert_array_equal, ended, params)


def test_without_averaging_the_state_holds_no_average_and_the_steps_are_the_same() -> None:
    params, grads, losses = problem(dtype=np.float32)
    ended, state = run(emo_optax.emo_pilot(average=False), params, grads, losses)
    wanted, other = run(emo_optax.emo_pilot(), params, grads, losses)
    jax.tree.map(np.testing.assert_array_equal, ended, wanted)

    def size(tree: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert size(other) - size(state) == size(params)
    with pytest.raises(ValueError, match="average=True"):
        emo_optax.eval_params(state, ended)


def test_accumulated_gradients_take_the_step_of_their_mean() -> None:
    params, grads, losses = problem(steps=12, dtype=np.float32)
    halves = [
        jax.tree.map(lambda x, f=f: f * x, g) for g in grads for f in (np.float32(0.5), np.float32(1.5))
    ]
    doubled = [f * loss for loss in losses for f in (0.5, 1.5)]
    ended, _ = run(emo_optax.accumulate(emo_optax.emo_pilot(), 2), params, halves, doubled)
    wanted, _ = run(emo_optax.emo_pilot(), params, grads, losses)
    assert_close(ended, wanted, 1e-5)


def test_empty_and_one_element_leaves_and_an_empty_tree() -> None:
    params = {"none": jnp.zeros((0, 3)), "one": jnp.asarray(2.0), "zero": jnp.zeros(2)}
    grads = [
        {"none": np.zeros((0, 3), np.float32), "one": np.float32(1), "zero": np.zeros(2, np.float32)}
    ] * 8
    ended, state = run(emo_optax.emo_pilot(), params, grads, LOSSES[:8])
    assert 1.0 < ended["one"] < 2.0
    np.testing.assert_array_equal(ended["zero"], 0.0)
    assert np.isfinite(emo_optax.get_pilot(state).courage)
    optimizer = emo_optax.emo_pilot()
    updates, _ = optimizer.update({}, optimizer.init({}), {}, value=1.0)
    assert updates == {}


def test_gradients_of_0_at_first_do_not_close_the_gate() -> None:
    params, grads, losses = problem(dtype=np.float32)
    still = [jax.tree.map(np.zeros_like, grads[0])] * 3
    ended, _ = run(emo_optax.emo_pilot(), params, still + grads, [1.0] * 3 + losses)
    assert all(np.any(ended[name] != params[name]) for name in params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("rounding", ["nearest", "kahan", "stochastic"])
def test_strict_promotion_and_low_precision(dtype: Any, rounding: Any) -> None:
    params, grads, losses = problem(steps=12, dtype=np.float32)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    with jax.numpy_dtype_promotion("strict"):
        ended, _ = run(
            emo_optax.emo_pilot(rounding=rounding),
            params,
            [jax.tree.map(lambda x: jnp.asarray(x, dtype), g) for g in grads],
            losses,
        )
    wanted, _, _ = reference(*problem(steps=12))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(ended))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=12 * 2.0**-8), ended, wanted)


def test_jit_compiles_once() -> None:
    params, grads, losses = problem(dtype=np.float32)
    optimizer, traces = emo_optax.emo_pilot(), list[int]()

    @jax.jit
    def step(g: Any, state: Any, params: Any, loss: Any) -> Any:
        traces.append(1)
        return optimizer.update(g, state, params, value=loss)

    state = optimizer.init(params)
    for g, loss in zip(grads[:3], losses[:3], strict=True):
        _, state = step(g, state, params, jnp.float32(loss))
    assert len(traces) == 1


def test_sharded_parameters_take_the_steps_of_the_whole() -> None:
    params, grads, losses = problem(steps=12, dtype=np.float32)
    params, grads = {"a": params["a"]}, [{"a": g["a"]} for g in grads]
    wanted, _ = run(emo_optax.emo_pilot(), params, grads, losses)
    optimizer = emo_optax.emo_pilot(shard_axis_name="parts")

    def split(x: Any) -> jax.Array:
        return jnp.asarray(x).reshape(2, 2, 3)

    parts, state = jax.vmap(lambda p: (p, optimizer.init(p)))({"a": split(params["a"])})
    update: Any = jax.jit(jax.vmap(jitted(optimizer), (0, 0, 0, None), axis_name="parts"))
    for g, loss in zip(grads, losses, strict=True):
        updates, state = update({"a": split(g["a"])}, state, parts, loss)
        parts = optax.apply_updates(parts, updates)
    np.testing.assert_allclose(parts["a"].reshape(4, 3), wanted["a"], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(*emo_optax.get_pilot(state).courage)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"learning_rate": -1.0}, "learning rate"),
        ({"b1": 1.0}, "b1"),
        ({"b2": -0.1}, "b2"),
        ({"eps": -1.0}, "eps"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"min_courage": 2.0, "max_courage": 1.0}, "min_courage"),
        ({"max_courage": math.inf}, "max_courage"),
        ({"gate_limit": -2.0}, "gate_limit"),
        ({"weight_decay_mode": "none"}, "weight_decay_mode"),
        ({"average": 1}, "average"),
        *[
            ({name: value}, "axis_name")
            for name in ("axis_name", "shard_axis_name")
            for value in (3, "", ("x", "x"))
        ],
        ({"rounding": "up"}, "rounding"),
    ],
)
def test_options_out_of_range(options: Any, problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        emo_optax.emo_pilot(**options)


def test_a_missing_loss_and_complex_parameters() -> None:
    optimizer = emo_optax.emo_pilot()
    state = optimizer.init(jnp.ones(2))
    with pytest.raises(emo_optax.LossMissingError):
        optimizer.update(jnp.ones(2), state, jnp.ones(2))
    with pytest.raises(ValueError, match="complex"):
        optimizer.init(jnp.ones(2, jnp.complex64))


@pytest.mark.parametrize("mode", ["decoupled", "absolute", "l2"])
def test_weight_decay_follows_the_mask(mode: Any) -> None:
    params, grads, losses = problem(dtype=np.float32)
    mask = {"a": True, "b": False, "c": False}
    options = {"weight_decay": 0.1, "weight_decay_mode": mode}
    ended, _ = run(emo_optax.emo_pilot(mask=mask, **options), params, grads[:1], losses[:1])
    free, _ = run(emo_optax.emo_pilot(weight_decay=0.0), params, grads[:1], losses[:1])
    assert np.any(ended["a"] != free["a"]) or mode == "l2"
    np.testing.assert_array_equal(ended["b"], free["b"])
    nested, gradients = {"x": params, "y": params}, [{"x": grads[0], "y": grads[0]}]
    whole = {"x": {"a": True, "b": True, "c": True}, "y": {"a": False, "b": False, "c": False}}
    masks = (whole, {"x": True, "y": False})
    runs = [
        run(emo_optax.emo_pilot(mask=each, **options), nested, gradients, losses[:1])[0] for each in masks
    ]
    jax.tree.map(np.testing.assert_array_equal, *runs)
