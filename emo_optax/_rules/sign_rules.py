"""Rules that step by a sign: the rules of EmoAiry3 and EmoFact36, of EmoTion, and of EmoVoid.

EmoTion and EmoVoid read the sum of the L1 norms of all parameters. The sum is taken in float32 at least,
over the parameters that the transformation is given: parameters that `optax.masked` or `optax.partition`
leave out do not count and do not move.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.errors import STATE_OF_ANOTHER, EmotionMissingError
from emo_optax._checks.states import check_kind, how_trees_differ
from emo_optax._checks.validation import (
    check_decay_rate,
    check_moment_dtype,
    check_not_negative,
    check_params,
    hyperparameter,
    takes_extra_args,
)
from emo_optax._pieces.emotion import real_dtype, wide_dtype
from emo_optax._pieces.replicas import AxisName, average_over_replicas
from emo_optax._pieces.smoothed_norm import NO_NORM
from emo_optax._rules.moments import step_and_store, zero_moments

HELD_STEPS = 55
"""EmoVoid holds the sum of the norms while its counter is not above this."""


class ScaleBySignState(NamedTuple):
    """The state of a rule that keeps nothing."""


def scale_by_sign(
    b1: jax.typing.ArrayLike = 0.9, b2: jax.typing.ArrayLike = 0.995, eps: jax.typing.ArrayLike = 1e-8
) -> optax.GradientTransformation:
    r"""Takes the sign of the gradient, the rule of EmoVoid, EmoAiry v3.9.1 and EmoFact v3.6.1.

    .. math:: u = \operatorname{sign}(g)

    The published EmoAiry v3.9.1 and EmoFact v3.6.1 divide g by positive averages of its size, whose decay
    rates and `eps` these are, and take the sign of the quotient: the sign of g. The averages are not kept
    here. Where they overflow or the quotient underflows, the published code takes no step; here it does.

    Args:
        b1: a decay rate of the published averages, in [0, 1); without effect.
        b2: the other decay rate of the published averages, in [0, 1); without effect.
        eps: the number that the published code adds to the root, >= 0; without effect.

    Returns:
        A transformation whose updates have the dtype of the gradients, float32 at least.

    Raises:
        ValueError: for a hyperparameter out of its range; in `update`, for a state that has moments.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> rule = emo_optax.scale_by_sign()
        >>> updates, _ = rule.update(jnp.asarray([2.0, 0.0, -1e-30]), rule.init(jnp.ones(3)))
        >>> print(updates)
        [ 1.  0. -1.]

    Source: EmoVoid and EmoAiry v3.9.1, and EmoFact v3.6.1, by muooon.
    """
    check_decay_rate("b1", b1)
    check_decay_rate("b2", b2)
    check_not_negative("eps", eps)

    def init_fn(params: optax.Params) -> ScaleBySignState:
        del params
        return ScaleBySignState()

    def update_fn(
        updates: optax.Updates, state: ScaleBySignState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleBySignState]:
        del params
        if jax.tree.leaves(state):
            problem = how_trees_differ(state, ScaleBySignState())
            raise ValueError(STATE_OF_ANOTHER.format(problem=problem))
        return jax.tree.map(lambda g: jnp.sign(g.astype(real_dtype(g))), updates), state

    return optax.GradientTransformation(init_fn, update_fn)


def sum_of_norms(params: optax.Params, axis_name: AxisName = None) -> jax.Array:
    """Returns the sum of the L1 norms of all parameters, in float32, or float64 where a parameter is.

    Args:
        params: a tree of floating-point arrays of any shapes; sharded arrays count as a whole under
            `jax.jit`.
        axis_name: the mapped axes of replicas, over which the sums are averaged; under `jax.shard_map`,
            if each device holds an equal share of all parameters, the mean is the whole sum over the number
            of devices.

    Returns:
        The sum, shape `[]`; 0 without parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from emo_optax import sum_of_norms
        >>> print(sum_of_norms({"weight": jnp.asarray([[1.0, -2.0]]), "bias": jnp.asarray(0.5)}))
        3.5

    Source: EmoTion and EmoVoid v3.9.1 by muooon.
    """
    dtype = wide_dtype(params)
    total = jnp.zeros([], dtype)
    for leaf in jax.tree.leaves(params):
        total = total + jnp.sum(jnp.abs(leaf.astype(dtype)))
    return average_over_replicas(total, axis_name)


class ScaleByFreshSignState(NamedTuple):
    """The momentum `mu`, a tree like the parameters, and the kept sum of norms; -1 before any.

    Attributes:
        mu: the running averages of the gradients.
        norm: the sum of norms before the last step, shape `[]`.
    """

    mu: optax.Updates
    norm: jax.Array


def scale_by_fresh_sign(
    b1: jax.typing.ArrayLike = 0.9, *, moment_dtype: Any | None = None, axis_name: AxisName = None
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the sign of a momentum that moves faster where the weights move, the rule of EmoTion.

    .. math::
        G = \sum \lVert p \rVert_1, \quad d = \frac{|G - G'|}{G' + 10^{-8}}, \quad
        f = \max(\tanh(d / 0.03),\; 1 - b_1), \quad G' \leftarrow G\,d \\
        a = (1 - b_1)\,f, \quad m \leftarrow (1 - a)\,m + a\,g, \quad u = \operatorname{sign}(m)

    The first step has :math:`f = 1` and keeps G. The sum is over all parameters (see `sum_of_norms`), as
    they are before `blend_by_trust` pulls them to a shadow.

    Args:
        b1: decay rate of the momentum, in [0, 1).
        moment_dtype: the floating-point dtype of the momentum; `None` for the parameters' dtype, float32 at
            least; "8bit" for codes of 8 bits (see `docs/low_precision.md`).
        axis_name: as in `sum_of_norms`.

    Returns:
        A transformation that needs `params`; its updates have the dtype of the gradients, float32 at least.

    Raises:
        ValueError: for a hyperparameter out of its range; from `update`, without `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> rule, params = emo_optax.scale_by_fresh_sign(), jnp.ones(2)
        >>> updates, state = rule.update(jnp.asarray([2.0, -3.0]), rule.init(params), params)
        >>> print(updates, state.norm)
        [ 1. -1.] 2.0

    Source: EmoTion v3.9.1 by muooon.
    """
    check_decay_rate("b1", b1)
    moment_dtype = check_moment_dtype(moment_dtype, "scale_by_fresh_sign", may_be_8bit=True)

    def init_fn(params: optax.Params) -> ScaleByFreshSignState:
        mu = zero_moments(params, moment_dtype)
        return ScaleByFreshSignState(mu, jnp.full([], NO_NORM, wide_dtype(params)))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByFreshSignState,
        params: optax.Params | None = None,
        *,
        unblended: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByFreshSignState]:
        del extra_args
        check_params(params)
        check_kind("norm", state.norm, jnp.floating, ())
        norm = sum_of_norms(params if unblended is None else unblended, axis_name)
        kept = jnp.maximum(state.norm, 0.0)
        is_first = state.norm < 0.0
        rest = 1.0 - hyperparameter(b1, norm.dtype)
        change = jnp.abs(norm - kept) / (kept + 1e-8)
        fresh = jnp.where(is_first, 1.0, jnp.maximum(jnp.tanh(change / 0.03), rest))
        share = (rest * fresh).astype(norm.dtype)

        def move(gradient: jax.Array, moment: jax.Array) -> jax.Array:
            dtype = real_dtype(gradient)
            a = share.astype(dtype)
            moved: jax.Array = (1.0 - a) * moment.astype(dtype) + a * gradient.astype(dtype)
            return moved

        def step(gradients: optax.Updates, mu: optax.Updates) -> tuple[optax.Updates, optax.Updates]:
            moved = jax.tree.map(move, gradients, mu)
            return jax.tree.map(jnp.sign, moved), moved

        updates, (mu,) = step_and_store(step, updates, (state.mu,))
        norm = jnp.where(is_first, norm, norm * change)
        return updates, ScaleByFreshSignState(mu, norm)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class HoldNormState(NamedTuple):
    """The state that keeps the sum of the norms constant.

    Attributes:
        norm: the kept sum of norms, shape `[]`; -1 before any.
        counter: int32 of shape `[]`; the sum is held while it is 55 or less.
        was_quiet: the stop signal of the last step, bool of shape `[]`.
        inner_state: the state of the inner transformation.
    """

    norm: jax.Array
    counter: jax.Array
    was_quiet: jax.Array
    inner_state: optax.OptState


