"""RefAdamWMiniScheduleFree: AdamW that adds the parameters to its momentum in the middle of a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.hints import with_hints
from emo_optax._checks.states import first_node_of
from emo_optax._checks.validation import (
    check_at_most_one,
    check_decay_rate,
    check_factor,
    check_learning_rate,
    check_loss,
    check_max_steps,
    check_moment_dtype,
    check_not_negative,
    check_order,
    hyperparameter,
)
from emo_optax._pieces.divergence import (
    DivergenceState,
    init_divergence,
    injection_strength,
    update_divergence,
)
from emo_optax._pieces.dtypes import keep_dtypes
from emo_optax._pieces.emotion import wide_dtype
from emo_optax._pieces.replicas import AxisName, average_over_replicas, check_axis_name
from emo_optax._pieces.rounding import Rounding
from emo_optax._pieces.smoothed_norm import NO_NORM, learning_rate_from_norm, smooth_norm
from emo_optax._pieces.weight_decay import MODES, WeightDecayMode, place_weight_decay
from emo_optax._rules.moments import average, stored, widened, zero_moments


class RefMomentsState(NamedTuple):
    """The moments: `mu`, `nu`, trees like the parameters, and `norm`, for each a number, -1 at first.

    Attributes:
        mu: the running averages of the gradients, a tree like the parameters.
        nu: the running averages of their squares, a tree like the parameters.
        norm: the smoothed norm of each gradient, shape `[]`; -1 before the first step.
    """

    mu: optax.Updates
    nu: optax.Updates
    norm: optax.Updates


class RefAdamWMiniScheduleFreeState(NamedTuple):
    """The statistics of the losses, the moments, and the states of weight decay.

    Attributes:
        divergence: the averages of the losses.
        moments: the moments of the parameters.
        weight_decay: the states of the three ways of weight decay, by name.
    """

    divergence: DivergenceState
    moments: RefMomentsState
    weight_decay: dict[str, optax.OptState]


@with_hints
def ref_adamw_mini_schedule_free(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    min_lr: jax.typing.ArrayLike = 1e-6,
    max_lr: jax.typing.ArrayLike = 1e-2,
    schedulefree_alpha: jax.typing.ArrayLike = 0.05,
    ref_alpha: jax.typing.ArrayLike = 0.5,
    ref_max_steps: Any | None = None,
    injection_bound: jax.typing.ArrayLike | None = 0.1,
    weight_decay_mode: WeightDecayMode = "decoupled",
    moment_dtype: Any | None = None,
    rounding: Rounding = "nearest",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Steps by Adam's moments, with a learning rate for each tensor, and adds parameters to the momentum.

    .. math::
        m &\leftarrow b_1 m + (1-b_1)\,g, \quad v \leftarrow b_2 v + (1-b_2)\,g^2, \quad
        e \leftarrow (1-A)\,e + A\,\lVert g \rVert_2 \\
        \eta' &= \max(\min(\eta_{max}, \frac{\eta\,e}{\lVert g \rVert_2 + 10^{-12}}), \eta_{min}) \\
        p &\leftarrow p - \eta'\,wd\,p - \eta'\,[\,v > 0\,]\,\frac{m}{\sqrt{v} + \epsilon} \\
        m &\leftarrow (1-a)\,m + a\,\operatorname{clip}(p, -c\sqrt{v}, c\sqrt{v})

    The last line, the injection, takes place if a loss is given, at 0.2 to 0.8 of the run, and if the
    validation losses show no overfitting; a is `ref_alpha`, and larger while a loss diverges (see
    `update_divergence` and `injection_strength`). There is no emotion; `get_divergence` shows the averages
    of the losses.

    The published code has no bound c on the injection (`injection_bound=None`): where the gradient, and so
    v, is small, the injected parameter is many times larger than a gradient, and real networks become NaN
    within some steps. With c = 0.1 the injection adds at most as much as one gradient of usual size adds,
    :math:`(1 - b_1) \sqrt{v}`.

    A tensor whose gradient has no finite norm is skipped: its parameters, moments and smoothed norm stay.
    Losses that are not finite count as missing.

    Args:
        learning_rate: eta, a number >= 0 or a schedule; 0, too, is raised to `min_lr`.
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: the number added to the root, >= 0.
        weight_decay: wd, a number >= 0 or a schedule.
        mask: a tree of booleans, or a function from the parameters to one; `True` decays.
        min_lr: the least learning rate of a tensor, >= 0.
        max_lr: the largest learning rate of a tensor, >= `min_lr`.
        schedulefree_alpha: A, the weight of a new norm in the smoothed one, in (0, 1].
        ref_alpha: a while no loss diverges, in [0, 1].
        ref_max_steps: the length of the run in steps, a whole number >= 1; `None` if it is not known: then
            every step with a loss injects, and the injection pulls the weights towards 0 until the end of
            the run.
        injection_bound: c, >= 0; `None` for no bound, as published.
        weight_decay_mode: "decoupled" (p - eta' wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the moments' floating-point dtype, such as float16 or bfloat16, in which they are
            coarse; `None` for the parameters' dtype, float32 at least.
        rounding: how a step is rounded into parameters below float32: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        axis_name: the mapped axes over which both losses are averaged, a name, a tuple of names or
            `None`; for replicas under `jax.shard_map` or `jax.pmap`, whose gradients you average yourself.

    Returns:
        A transformation whose `update(grads, state, params, value=loss, val_value=val_loss)` takes both
        losses, scalars of any float dtype, or neither; its updates have the parameters' dtypes.

    Raises:
        ValueError: for a hyperparameter out of its range; from `init`, for complex parameters; from
            `update`, without `params` or for a loss that is not a scalar.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.ref_adamw_mini_schedule_free(1e-2)
        >>> params = jnp.asarray([1.0, -2.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(30):
        ...     loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
        ...     updates, state = optimizer.update(grads, state, params, value=loss)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(jnp.sum(params**2) < loss), int(emo_optax.get_divergence(state).steps)
        (True, 30)

    Source: RefAdamWMiniScheduleFree by muooon.
    """
    check_learning_rate(learning_rate)
    check_decay_rate("b1", b1)
    check_decay_rate("b2", b2)
    check_not_negative("eps", eps)
    check_not_negative("min_lr", min_lr)
    check_not_negative("max_lr", max_lr)
    check_order("min_lr", min_lr, "max_lr", max_lr)
    check_factor("schedulefree_alpha", schedulefree_alpha)
    check_at_most_one("ref_alpha", ref_alpha)
    check_max_steps(ref_max_steps)
    if injection_bound is not None:
        check_not_negative("injection_bound", injection_bound)
    check_axis_name(axis_name)
    dtype_of_moments = check_moment_dtype(moment_dtype, "ref_adamw_mini_schedule_free")
    decay = place_weight_decay(weight_decay_mode, weight_decay, mask)

    def init_fn(params: optax.Params) -> RefAdamWMiniScheduleFreeState:
        return RefAdamWMiniScheduleFreeState(
            divergence=init_divergence(wide_dtype(params)),
            moments=RefMomentsState(
                mu=zero_moments(params, dtype_of_moments),
                nu=zero_moments(params, dtype_of_moments),
                norm=jax.tree.map(lambda p: jnp.full([], NO_NORM, wide_dtype(p)), params),
            ),
            weight_decay={place: decay[place].init(params) for place in MODES},
        )

    def update_fn(
        updates: optax.Updates,
        state: RefAdamWMiniScheduleFreeState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        val_value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RefAdamWMiniScheduleFreeState]:
        del extra_args
        before, moments, decays = state.divergence, state.moments, dict(state.weight_decay)

        def taken_in(name: str, loss: Any) -> jax.Array | None:
            if loss is None:
                return None
            return average_over_replicas(check_loss(loss, before.previous.dtype, name), axis_name)

        loss, val_loss = taken_in("value", value), taken_in("val_value", val_value)
        divergence = update_divergence(before, loss, val_loss, ref_max_steps=ref_max_steps)
        eta: Any = learning_rate(before.steps) if callable(learning_rate) else learning_rate

        def add_decay(place: str, tree: optax.Updates) -> optax.Updates:
            tree, decays[place] = decay[place].update(tree, decays[place], params)
            return tree

        gradients = add_decay("l2", widened(updates))
        # Squares written as in `row_and_column_means`, so that XLA does not merge them with the squares
        # below.
        norms = jax.tree.map(lambda g: jnp.sqrt(-jnp.sum(g * -g)), gradients)
        is_finite = jax.tree.map(jnp.isfinite, norms)

        def unless_finite(new: optax.Updates, old: optax.Updates) -> optax.Updates:
            return jax.tree.map(lambda ok, n, o: jnp.where(ok, n, o.astype(n.dtype)), is_finite, new, old)

        mu = jax.tree.map(lambda g, m: average(g, m, b1), gradients, moments.mu)
        mu = unless_finite(mu, moments.mu)
        squares = jax.tree.map(jnp.square, gradients)
        nu = jax.tree.map(lambda square, v: average(square, v, b2), squares, moments.nu)
        nu = unless_finite(nu, moments.nu)
        norm = jax.tree.map(lambda e, n: smooth_norm(e, n, schedulefree_alpha), moments.norm, norms)
        direction = add_decay("decoupled", jax.tree.map(lambda m, v: _over_root(m, v, eps), mu, nu))
        updates = jax.tree.map(
            lambda d, e, n: -learning_rate_from_norm(eta, e, n, min_lr=min_lr, max_lr=max_lr) * d,
            direction,
            norm,
            norms,
        )
        updates = add_decay("absolute", updates)
        updates = unless_finite(updates, jax.tree.map(jnp.zeros_like, updates))

        def inject(ok: jax.Array, m: jax.Array, v: jax.Array, p: jax.Array, update: jax.Array) -> jax.Array:
            share = injection_strength(divergence, ref_alpha, m.dtype)
            weight = p.astype(m.dtype) + update.astype(m.dtype)
            if injection_bound is not None:
                # c sqrt(v), to the bit; XLA on a CPU would write a root that it finds twice to memory.
                bound = hyperparameter(injection_bound, m.dtype) * 2.0 * jnp.sqrt(0.25 * v)
                weight = jnp.clip(weight, -bound, bound)
            return jnp.where(ok & (share > 0.0), (1.0 - share) * m + share * weight, m)

        mu = jax.tree.map(inject, is_finite, mu, nu, params, updates)
        moments = RefMomentsState(stored(mu, moments.mu), stored(nu, moments.nu, is_square=True), norm)
        return updates, RefAdamWMiniScheduleFreeState(divergence, moments, decays)

    return keep_dtypes(optax.GradientTransformationExtraArgs(init_fn, update_fn), rounding)


