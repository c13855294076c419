"""Weight decay, in the three ways that the family knows."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import with_arrays
from emo_optax._checks.validation import (
    check_choice,
    check_divisor,
    check_not_negative,
    check_params,
    checked_mask,
    hyperparameter,
    initial_value,
    is_number,
)
from emo_optax._pieces.compact_chain import stateless
from emo_optax._pieces.emotion import real_dtype, wide_dtype

WeightDecayMode = Literal["decoupled", "absolute", "l2"]
MODES: tuple[str, ...] = get_args(WeightDecayMode)
"""The modes: p <- p - eta wd p;  p <- p - wd p;  g <- g + wd p."""


class AddWeightDecayState(NamedTuple):
    """The state of weight decay.

    Attributes:
        steps: steps so far, int32 of shape `[]`; `()` where the decay is a number.
        divisor: the learning rate that the decay is divided by, shape `[]`; `()` where there is none.
    """

    steps: jax.Array | tuple[()]
    divisor: jax.Array | tuple[()]


def add_weight_decay(
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    divisor: optax.ScalarOrSchedule | None = None,
    sign: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds a share of the parameters to the updates, in the wider of the two dtypes, float32 at least.

    .. math:: u \leftarrow u + \frac{wd}{\eta_0}\,p

    Its place in a chain decides its meaning: before the rule it is L2, between the rule and the
    learning rate decoupled, after the learning rate (with `sign=-1`) absolute.

    Args:
        weight_decay: the share, a number >= 0 or a schedule.
        mask: a tree of booleans, or a function from the parameters to one; `True` decays.
        divisor: a learning rate whose first value divides the share; a number > 0 or a schedule.
        sign: 1, or -1 where the updates already point downhill.

    Returns:
        A transformation that needs `params`, unless the weight decay is the number 0.

    Raises:
        ValueError: for a hyperparameter out of its range; from `init`, for a
            divisor of 0 in an array; from `update`, without `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> decay = emo_optax.add_weight_decay(0.1)
        >>> updates, _ = decay.update(jnp.zeros(2), decay.init(jnp.ones(2)), jnp.asarray([1.0, 2.0]))
        >>> print(updates)
        [0.1 0.2]

    Source: `decoupled_weight_decay` of EmoCats v2.0 by muooon.
    """
    check_not_negative("weight_decay", weight_decay, may_be_schedule=True)
    # An array is checked in `init` alone: optax.inject_hyperparams makes the transformation again at
    # every step, with the learning rate of the step, and only the first learning rate divides.
    is_late = isinstance(divisor, jax.Array)
    if divisor is not None and not is_late:
        check_divisor(divisor)

    def init_fn(params: optax.Params) -> AddWeightDecayState:
        if is_late:
            check_divisor(divisor)
        return AddWeightDecayState(
            steps=jnp.zeros([], jnp.int32) if callable(weight_decay) else (),
            # Kept, so that it stays the first one under schedules and injected learning rates.
            divisor=() if divisor is None else jnp.array(initial_value(divisor), wide_dtype(params)),
        )

    def update_fn(
        updates: optax.Updates,
        state: AddWeightDecayState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AddWeightDecayState]:
        del extra_args
        if params is None and is_number(weight_decay) and weight_decay == 0:
            return jax.tree.map(lambda update: update.astype(real_dtype(update)), updates), state
        check_params(params)
        state = with_arrays(state, init_fn, params)
        share: Any = weight_decay
        if callable(weight_decay):
            share = weight_decay(state.steps)
            state = state._replace(steps=optax.safe_increment(state.steps))
        if divisor is not None:
            divisor_now = jnp.asarray(state.divisor)
            share = hyperparameter(share, divisor_now.dtype) / divisor_now

        def decay(update: jax.Array, param: jax.Array) -> jax.Array:
            is_single = update.dtype == param.dtype == jnp.float32
            dtype = jnp.float32 if is_single else real_dtype((update, param))
            factor = sign * share
            rate = factor if type(factor) is float else hyperparameter(factor, dtype)
            decayed: jax.Array = rate * param.astype(dtype)
            return update.astype(dtype) + decayed

        return jax.tree.map(decay, updates, params), state

    piece = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    if mask is not None:
        return optax.masked(piece, checked_mask(mask))
    return piece if callable(weight_decay) or divisor is not None else stateless(piece)


def decay_mask(params: optax.Params) -> Any:
    """Returns the usual mask: weights of two or more dimensions decay, biases and norms don't.

    Args:
        params: a tree of parameters, or of anything else that has a number of dimensions.

    Returns:
        A tree of booleans, `True` where a parameter decays; itself fit to be a `mask`.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> print(emo_optax.decay_mask({"weight": jnp.ones((2, 3)), "bias": jnp.ones(2)}))
        {'bias': False, 'weight': True}
        >>> optimizer = emo_optax.emo_sens(1e-3, mask=emo_optax.decay_mask)
    """
    return jax.tree.map(lambda param: len(jnp.shape(param)) >= 2, params)


def place_weight_decay(
    mode: WeightDecayMode,
    weight_decay: optax.ScalarOrSchedule,
    mask: Any | Callable[[optax.Params], Any] | None,
    divisor: optax.ScalarOrSchedule | None = None,
) -> dict[str, optax.GradientTransformation]:
    """Returns the transformations for the places `"l2"`, `"decoupled"` and `"absolute"` of a chain."""
    check_choice("weight_decay_mode", mode, MODES)
    if divisor is not None and mode != "decoupled":
        raise ValueError(
            "decoupled_weight_decay=True needs weight_decay_mode='decoupled'; "
            f"do not pass it with weight_decay_mode={mode!r}"
        )
    decay = add_weight_decay(weight_decay, mask, divisor=divisor, sign=-1.0 if mode == "absolute" else 1.0)
    return {place: decay if place == mode else stateless(optax.identity()) for place in MODES}
