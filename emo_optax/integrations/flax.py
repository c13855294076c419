"""For Flax: a `TrainState` whose `apply_gradients` takes the loss. NNX needs no help."""

import functools
from collections.abc import Mapping
from typing import Any

import optax
from flax.training import train_state

__all__ = ["TrainState"]


class TrainState(train_state.TrainState):
    """Flax's `TrainState` with one difference: `apply_gradients` passes the loss to the optimizer.

    Flax's own `apply_gradients` takes every keyword for a field to replace, and calls the optimizer with
    the gradients alone. Derive your class from this class, as you would from Flax's.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> from emo_optax.integrations.flax import TrainState
        >>> state = TrainState.create(
        ...     apply_fn=None, params={"w": jnp.ones(2)}, tx=emo_optax.emo_sens(0.05)
        ... )
        >>> loss, grads = jax.value_and_grad(lambda p: jnp.sum(p["w"] ** 2))(state.params)
        >>> state = state.apply_gradients(grads=grads, value=loss)
        >>> print(state.step, emo_optax.get_emotion(state.opt_state).long)
        1 2.0
    """

    def apply_gradients(
        self,
        *,
        grads: Any,
        value: Any = None,
        extra_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> "TrainState":
        """Returns the state after a step.

        Args:
            grads: a tree like `params`.
            value: the loss at `params`, a scalar of any float dtype.
            extra_args: further arguments of the optimizer's `update`, such as `val_value`.
            **kwargs: fields to replace, such as `batch_stats`.

        Returns:
            The state with `step` increased, `params` and `opt_state` updated and the fields replaced.

        Raises:
            LossMissingError: from an optimizer that reads the loss, without one.
        """
        update = functools.partial(
            optax.with_extra_args_support(self.tx).update, value=value, **(extra_args or {})
        )
        bound = self.replace(tx=optax.GradientTransformation(self.tx.init, update))
        moved = train_state.TrainState.apply_gradients(bound, grads=grads, **kwargs)
        return moved.replace(tx=self.tx)  # type: ignore[no-any-return]
