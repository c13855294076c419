"""Passing the arguments of `update` through wrappers that would drop them."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax

from emo_optax._checks.validation import takes_extra_args


def bind_extra_args(
    wrapper: Callable[[optax.GradientTransformation], Any], inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer that reads the loss in a wrapper that would drop the loss.

    `optax.lookahead`, `optax.contrib.sam`, `optax.contrib.split_real_and_imaginary`,
    `optax.contrib.galore` and a nested `optax.MultiSteps` call the wrapped transformation without the extra
    arguments of `update`, such as `value`. Here `wrapper` is called again in each `update`, around an
    `inner` to which the extra arguments are bound. Under `jax.jit` this costs nothing, because it happens
    only while tracing.

    Use it directly around the wrapper: put a chain around the wrapper outside.

    Args:
        wrapper: a function from a transformation to the wrapped one, without effects, such as
            `lambda inner: optax.lookahead(inner, 5, 0.5)`.
        inner: the transformation that takes extra arguments.

    Returns:
        A transformation with the state of the result of `wrapper`. Its `update` binds every extra
        argument to `inner`, and passes on the arguments that the wrapper's own `update` knows, such as
        the `grad_fn` of `optax.contrib.sam(..., opaque_mode=True)`.

    Raises:
        TypeError: if `wrapper` is no function, and if its result or `inner` is no transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.bind_extra_args(
        ...     lambda inner: optax.lookahead(inner, 5, 0.5), emo_optax.emo_sens(0.05)
        ... )
        >>> params = optax.LookaheadParams.init_synced(jnp.ones(2))
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(jnp.ones(2), state, params, value=1.5)
        >>> print(emo_optax.get_emotion(state).long)
        1.5
    """
    if not callable(wrapper):
        raise TypeError(
            "bind_extra_args needs a function that wraps, such as "
            f"`lambda inner: optax.lookahead(inner, 5, 0.5)`, and this is {wrapper!r}"
        )
    inner = takes_extra_args(inner)

    def wrapped(**extra_args: Any) -> Any:
        def update_inner(
            updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
        ) -> tuple[optax.Updates, optax.OptState]:
            return inner.update(updates, state, params, **extra_args)  # type: ignore[no-any-return]

        made = wrapper(optax.GradientTransformation(inner.init, update_inner))
        if not (hasattr(made, "init") and hasattr(made, "update")):
            raise TypeError(f"The wrapper must return a transformation of Optax, and returned {made!r}")
        return made

    # Once at the start, so that an error of the wrapper comes before any training.
    init_fn = wrapped().init

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        update = wrapped(**extra_args).update
        updates, new_state = update(updates, state, params, **_known(update, extra_args))
        return updates, jax.tree.map(_as_before, new_state, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _known(update: Callable[..., Any], extra_args: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments that an `update` accepts."""
    parameters = inspect.signature(update).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return extra_args
    return {name: value for name, value in extra_args.items() if name in parameters}


def _as_before(new: Any, old: Any) -> Any:
    """Returns a leaf in its old dtype: where a wrapper chooses by arithmetic, a bool becomes an int."""
    dtype = getattr(old, "dtype", None)
    return new if dtype is None or new.dtype == dtype else new.astype(dtype)