def _over_root(m: jax.Array, v: jax.Array, eps: jax.typing.ArrayLike) -> jax.Array:
    """Returns m / (sqrt(v) + eps), and 0 where v is 0: there eps alone would divide."""
    return jnp.where(v > 0.0, m / (jnp.sqrt(v) + jnp.asarray(eps, v.dtype)), jnp.zeros([], v.dtype))


def get_divergence(state: optax.OptState) -> DivergenceState:
    """Finds the loss statistics of `ref_adamw_mini_schedule_free` in any nested state.

    Args:
        state: the state of such an optimizer, at any depth inside of wrappers.

    Returns:
        Its counts, levels and last losses, as arrays.

    Raises:
        ValueError: if the state holds none.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> optimizer = emo_optax.ref_adamw_mini_schedule_free(1e-3)
        >>> params = jnp.ones(2)
        >>> _, state = optimizer.update(params, optimizer.init(params), params, value=0.7)
        >>> print(emo_optax.get_divergence(state).injects)
        True
    """
    found = first_node_of(state, DivergenceState)
    if found is None:
        raise ValueError(
            "There is no divergence in this state. Pass the state of an optimizer made by "
            "emo_optax.ref_adamw_mini_schedule_free, or of a chain or wrapper around one."
        )
    return DivergenceState(*(jnp.asarray(field) for field in found))
