"""Gradient accumulation under which the optimizer sees the mean of the losses, not the last one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import with_arrays
from emo_optax._checks.validation import check_every_k_schedule, check_loss, takes_extra_args
from emo_optax._pieces.emotion import wide_dtype
from emo_optax._pieces.replicas import AxisName, average_over_replicas, check_axis_name


class AccumulateState(NamedTuple):
    """The mean loss and the mean gradient since the last step.

    Attributes:
        loss: the mean of the losses since then, shape `[]`; 0 right after a step.
        multi_steps: the state of `optax.MultiSteps`, with the gradients' mean.
    """

    loss: jax.Array
    multi_steps: optax.MultiStepsState


def accumulate(
    inner: optax.GradientTransformation,
    every_k_schedule: int | Callable[[jax.Array], jax.typing.ArrayLike],
    should_skip_update_fn: Any | None = None,
    *,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Steps once for every k micro-batches, by the means of their gradients and of their losses.

    .. math:: mean \leftarrow mean + \frac{L - mean}{i + 1}, \qquad i = 0, \dots, k - 1

    `optax.MultiSteps` does the work, but it passes only the last loss of each k to its optimizer; here the
    optimizer gets the mean. Between the steps the updates are zeros. If one loss is not finite, the mean is
    not finite, and the optimizer counts it as held.

    If all micro-batches fit one call, `optax.microbatching.microbatch` around `jax.value_and_grad` is
    simpler: it returns the means, and the optimizer needs no wrapper.

    Args:
        inner: the optimizer; it takes the mean as `value`, and other extra arguments of the k-th call.
        every_k_schedule: k, a whole number >= 1, or a function from the number of steps made so far,
            an int32 array of shape `[]`, to one.
        should_skip_update_fn: as in `optax.MultiSteps`, for example `optax.skip_not_finite`; a
            micro-batch that is skipped is left out with its loss.
        axis_name: the mapped axes over which each loss is averaged, a name, a tuple of names or `None`;
            for replicas under `jax.shard_map` or `jax.pmap`, whose gradients you average yourself.
            `inner` needs none then.

    Returns:
        A transformation, also for `optax.chain`, whose `update` takes a micro-batch's loss as `value`.

    Raises:
        ValueError: for a k below 1; from `update`, for a loss that is not a scalar.
        LossMissingError: from `update`, without a loss.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> optimizer = emo_optax.accumulate(emo_optax.emo_sens(1e-3), 3)
        >>> params = jnp.ones(2)
        >>> state = optimizer.init(params)
        >>> for loss in (1.0, 2.0, 6.0):
        ...     updates, state = optimizer.update(jnp.ones(2), state, params, value=loss)
        >>> print(emo_optax.get_emotion(state).long)
        3.0

    Source: this project.
    """
    check_axis_name(axis_name)
    multi_steps = optax.MultiSteps(
        takes_extra_args(inner),
        check_every_k_schedule(every_k_schedule),
        should_skip_update_fn=should_skip_update_fn,
    )

    def init_fn(params: optax.Params) -> AccumulateState:
        return AccumulateState(jnp.zeros([], wide_dtype(params)), multi_steps.init(params))

    def update_fn(
        updates: optax.Updates,
        state: AccumulateState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AccumulateState]:
        state = with_arrays(state, init_fn, updates if params is None else params)
        loss = average_over_replicas(check_loss(value, state.loss.dtype), axis_name)
        before = state.multi_steps.mini_step
        # In this form k equal losses have themselves as their mean, to the last bit.
        mean = state.loss + (loss - state.loss) / (before + 1).astype(loss.dtype)
        with jax.numpy_dtype_promotion("standard"):  # optax.MultiSteps relies on it.
            updates, after = multi_steps.update(
                updates, state.multi_steps, params, value=mean, **extra_args
            )
        # A micro-batch that is skipped moves no counter; one that completes a step sets it to 0.
        mean = jnp.where(after.mini_step == before, state.loss, mean)
        mean = jnp.where(after.mini_step == 0, jnp.zeros_like(mean), mean)
        return updates, AccumulateState(mean, after)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
