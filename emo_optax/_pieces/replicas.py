"""Replicas that train on parts of one batch: without one common loss they drift apart."""

from typing import Any

import jax

AxisName = str | tuple[str, ...] | None
"""The name of a mapped axis, several, or `None` for none."""


def check_axis_name(axis_name: object) -> None:
    """Raises a `TypeError` unless axes are named by a word or several words, or there are none."""
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    is_known = bool(names) and all(isinstance(name, str) and name for name in names)
    if axis_name is None or (is_known and len(set(names)) == len(names)):
        return
    raise TypeError(f"Invalid axis_name: {axis_name!r}; it must be a name, a tuple of names or None")


def split_axes(leaves: list[Any], axis_name: AxisName) -> list[tuple[str, ...]]:
    """Returns the axes over which each parameter is split, in the order of the parameters.

    With `jax.shard_map(..., check_vma=True)`, the default, the type of an array tells over which axes the
    array varies: a parameter that does not vary over an axis is replicated. Without these types every
    parameter counts as split over all axes.

    Args:
        leaves: the parameters, or their parts on this device.
        axis_name: the names of the axes over which parameters are split; `None` for none.

    Raises:
        ValueError: if there is no such axis here.
    """
    if axis_name is None:
        return [()] * len(leaves)
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    try:
        jax.lax.axis_size(names)
    except NameError as error:  # The error of JAX for an axis that is not bound.
        raise ValueError(
            f"shard_axis_name={axis_name!r} says that parameters are split over this axis, and there is no "
            "such axis around this `update`. Call `update` inside jax.shard_map with this axis name. Under "
            "jax.jit alone, with sharded arrays, do not pass shard_axis_name."
        ) from error
    axes = [tuple(name for name in names if name in _axes_in_type(leaf)) for leaf in leaves]
    # The own index of a device varies over the axis, if types say over which axes arrays vary.
    is_typed = bool(_axes_in_type(jax.lax.axis_index(names[0])))
    return axes if is_typed else [names] * len(leaves)


def _axes_in_type(leaf: Any) -> frozenset[str]:
    """Returns the axes of `jax.shard_map` over which an array varies, as its type says."""
    kind = getattr(jax.typeof(leaf), "manual_axis_type", None)
    return getattr(kind, "varying", frozenset())


def average_over_replicas(loss: jax.Array, axis_name: AxisName) -> jax.Array:
    """Returns the mean of the loss over named axes of `jax.shard_map`, `jax.pmap` or `jax.vmap`.

    The caller averages the gradients. If the loss of one replica is not finite, the mean is not finite for
    all.

    Args:
        loss: the loss of this replica, shape `[]`.
        axis_name: the axes' names; `None` leaves the loss as it is.

    Returns:
        The same loss on every replica, shape `[]`.

    Raises:
        ValueError: if there is no such axis here.
    """
    if axis_name is None:
        return loss
    try:
        mean: Any = jax.lax.pmean(loss, axis_name)
    except NameError as error:  # The error of JAX for an axis that is not bound.
        raise ValueError(
            f"axis_name={axis_name!r} asks for the mean loss over a mapped axis, and there is no such axis "
            "around this `update`. Call `update` inside jax.shard_map or jax.pmap with this axis name. "
            "Under jax.jit alone, with sharded arrays, the loss is already the loss of the whole batch: do "
            "not pass axis_name."
        ) from error
    return mean  # type: ignore[no-any-return]
