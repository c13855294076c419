"""RefAdamWMiniScheduleFree against its definition, and at its edges."""

import copy
import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

Array = np.ndarray[Any, np.dtype[Any]]
ref_adamw = emo_optax.ref_adamw_mini_schedule_free
SHAPES = [(3, 4), (5,), ()]
LOSSES = [1.0, 0.9, 1.2, 1.9, 4.5, 1.0, float("nan"), 1.3, 1.7, 2.2, 2.9, 3.0, 1.0, float("inf"), 0.5, 1.2]


class Reference:
    """The optimizer as the definition says it, in NumPy's float64 and with branches."""

    def __init__(self, params: list[Array], **options: Any) -> None:
        self.o: dict[str, Any] = {
            "learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01,
            "min_lr": 1e-6, "max_lr": 1e-2, "schedulefree_alpha": 0.05, "ref_alpha": 0.5,
            "ref_max_steps": None, "injection_bound": 0.1, "weight_decay_mode": "decoupled", **options,
        }  # fmt: skip
        self.params = [param.copy() for param in params]
        self.m = [np.zeros_like(param) for param in params]
        self.v = [np.zeros_like(param) for param in params]
        self.e: list[float | None] = [None for _ in params]
        self.steps = self.counter = self.level = self.improvements = self.runs = 0
        self.previous: float | None = None
        self.vals: list[float] = []
        self.suppressed = False

    def _watch(self, loss: float | None, val_loss: float | None) -> float | None:
        """Returns how much is injected, or `None`."""
        length = self.o["ref_max_steps"]
        if val_loss is not None and math.isfinite(val_loss):
            self.vals.append(val_loss)
            last = self.vals[-4:]
            patience = min(20, max(10, math.floor(1e-4 * (length or 1000))))
            if len(last) == 4 and last[0] < last[1] < last[2] < last[3]:
                self.suppressed, self.improvements, self.runs = True, 0, 0
            elif self.suppressed and last[-1] < last[-2]:
                self.improvements += 1
                if self.improvements == patience:
                    self.improvements, self.runs = 0, self.runs + 1
                if self.runs == patience:
                    self.suppressed, self.runs = False, 0
            else:
                self.improvements = 0
        if loss is None or not math.isfinite(loss):
            return None
        self.level = 0
        if self.previous is not None:
            ratio = loss / (self.previous + 1e-8)
            self.level = 3 if ratio > 2 else 2 if ratio > 1.5 else 1 if ratio > 1.2 else 0
        self.counter = self.counter + 1 if self.level else 0
        self.previous = loss
        progress = 0.5 if length is None else self.steps / length
        if self.suppressed or not 0.2 <= progress <= 0.8:
            return None
        if self.level == 3 or self.counter >= 3:
            return 1.0
        if self.level == 2 or self.counter == 2:
            return 0.8
        return 0.6 if self.level == 1 or self.counter == 1 else float(self.o["ref_alpha"])

    def step(self, grads: list[Array], loss: float | None, val_loss: float | None = None) -> None:
        o = self.o
        self.steps += 1
        share = self._watch(loss, val_loss)
        for i, grad in enumerate(grads):
            p, decay = self.params[i], o["weight_decay"]
            g = grad + decay * p if o["weight_decay_mode"] == "l2" else grad
            norm = float(np.sqrt(np.sum(g**2)))
            if not math.isfinite(norm):
                continue
            before = self.e[i]
            e = norm if before is None else (1 - o["schedulefree_alpha"]) * before
            e += 0.0 if before is None else o["schedulefree_alpha"] * norm
            self.e[i] = e
            self.m[i] = o["b1"] * self.m[i] + (1 - o["b1"]) * g
            self.v[i] = o["b2"] * self.v[i] + (1 - o["b2"]) * g**2
            lr = max(min(o["max_lr"], o["learning_rate"] * e / (norm + 1e-12)), o["min_lr"])
            step = np.zeros_like(p)
            moving = self.v[i] > 0
            step[moving] = lr * self.m[i][moving] / (np.sqrt(self.v[i][moving]) + o["eps"])
            if o["weight_decay_mode"] != "l2":
                step += decay * p * (lr if o["weight_decay_mode"] == "decoupled" else 1.0)
            self.params[i] = p - step
            if share is not None:
                injected = self.params[i]
                if o["injection_bound"] is not None:
                    bound = o["injection_bound"] * np.sqrt(self.v[i])
                    injected = np.clip(injected, -bound, bound)
                self.m[i] = (1 - share) * self.m[i] + share * injected


