"""Trainers that pass no loss: the loss arrives as a gradient, or is computed again."""

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_optax._checks.errors import LOSS_NOT_CARRIED, LossMissingError
from emo_optax._checks.validation import takes_extra_args

Where = Callable[[Any], Any] | str | int
"""A function from the tree of the parameters to one leaf, or the key of that leaf."""

_carried: dict[int, weakref.ref[Any]] = {}
"""The losses that `carry_loss` returned and that still exist, by identity."""


@jax.custom_vjp
def _carry(loss: jax.Array, carrier: jax.Array) -> jax.Array:
    del carrier
    return loss


def _carry_forward(loss: jax.Array, carrier: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return loss, (loss, carrier)


def _carry_backward(
    saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    loss, carrier = saved
    # In the dtype of the carrier: a scaled loss may not fit into float16.
    return cotangent, cotangent.astype(carrier.dtype) * loss.astype(carrier.dtype)


_carry.defvjp(_carry_forward, _carry_backward)


def carry_loss(loss: jax.Array, carrier: jax.Array) -> jax.Array:
    r"""Returns the loss, and makes the gradient with respect to `carrier` the loss itself.

    .. math:: f(L, c) = L, \qquad \frac{\partial f}{\partial L} = 1, \quad \frac{\partial f}{\partial c} = L

    Use it for a trainer of another library that drops the loss: the trainer passes the gradients to the
    optimizer, and the loss is one of the gradients. `carrier` is one more leaf of the parameters,
    `jnp.zeros(())`. Put the optimizer into `loss_from_gradient`, which takes the loss out of the gradients.
    An operation on all gradients also acts on the loss: a mean over examples, micro-batches or replicas
    gives the mean loss, and unscaling gives the unscaled loss. Call it on the loss that is differentiated,
    as the last operation; a sum of carried losses carries the sum.

    Args:
        loss: the loss, shape `[]`, of a floating-point dtype.
        carrier: the leaf, shape `[]`, float32 (or float64); its value is not used.

    Returns:
        The loss, as it was given.

    Raises:
        TypeError: for a loss that is not a floating-point number, a carrier that is missing or has another
            dtype, and in forward mode (`jax.jvp`, `jax.jacfwd`).
        ValueError: for a loss or a carrier that is not a scalar, and for a loss that is carried already.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> params = {"weight": jnp.ones(2), "carrier": jnp.zeros(())}
        >>> def loss_of(params):
        ...     return emo_optax.carry_loss(jnp.sum(params["weight"] ** 2), params["carrier"])
        >>> print(jax.grad(loss_of)(params))
        {'carrier': Array(2., dtype=float32), 'weight': Array([2., 2.], dtype=float32)}

    Source: this project.
    """
    known = _carried.get(id(loss))
    if known is not None and known() is loss:
        raise ValueError(
            "This loss is already the result of carry_loss. A second call would double the loss. Call "
            "carry_loss once, on the loss that is differentiated."
        )
    loss, carrier = _checked_scalar("loss", loss), _checked_scalar("carrier", carrier)
    if carrier.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(_OTHER_DTYPE.format(what="carrier", dtype=carrier.dtype))
    try:
        result: jax.Array = _carry(loss, _spread(carrier, loss))
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "carry_loss works in reverse mode (jax.grad, jax.value_and_grad, jax.vjp), and this is forward "
            "mode (jax.jvp, jax.jacfwd). Leave carry_loss out there, and pass the loss as `value` to the "
            "optimizer's `update`."
        ) from error
    # Outside of transformations the result may be the loss itself, which is not differentiated.
    if result is not loss and isinstance(result, jax.core.Tracer):
        key = id(result)
        _carried[key] = weakref.ref(result, lambda _: _carried.pop(key, None))
    return result


def loss_from_gradient(
    inner: optax.GradientTransformation, where: Where = "carrier"
) -> optax.GradientTransformationExtraArgs:
    """Takes the loss that `carry_loss` has put into the gradients, and passes it to the optimizer.

    The carrier is hidden from `inner`, which sees `None` in its place: the carrier never moves, has no
    moments and no shadow, and takes no part in norms or decay. Put transformations that treat leaves
    differently inside: `loss_from_gradient(optax.chain(optax.clip_by_global_norm(1.0), optimizer))`.

    Args:
        inner: the optimizer, which takes the loss as `value`.
        where: which leaf the carrier is. A function from the tree of the parameters to the leaf, as in
            `equinox.tree_at`, such as `lambda model: model.carrier`; or its key or attribute name, which
            must occur once in the tree, at any depth.

    Returns:
        A transformation whose `update` needs no `value`. A given `value` is used in place of the carried
        loss. Under `jax.jit`, where no error can be raised for a number, a loss is passed on as NaN, which
        the optimizer counts (`get_emotion(state).held`), if the carrier has moved, or if its gradient is 0
        and another gradient is not.

    Raises:
        TypeError: for a `where` that is neither, and a carrier or a gradient of it that is not of float32.
        ValueError: for a carrier that is missing, found twice, not a scalar or not 0.
        LossMissingError: from `update`, if no loss was carried: its gradient is 0, and another is not.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-3), where="carrier")
        >>> params = {"weight": jnp.ones(2), "carrier": jnp.zeros(())}
        >>> def loss_of(params):
        ...     return emo_optax.carry_loss(jnp.sum(params["weight"] ** 2), params["carrier"])
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(jax.grad(loss_of)(params), state, params)
        >>> print(emo_optax.get_emotion(state).long, optax.apply_updates(params, updates)["carrier"])
        2.0 0.0
    """
    inner = takes_extra_args(inner)
    if not (callable(where) or isinstance(where, str | int)):
        raise TypeError(
            f"Invalid where: {where!r}; it must be a function from the tree to a leaf, or a key"
        )

    def init_fn(params: optax.Params) -> optax.OptState:
        carrier, rest = _take(params, where, "the parameters")
        _check_value(carrier)
        return inner.init(rest)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        loss, gradients = _take(updates, where, "the gradients")
        rest = params
        value = loss
        if params is not None:
            carrier, rest = _take(params, where, "the parameters")
            _check_value(carrier)
            value = jnp.where(carrier == 0, value, jnp.nan)
        if extra_args.get("value") is None:
            value = jnp.where(_is_missing(loss, gradients), jnp.nan, value)
            extra_args = {**extra_args, "value": value}
        steps, state = inner.update(gradients, state, rest, **extra_args)
        return _put(steps, jnp.zeros_like(loss), updates, where), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def loss_from_function(
    inner: optax.GradientTransformation, loss_of: Callable[[Any], jax.typing.ArrayLike]
) -> optax.GradientTransformationExtraArgs:
    """Computes the loss of each step again, for full batches and a trainer that drops it.

    Under `jax.jit` around the gradient and the update, this costs nothing: XLA merges both computations of
    the loss. Without `jax.jit` it costs a forward pass.

    Args:
        inner: the optimizer, which takes the loss as `value`.
        loss_of: a function from the parameters to the loss, shape `[]`: the function that the trainer
            differentiates, with the same data.

    Returns:
        A transformation whose `update` needs `params` and no `value`. A given `value` is used in place of
        the computed loss.

    Raises:
        TypeError: if `loss_of` is no function.
        ValueError: from `update`, without `params`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> loss_of = lambda params: jnp.sum(params**2)
        >>> optimizer = emo_optax.loss_from_function(emo_optax.emo_sens(1e-3), loss_of)
        >>> params = jnp.ones(2)
        >>> _, state = optimizer.update(jax.grad(loss_of)(params), optimizer.init(params), params)
        >>> print(emo_optax.get_emotion(state).long)
        2.0
    """
    inner = takes_extra_args(inner)
    if not callable(loss_of):
        raise TypeError(
            f"Invalid loss_of: {loss_of!r}; it must be a function from the parameters to the loss"
        )

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if extra_args.get("value") is None:
            if params is None:
                raise ValueError(
                    "loss_from_function computes the loss from the parameters, and `params` was not given. "
                    "Call `update(grads, state, params)`, or carry the loss: emo_optax.loss_from_gradient."
                )
            extra_args = {**extra_args, "value": loss_of(params)}
        return inner.update(updates, state, params, **extra_args)  # type: ignore[no-any-return]

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


_OTHER_DTYPE = (
    "The {what} must be float32 or float64, and has the dtype {dtype}, which would round the loss. Make "
    "the carrier with `jnp.zeros((), jnp.float32)`. Where parameters are cast for computing (bfloat16, "
    "float16), take the carrier from the parameters before the cast; cast gradients after the update, or "
    "do not cast the gradient of the carrier."
)


def _checked_scalar(name: str, value: Any) -> jax.Array:
    """Returns a floating-point number as an array of shape `[]`."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        advice = " Add a leaf `jnp.zeros(())` to the parameters." if name == "carrier" else ""
        raise TypeError(f"The {name} must be an array of shape [], and is {value!r}.{advice}") from error
    if array.shape != ():
        advice = "Reduce it first, for example with jnp.mean." if name == "loss" else "Use `jnp.zeros(())`."
        raise ValueError(f"The {name} must be a scalar, and has the shape {array.shape}. {advice}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"The {name} must be a floating-point number, and is of {array.dtype}")
    return array


def _spread(carrier: jax.Array, loss: jax.Array) -> jax.Array:
    """Returns the carrier, varying over the axes of `jax.shard_map` that the loss varies over."""
    axes = tuple(sorted(_varies_over(loss) - _varies_over(carrier)))
    return jax.lax.pcast(carrier, axes, to="varying") if axes else carrier


def _varies_over(array: jax.Array) -> frozenset[str]:
    kind: Any = jax.typeof(array)
    # The name of this attribute depends on the version of JAX.
    return getattr(getattr(kind, "manual_axis_type", kind), "varying", getattr(kind, "vma", frozenset()))


class _Leaf:
    """Stands for a leaf, so that the place of the leaf in its tree can be found."""

    def __init__(self, index: int) -> None:
        self.index = index


def _place(tree: Any, where: Where, title: str) -> int:
    """Returns which leaf of a tree the carrier is."""
    if not callable(where):
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        found = [index for index, path in enumerate(paths) if where in map(_name, path)]
    else:
        structure: Any = jax.tree.structure(tree)
        marked = jax.tree.unflatten(structure, [_Leaf(index) for index in range(structure.num_leaves)])
        try:
            leaves = jax.tree.leaves(where(marked))
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"{_no_carrier(where, title)} It failed: {error!r}") from error
        found = [leaf.index for leaf in leaves if isinstance(leaf, _Leaf)]
    if len(found) > 1:
        raise ValueError(
            f"where={where!r} selects {len(found)} leaves of {title}, and it must select one. One carrier "
            "carries the sum of two losses; pass a function from the tree to the one leaf."
        )
    if not found:
        raise ValueError(_no_carrier(where, title))
    return found[0]


def _name(entry: Any) -> Any:
    """Returns the key, the attribute name or the index of an entry of a path."""
    return next((getattr(entry, name) for name in ("key", "name", "idx") if hasattr(entry, name)), None)


def _no_carrier(where: Where, title: str) -> str:
    return (
        f"There is no carrier at where={where!r} in {title}. Add a leaf `jnp.zeros(())` to the parameters, "
        "and make the loss that is differentiated `emo_optax.carry_loss(loss, carrier)`."
    )


def _take(tree: Any, where: Where, title: str) -> tuple[jax.Array, Any]:
    """Returns the carrier, and the tree with `None` in its place."""
    index = _place(tree, where, title)
    leaves, structure = jax.tree.flatten(tree)
    what = "gradient of the carrier" if title == "the gradients" else "carrier"
    if isinstance(leaves[index], jax.ShapeDtypeStruct):
        carrier: Any = leaves[index]
    else:
        carrier = _checked_scalar(what, leaves[index])
    if carrier.shape != () or carrier.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(_OTHER_DTYPE.format(what=what, dtype=carrier.dtype))
    return carrier, jax.tree.unflatten(structure, [*leaves[:index], None, *leaves[index + 1 :]])


def _put(steps: Any, carrier: jax.Array, like: Any, where: Where) -> Any:
    """Returns a tree with the carrier in the place that `_take` has emptied."""
    index = _place(like, where, "the gradients")
    leaves = jax.tree.leaves(steps)
    return jax.tree.unflatten(jax.tree.structure(like), [*leaves[:index], carrier, *leaves[index:]])


def _check_value(carrier: Any) -> None:
    """Raises a `ValueError` for a carrier that is not 0, where its value is known."""
    if isinstance(carrier, jax.core.Tracer | jax.ShapeDtypeStruct):
        return
    # In NumPy: while a function is traced, an operation of JAX on known numbers gives an unknown one.
    if np.asarray(carrier) != 0:
        raise ValueError(
            f"The carrier of the loss is {carrier}, and must be 0 at all times: the wrapper "
            "loss_from_gradient never moves it. Start with `jnp.zeros(())`. Put weight decay, noise, "
            "clipping and the like inside the wrapper: `loss_from_gradient(optax.chain(..., optimizer))`."
        )


def _is_missing(loss: jax.Array, gradients: Any) -> jax.Array:
    """Returns whether no loss was carried; raises a `LossMissingError` where numbers are known."""

    def moves() -> Any:
        return jnp.any(jnp.asarray([jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients)]))

    if any(isinstance(leaf, jax.core.Tracer) for leaf in (loss, *jax.tree.leaves(gradients))):
        return jnp.asarray(jax.lax.cond(loss == 0, moves, lambda: jnp.zeros((), jnp.bool_)))
    if np.asarray(loss) == 0 and any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradients)):
        raise LossMissingError(LOSS_NOT_CARRIED)
    return jnp.zeros((), jnp.bool_)