def hold_norm(
    inner: optax.GradientTransformation, *, axis_name: AxisName = None
) -> optax.GradientTransformationExtraArgs:
    r"""Scales all parameters before `inner` moves them, so that the sum of their L1 norms stays.

    .. math:: p \leftarrow \frac{G'}{G + 10^{-8}}\,p, \qquad G = \sum \lVert p \rVert_1

    The parameters are scaled while a counter is 55 or less. The counter starts at 0 and grows by 1 a step.
    If the stop signal rises, the counter is set to 55 after the step: one more step is scaled, to the sum
    of the step at which the signal rose. The first step only keeps G; later G' becomes the sum of the
    scaled parameters.

    Args:
        inner: the transformation that moves the scaled parameters.
        axis_name: as in `sum_of_norms`.

    Returns:
        A transformation that takes the extra argument `pulse` of `share_pulse`, and needs `params`.

    Raises:
        ValueError: from `update`, without `params`.
        EmotionMissingError: from `update`, with no `share_pulse` around it.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.share_pulse(emo_optax.hold_norm(optax.sgd(0.1)))
        >>> params = jnp.asarray([3.0, -1.0])
        >>> updates, state = optimizer.update(params, optimizer.init(params), params, value=1.0)
        >>> print(state.inner_state.norm)
        4.0

    Source: EmoVoid v3.9.1 by muooon.
    """
    inner = takes_extra_args(inner)

    def init_fn(params: optax.Params) -> HoldNormState:
        return HoldNormState(
            norm=jnp.full([], NO_NORM, wide_dtype(params)),
            counter=jnp.zeros([], jnp.int32),
            was_quiet=jnp.zeros([], jnp.bool_),
            inner_state=inner.init(params),
        )

    def update_fn(
        updates: optax.Updates,
        state: HoldNormState,
        params: optax.Params | None = None,
        *,
        pulse: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, HoldNormState]:
        check_params(params)
        if pulse is None:
            raise EmotionMissingError(
                "hold_norm needs the pulse of share_pulse: wrap it, as in "
                "emo_optax.share_pulse(emo_optax.hold_norm(...))"
            )
        check_kind("norm", state.norm, jnp.floating, ())
        check_kind("counter", state.counter, jnp.integer, ())
        check_kind("was_quiet", state.was_quiet, jnp.bool_, ())
        norm = sum_of_norms(params, axis_name)
        is_first, is_held = state.norm < 0.0, state.counter <= HELD_STEPS
        ratio = jnp.maximum(state.norm, 0.0) / (norm + 1e-8)
        ratio = jnp.where(is_held & ~is_first, ratio, jnp.ones([], norm.dtype))
        counter = jnp.minimum(state.counter + 1, HELD_STEPS + 1)
        rises = pulse.should_stop & ~state.was_quiet
        kept = jnp.where(is_held | rises, norm * ratio, state.norm)
        counter = jnp.where(rises, HELD_STEPS, counter).astype(state.counter.dtype)

        def scale(param: jax.Array) -> jax.Array:
            dtype = wide_dtype(param)
            return ratio.astype(dtype) * param.astype(dtype)

        scaled = jax.tree.map(scale, params)
        inner_params = jax.tree.map(lambda moved, p: moved.astype(p.dtype), scaled, params)
        updates, inner_state = inner.update(
            updates, state.inner_state, inner_params, pulse=pulse, **extra_args
        )

        def carry(update: jax.Array, moved: jax.Array, param: jax.Array) -> jax.Array:
            return update.astype(moved.dtype) + (moved - param.astype(moved.dtype))

        updates = jax.tree.map(carry, updates, scaled, params)
        return updates, HoldNormState(kept, counter, pulse.should_stop, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