def draw(seed: int = 0) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.normal(size=shape) for shape in SHAPES]


class Run:
    """A run with one jitted step, and a count of how often it was traced for each kind of losses."""

    def __init__(self, params: list[Array], dtype: Any = None, **options: Any) -> None:
        self.traces = 0
        self.dtype = dtype
        self.optimizer = ref_adamw(**options)
        self.params: Any = [jnp.asarray(param, dtype) for param in params]
        self.state = self.optimizer.init(self.params)

        def step(params: Any, state: Any, grads: Any, value: Any, val_value: Any) -> Any:
            self.traces += 1
            updates, state = self.optimizer.update(grads, state, params, value=value, val_value=val_value)
            return optax.apply_updates(params, updates), state

        self._step = jax.jit(step, donate_argnums=(0, 1))

    def step(self, grads: list[Array], loss: float | None, val_loss: float | None = None) -> None:
        arrays = [jnp.asarray(grad, self.dtype) for grad in grads]
        self.params, self.state = self._step(self.params, self.state, arrays, loss, val_loss)

    def twin(self) -> "Run":
        """Another run from the start, with the step that is compiled already."""
        other = copy.copy(self)
        other.params = [jnp.asarray(param, self.dtype) for param in draw()]
        other.state = self.optimizer.init(other.params)
        return other

    @property
    def divergence(self) -> emo_optax.DivergenceState:
        return emo_optax.get_divergence(self.state)


