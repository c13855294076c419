"""EmoPilot: Adam's direction, with a step length that the losses and gradients steer."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.hints import with_hints
from emo_optax._checks.validation import (
    check_choice,
    check_decay_rate,
    check_flag,
    check_learning_rate,
    check_loss,
    check_moment_dtype,
    check_not_negative,
    check_order,
    check_params,
    checked_mask,
    hyperparameter,
    is_number,
)
from emo_optax._pieces.averaged_weights import average_rate, init_average, move_average
from emo_optax._pieces.ceiling import step_ceiling
from emo_optax._pieces.dtypes import keep_dtypes
from emo_optax._pieces.emotion import wide_dtype
from emo_optax._pieces.pilot import (
    PilotState,
    SteeredState,
    choose_finite,
    init_pilot,
    learning_rate_at,
    scheduled,
    skip,
    steer,
    whole_sums,
    with_agreement,
)
from emo_optax._pieces.replicas import AxisName, average_over_replicas, check_axis_name
from emo_optax._pieces.rounding import Rounding
from emo_optax._pieces.sums import sums_of
from emo_optax._pieces.weight_decay import MODES, WeightDecayMode
from emo_optax._rules.moments import stored


class PilotMomentsState(NamedTuple):
    """Adam's moments: `mu` of the gradients, `nu` of their squares, trees like the parameters.

    Attributes:
        mu: the running averages of the gradients.
        nu: the running averages of their squares.
    """

    mu: optax.Updates
    nu: optax.Updates


@with_hints
def emo_pilot(
    learning_rate: optax.ScalarOrSchedule = 1e-2,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    min_courage: jax.typing.ArrayLike = 0.03,
    max_courage: jax.typing.ArrayLike = 1000.0,
    gate_limit: jax.typing.ArrayLike = 2.5,
    average: bool = True,
    weight_decay_mode: WeightDecayMode = "decoupled",
    moment_dtype: Any | None = None,
    rounding: Rounding = "nearest",
    axis_name: AxisName = None,
    shard_axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Steps in Adam's direction, with a step length that the losses and the gradients steer.

    .. math::
        g &\leftarrow g\,\min(1,\, 2.5\,N / \lVert g \rVert) \\
        k &\leftarrow \text{courage}(k, a, s), \qquad
            a \leftarrow \frac{\langle g,\, m_{prev} \rangle}{\lVert g \rVert\,\lVert m_{prev} \rVert} \\
        u &= \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon} \\
        p &\leftarrow p - \eta_p\,(u + wd\,p), \qquad
            \eta_p = k\,\min\bigl(\eta,\, 0.08\,\min(0.1, \max(0.02, \mathrm{RMS}(p)))\bigr) \\
        A &\leftarrow A + \min\bigl(1,\, \tfrac{9}{t+8}\bigr)\,(p - A)

    N is the running average of the gradient's norm (see `gate`), s the scale-free emotion (see
    `feel_relative`), k the courage (see `move_courage`), a the agreement, which moves the courage of the
    next step, RMS the root of the mean square of one parameter. Train on p; evaluate, save and export A,
    which `eval_params` finds in the state. A step whose loss or gradient is not finite is skipped: nothing
    moves, and no state changes.

    The learning rate is a start, not a tuned value: a warm-up brings a smaller one to the usual step
    within about 20 steps (see `move_courage`), unless `max_courage` forbids it. A schedule multiplies the
    step by its learning rate over its largest learning rate so far; the results are best without a
    schedule.

    Args:
        learning_rate: eta, a number >= 0 or a schedule.
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: added to the root, >= 0.
        weight_decay: wd, a number >= 0 or a schedule.
        mask: a tree of booleans, or a function from the parameters to one; `True` decays.
        min_courage: the least courage, >= 0.
        max_courage: the largest courage, >= `min_courage`; with 1 (for fine-tuning) no step is longer than
            the learning rate, and there is no warm-up.
        gate_limit: how many times its running average the norm of a gradient may be, >= 0.
        average: whether to keep the averaged weights A; without them the state is a third smaller.
        weight_decay_mode: "decoupled" (p - eta_p wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the floating-point dtype of the moments; `None` for the parameters' dtype, float32 at
            least.
        rounding: how a step is rounded into parameters below float32: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        axis_name: the mapped axes over which the loss is averaged, a name, a tuple of names or `None`; for
            replicas under `jax.shard_map` or `jax.pmap`, whose gradients you average yourself.
        shard_axis_name: the mapped axes over which parameters are split, for norms and products over the
            whole under `jax.shard_map`; `None` where every replica has whole parameters, and under jit.

    Returns:
        A transformation whose `update(grads, state, params, value=loss)` takes the loss at `params`,
        a scalar of any float dtype; its updates have the dtypes of the parameters.

    Raises:
        ValueError: for a hyperparameter out of its range; from `init`, for complex parameters; from
            `update`, without `params` or for a loss that is not a scalar.
        LossMissingError: from `update`, without a loss.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.emo_pilot()
        >>> params = jnp.asarray([[1.0, -2.0], [3.0, 0.5]])
        >>> state = optimizer.init(params)
        >>> for _ in range(100):
        ...     loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
        ...     updates, state = optimizer.update(grads, state, params, value=loss)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(loss < 0.5)
        True

    Source: ours; nearest published: MoMo (arXiv 2305.07583), hypergradient descent (Baydin et al., 2018).
    """
    check_learning_rate(learning_rate)
    check_decay_rate("b1", b1)
    check_decay_rate("b2", b2)
    check_pilot_options(eps, weight_decay, weight_decay_mode, min_courage, max_courage, gate_limit)
    check_flag("average", average)
    check_axis_name(axis_name)
    check_axis_name(shard_axis_name)
    moment_dtype = check_moment_dtype(moment_dtype, "emo_pilot")
    mask_of = None if mask is None else checked_mask(mask)

    def zeros(params: optax.Params) -> optax.Updates:
        return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=moment_dtype or wide_dtype(p)), params)

    def direction(mu: jax.Array, nu: jax.Array, step: jax.Array, dtype: Any) -> jax.Array:
        m, v = mu.astype(dtype), nu.astype(dtype)
        first, second = (correction(rate, step, dtype) for rate in (b1, b2))
        u: jax.Array = (m / first) / (jnp.sqrt(v / second) + hyperparameter(eps, dtype))
        return u

    def products(g: jax.Array, mu: jax.Array) -> tuple[jax.Array, ...]:
        def each(g: jax.Array, mu: jax.Array) -> tuple[jax.Array, ...]:
            m = mu.astype(g.dtype)
            return g * g, g * m, m * m

        return sums_of(each, g, mu)

    def move(g: jax.Array, mu: jax.Array, nu: jax.Array, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
        dtype = g.dtype
        g = g * factor.astype(dtype)
        m, v = mu.astype(dtype), nu.astype(dtype)
        m = m + (1.0 - hyperparameter(b1, dtype)) * (g - m)
        return m, hyperparameter(b2, dtype) * v + (1.0 - hyperparameter(b2, dtype)) * (g * g)

    def init_fn(params: optax.Params) -> SteeredState:
        moments = PilotMomentsState(zeros(params), zeros(params))
        start = init_average(params) if average else ()
        return SteeredState(init_pilot(wide_dtype(params)), moments, (), start)

    def update_fn(
        updates: optax.Updates,
        state: SteeredState,
        params: optax.Params,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SteeredState]:
        del extra_args
        check_params(params)
        old, moments = state.pilot, state.rule
        dtype = old.norm.dtype
        loss = average_over_replicas(check_loss(value, dtype), axis_name)
        weights = jax.tree.map(lambda p: p.astype(wide_dtype(p)), params)
        gradients = jax.tree.map(lambda g, w: g.astype(w.dtype), updates, weights)
        decays = jax.tree.map(lambda _: True, weights) if mask_of is None else mask_of(params)
        decay_rate: Any = weight_decay(old.step) if callable(weight_decay) else weight_decay
        if weight_decay_mode == "l2":
            gradients = jax.tree.map(
                lambda g, w, d: g + jnp.where(d, hyperparameter(decay_rate, g.dtype) * w, 0.0),
                gradients,
                weights,
                decays,
            )
        leaves = zip(*map(jax.tree.leaves, (gradients, moments.mu)), strict=True)
        each = [jnp.stack(products(g, m)).astype(dtype) for g, m in leaves]
        rate = learning_rate_at(learning_rate, old)
        total, means = whole_sums(each, weights, dtype, shard_axis_name)
        pilot, is_finite = steer(
            old,
            loss,
            total[0],
            limit=gate_limit,
            min_courage=min_courage,
            max_courage=max_courage,
            learning_rate=jnp.maximum(old.peak, rate),
        )
        pilot = with_agreement(pilot, total)
        moved = jax.tree.map(lambda g, m, v: move(g, m, v, pilot.gate), gradients, moments.mu, moments.nu)
        mu, nu = (jax.tree.map(lambda _, r, k=k: r[k], gradients, moved) for k in range(2))
        kept = PilotMomentsState(
            choose_finite(is_finite, stored(mu, moments.mu), moments.mu),
            choose_finite(is_finite, stored(nu, moments.nu, is_square=True), moments.nu),
        )
        # From the moments after the step: XLA on a CPU would copy the ones before the step, which the new
        # ones overwrite. Moments in another dtype are rounded only where they are stored.
        if moment_dtype is None:
            mu, nu = kept = jax.lax.optimization_barrier(kept)
        u = jax.tree.map(lambda m, v, g: direction(m, v, pilot.step, g.dtype), mu, nu, gradients)
        pilot, steps = step_lengths(pilot, weights, means, rate)

        def change(u: jax.Array, p: jax.Array, w: jax.Array, length: jax.Array, decays: Any) -> jax.Array:
            length = length.astype(w.dtype)
            rate = hyperparameter(decay_rate, w.dtype)
            down = -length * u
            if weight_decay_mode == "decoupled":
                down = down - jnp.where(decays, length * rate * w, 0.0)
            if weight_decay_mode == "absolute":
                down = down - jnp.where(decays, rate * w, 0.0)
            if p.dtype != w.dtype:
                down = (w + down) - w  # As emo_torch, which moves the weight in float32 and then rounds.
            return jnp.where(is_finite, down, jnp.zeros_like(down))

        changes = jax.tree.map(change, u, params, weights, steps, decays)
        averaged = state.average
        if average:
            after = jax.tree.map(jnp.add, weights, changes)
            averaged = move_average(state.average, after, average_rate(pilot.step, dtype))
            averaged = choose_finite(is_finite, averaged, state.average)
        return changes, SteeredState(skip(is_finite, pilot, old), kept, (), averaged)

    return keep_dtypes(optax.GradientTransformationExtraArgs(init_fn, update_fn), rounding)


def check_pilot_options(
    eps: object,
    weight_decay: object,
    weight_decay_mode: object,
    min_courage: object,
    max_courage: object,
    gate_limit: object,
) -> None:
    """Raises an error for an option of EmoPilot that is out of its range."""
    check_not_negative("eps", eps)
    check_not_negative("weight_decay", weight_decay, may_be_schedule=True)
    check_choice("weight_decay_mode", weight_decay_mode, MODES)
    check_not_negative("min_courage", min_courage)
    check_not_negative("max_courage", max_courage)
    check_order("min_courage", min_courage, "max_courage", max_courage)
    check_not_negative("gate_limit", gate_limit)


def correction(rate: Any, step: jax.Array, dtype: Any) -> jax.Array:
    r"""Returns :math:`1 - b^t`, whose direct form loses 5 digits of float32 where b is near 1."""
    if is_number(rate):
        exponent = jnp.asarray(math.inf if rate == 0 else -math.log(rate), dtype)
    else:
        exponent = -jnp.log(jnp.asarray(rate, dtype))
    return -jnp.expm1(-exponent * step.astype(dtype))


def step_lengths(
    pilot: PilotState, weights: optax.Params, means: list[jax.Array], rate: jax.Array
) -> tuple[PilotState, Any]:
    r"""Returns the step of each parameter, :math:`k\,\frac{\eta}{\eta_{max}} \min(\eta_{max}, C)`."""
    peak = jnp.maximum(pilot.peak, rate)
    if not means:
        return pilot._replace(peak=peak), weights
    ceilings = [step_ceiling(mean) for mean in means]
    lengths = [pilot.courage.courage * scheduled(rate, peak) * jnp.minimum(peak, each) for each in ceilings]
    bounds = [(each < peak).astype(peak.dtype) for each in ceilings]
    longest = functools.reduce(jnp.maximum, lengths)
    pilot = pilot._replace(peak=peak, longest=longest, bound=functools.reduce(jnp.add, bounds) / len(means))
    return pilot, jax.tree.unflatten(jax.tree.structure(weights), lengths)