def assert_close(ours: Any, theirs: Any, rtol: float = 1e-11) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-12)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"ref_max_steps": 30},
    {"ref_alpha": 0.0, "ref_max_steps": 12, "injection_bound": None},
    {"injection_bound": 0.7, "schedulefree_alpha": 0.5, "min_lr": 9e-4, "max_lr": 1.1e-3},
    {"weight_decay_mode": "absolute"},
    {"weight_decay_mode": "l2", "weight_decay": 0.3, "eps": 1e-3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_does_what_the_definition_says(options: dict[str, Any]) -> None:
    levels = set()
    with jax.enable_x64(True):
        run, reference = Run(draw(), **options), Reference(draw(), **options)
        for step in range(40):
            grads = [(10.0 ** (step % 3 - 1)) * np.asarray(grad) for grad in draw(step + 1)]
            grads[0][0] = 0.0  # Never used: v stays 0 there, unless L2 decay moves it.
            if step % 7 == 3:
                grads[1][:] = 0.0
            if step % 9 == 4:
                grads[1][2] = np.nan
            loss = None if step % 13 == 2 else LOSSES[step % len(LOSSES)]
            run.step(grads, loss)
            reference.step(grads, loss)
            levels.add(reference.level)
            assert_close(run.params, reference.params)
            moments = run.state.moments
            assert_close(moments.mu, reference.m, 1e-10)
            assert_close(moments.nu, reference.v)
            assert int(run.divergence.level) == reference.level
            assert int(run.divergence.diverging) == reference.counter
    assert levels == {0, 1, 2, 3}
    assert run.traces == 2  # With a loss, and without.


def test_overfitting_suppresses_the_injection_until_it_has_long_improved() -> None:
    vals = [1.0, 0.9, 1.0, 1.1, float("nan"), 1.05, 1.1, 1.2, 1.3, *np.linspace(1.2, 1.0, 95), 1.1]
    vals += [1.2, 1.15, *np.linspace(1.1, 0.1, 104), 0.2, 0.3, 0.4, 0.3]
    seen = []
    with jax.enable_x64(True):
        run, reference = Run(draw()[:1]), Reference(draw()[:1])
        for step, val in enumerate(vals):
            run.step(draw(step)[:1], 1.0, float(val))
            reference.step(draw(step)[:1], 1.0, float(val))
            seen.append(bool(run.divergence.suppressed))
            assert seen[-1] == reference.suppressed, step
            assert bool(run.divergence.injects) != reference.suppressed
            assert_close(run.params, reference.params)
    changes = [step for step in range(1, len(seen)) if seen[step] != seen[step - 1]]
    assert len(changes) == 3  # Suppressed, let go, suppressed again.
    assert run.traces == 1


@pytest.mark.parametrize("given", [float("nan"), float("inf"), None])
def test_a_step_without_a_finite_loss_does_not_inject_and_feels_nothing(given: float | None) -> None:
    one = Run(draw())
    other = one.twin()
    for step, loss in enumerate((1.0, given, 1.1)):
        one.step(draw(step), loss, loss)
        other.step(draw(step), *((None, None) if step == 1 else (loss, loss)))
    for ours, theirs in zip(one.params, other.params, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert one.divergence.previous == other.divergence.previous == pytest.approx(1.1)
    assert int(one.divergence.held) == (0 if given is None else 2)
    assert int(one.divergence.felt) == 2
    assert int(one.divergence.steps) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_gradient_without_a_finite_norm_leaves_its_tensor_alone(bad: float) -> None:
    run = Run(draw())
    run.step(draw(1), 1.0)
    before = jax.tree.map(np.array, (run.params, run.state.moments))
    grads = [np.full((3, 4), bad), *draw(2)[1:]]
    run.step(grads, 1.0)
    after = jax.tree.map(np.array, (run.params, run.state.moments))
    assert np.array_equal(after[0][0], before[0][0])
    assert not np.array_equal(after[0][1], before[0][1])
    for ours, theirs in zip(after[1], before[1], strict=True):
        assert np.array_equal(ours[0], theirs[0])
    run.step(draw(3), 1.0)
    assert not np.array_equal(run.params[0], before[0][0])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((run.params, run.state)))


@pytest.mark.parametrize("bound", [0.1, None])
def test_zero_gradients_move_nothing_but_decay(bound: float | None) -> None:
    run = Run(draw(), weight_decay=0.0, injection_bound=bound)
    for _ in range(5):
        run.step([np.zeros(shape) for shape in SHAPES], 1.0)
    for ours, first in zip(run.params, draw(), strict=True):
        np.testing.assert_array_equal(ours, first.astype(np.float32))


@pytest.mark.parametrize("kept", ["float16", "bfloat16"])
def test_moments_of_low_precision_stay_finite_and_near(kept: str) -> None:
    ours, theirs = Run(draw(), moment_dtype=kept), Run(draw())
    for step in range(30):
        # Sizes whose squares float16 does not have, above and below; a step of nothing between.
        size = (5e-3, 1e-6, 0.0, 1.0)[step % 4]
        for run in (ours, theirs):
            run.step([size * grad for grad in draw(step)], 1.0)
    moments = ours.state.moments
    assert {leaf.dtype for leaf in jax.tree.leaves((moments.mu, moments.nu))} == {jnp.dtype(kept)}
    for a, b in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=0.05)
    ours.step([3e4 * grad for grad in draw(1)], 1.0)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((ours.params, ours.state)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_parameters_move_as_wide_ones(dtype: Any) -> None:
    start = [np.asarray(jnp.asarray(param, dtype), np.float32) for param in draw()]
    ours = Run(start, dtype, learning_rate=1e-2, max_lr=0.1)
    theirs = Run(start, jnp.float32, learning_rate=1e-2, max_lr=0.1)
    for step in range(10):
        grads = [np.asarray(grad, np.float16) for grad in draw(step)]
        ours.step(grads, 1.0)
        theirs.step(grads, 1.0)
    for a, b in zip(ours.params, theirs.params, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0.02, atol=0.02)
    assert ours.state.moments.mu[0].dtype == jnp.float32


def test_goes_on_bit_for_bit_and_scans() -> None:
    whole = Run(draw(), ref_max_steps=24)
    resumed = whole.twin()
    stop = int(np.random.default_rng(0).integers(0, 24))
    for step in range(24):
        if step == stop:
            resumed.state = jax.tree.map(jnp.asarray, pickle.loads(pickle.dumps(resumed.state)))
        for run in (whole, resumed):
            run.step(draw(step), LOSSES[step % len(LOSSES)], float(step % 5))
    for one, other in zip(*map(jax.tree.leaves, (whole.state, resumed.state)), strict=True):
        np.testing.assert_array_equal(one, other)

    def body(carry: Any, fed: Any) -> tuple[Any, None]:
        params, state = carry
        grads, loss, val_loss = fed
        updates, state = whole.optimizer.update(grads, state, params, value=loss, val_value=val_loss)
        return (optax.apply_updates(params, updates), state), None

    params = [jnp.asarray(param, jnp.float32) for param in draw()]
    grads = [jnp.asarray(np.stack(leaf), jnp.float32) for leaf in zip(*map(draw, range(24)), strict=True)]
    losses = jnp.asarray([LOSSES[step % len(LOSSES)] for step in range(24)])
    fed = (grads, losses, jnp.arange(24.0) % 5)
    scanned, _ = jax.lax.scan(body, (params, whole.optimizer.init(params)), fed)
    for one, other in zip(*map(jax.tree.leaves, (scanned, (whole.params, whole.state))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_init_works_on_shapes_and_holds_each_buffer_once() -> None:
    params = [jnp.ones(shape) for shape in SHAPES]
    optimizer = ref_adamw(1e-3, mask=[True, False, True])
    state = optimizer.init(params)
    shapes = jax.eval_shape(optimizer.init, params)
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)


def test_the_mask_says_what_decays_and_schedules_count_steps() -> None:
    schedule = optax.piecewise_constant_schedule(1e-3, {2: 0.5})
    optimizer = ref_adamw(schedule, weight_decay=0.1, mask=[True, False, False], min_lr=0.0)
    params = [jnp.asarray(param) for param in draw()]
    state = optimizer.init(params)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, state = optimizer.update(ones, state, params)
    expected = 3.1622776 * 1e-3
    np.testing.assert_allclose(updates[1], -np.full(5, expected), rtol=1e-4)
    np.testing.assert_allclose(updates[0], -expected - 1e-4 * params[0], rtol=1e-4, atol=1e-8)
    for _ in range(2):
        updates, state = optimizer.update(ones, state, params)
    third = updates[1][0]
    plain = ref_adamw(1e-3, weight_decay=0.0, min_lr=0.0)
    twin = plain.init(params)
    for _ in range(3):
        updates, twin = plain.update(ones, twin, params)
    np.testing.assert_allclose(third, 0.5 * updates[1][0], rtol=1e-6)


def test_hyperparameters_may_be_arrays_that_are_not_known_yet() -> None:
    numbers: dict[str, Any] = {
        "learning_rate": 2e-3,
        "ref_max_steps": 10,
        "injection_bound": 0.2,
        "ref_alpha": 0.3,
    }
    injected, plain = optax.inject_hyperparams(ref_adamw)(**numbers), ref_adamw(**numbers)
    params = [jnp.asarray(param, jnp.float32) for param in draw()]
    states = [injected.init(params), plain.init(params)]
    update = [jax.jit(injected.update), jax.jit(plain.update)]
    for step in range(10):
        grads = [jnp.asarray(grad, jnp.float32) for grad in draw(step)]
        both = [one(grads, state, params, value=1.0) for one, state in zip(update, states, strict=True)]
        states = [state for _, state in both]
        assert bool(emo_optax.get_divergence(states[0]).injects) == (2 <= step + 1 <= 8)
        for a, b in zip(both[0][0], both[1][0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8)


def test_it_has_no_emotion() -> None:
    state = ref_adamw().init(jnp.ones(2))
    with pytest.raises(ValueError, match="no emotion"):
        emo_optax.get_emotion(state)
    with pytest.raises(ValueError, match="no divergence"):
        emo_optax.get_divergence(emo_optax.emo_sens().init(jnp.ones(2)))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": -1.0}, "learning rate"),
    ({"b2": 1.0}, "b2"),
    ({"min_lr": -1.0}, "min_lr"),
    ({"max_lr": math.inf}, "max_lr"),
    ({"min_lr": 0.1, "max_lr": 0.01}, "min_lr: 0.1; it must not be above max_lr"),
    ({"schedulefree_alpha": 0.0}, "schedulefree_alpha"),
    ({"ref_alpha": 1.5}, "ref_alpha"),
    ({"ref_max_steps": 0}, "ref_max_steps"),
    ({"ref_max_steps": 2.5}, "ref_max_steps"),
    ({"injection_bound": -0.1}, "injection_bound"),
    ({"weight_decay_mode": "other"}, "weight_decay_mode"),
    ({"moment_dtype": "int8"}, "moment_dtype"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_a_hyperparameter_out_of_its_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ref_adamw(**options)


def test_bad_losses_are_refused() -> None:
    optimizer = ref_adamw()
    params = jnp.ones(2)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="`val_value` must be a scalar"):
        optimizer.update(params, state, params, value=1.0, val_value=jnp.ones(2))
    with pytest.raises(TypeError, match="`val_value` must be the loss"):
        optimizer.update(params, state, params, value=1.0, val_value="0.5")
    with pytest.raises(ValueError, match="`value` must be a scalar"):
        optimizer.update(params, state, params, value=jnp.ones(2))
    with pytest.raises(ValueError, match="`params` was not given"):
        optimizer.update(params, state)
    with pytest.raises(ValueError, match="complex"):
        optimizer.init(jnp.ones(2, jnp.complex64))
