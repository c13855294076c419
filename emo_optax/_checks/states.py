"""Checks of optimizer states, and numbers that a user put into a state."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emo_optax._checks.errors import STATE_OF_ANOTHER


def are_alike(tree: Any, other: Any) -> bool:
    """Returns whether two trees have the same nodes."""
    structure: Any = jax.tree.structure(tree)
    return bool(structure == jax.tree.structure(other))


def how_trees_differ(tree: Any, expected: Any) -> str:
    """Returns which leaves one tree lacks of another, or has in addition."""
    has, needs = (
        [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(each)]
        for each in (tree, expected)
    )
    missing = [place for place in needs if place not in set(has)]
    extra = [place for place in has if place not in set(needs)]
    if missing or extra:
        parts = [("missing: ", missing), ("extra: ", extra)]
        return "; ".join(title + ", ".join(places[:3]) for title, places in parts if places)
    return f"{_brief(jax.tree.structure(tree))}, not {_brief(jax.tree.structure(expected))}"


def _brief(text: object) -> str:
    return str(text) if len(str(text)) < 200 else f"{str(text)[:200]}..."


def nodes_of(state: Any, kind: type) -> list[Any]:
    """Returns all nodes of one kind in a nested state."""
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def first_node_of(state: Any, kind: type) -> Any:
    """Returns the first node of one kind in a nested state, or `None` if there is none."""
    return next(iter(nodes_of(state, kind)), None)


def check_state(state: Any, init: Callable[[Any], Any], params: Any) -> None:
    """Raises a `ValueError` if a state is not one that `init` makes for these parameters.

    To be called after a step has failed: the check takes as long as an `init`.
    """
    try:
        expected = jax.eval_shape(init, params)
    except Exception:  # The cause of the failure is not the state.
        return
    problem = ""
    if not are_alike(state, expected):
        problem = how_trees_differ(state, expected)
    else:
        pairs = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True)
        for (path, leaf), wanted in pairs:
            if jnp.shape(leaf) != wanted.shape:
                place = jax.tree_util.keystr(path)
                problem = f"{place} has the shape {jnp.shape(leaf)}, not {wanted.shape}"
                break
    if problem:
        raise ValueError(STATE_OF_ANOTHER.format(problem=problem))


def check_class(state: Any, kind: type) -> None:
    """Raises a `ValueError` for the state of another rule, whose fields may have the same names."""
    if not isinstance(state, kind):
        problem = f"it has {type(state).__name__} where {kind.__name__} belongs"
        raise ValueError(STATE_OF_ANOTHER.format(problem=problem))


def check_kind(name: str, leaf: Any, kind: Any, shape: tuple[int, ...]) -> None:
    """Raises a `ValueError` unless a part of a state has its kind of dtype and its shape."""
    check_kinds([(name, leaf, kind, shape)])


def check_kinds(parts: Iterable[tuple[str, Any, Any, tuple[int, ...]]]) -> None:
    """Like `check_kind`, for several parts of a state, each with its name, kind and shape."""
    for name, leaf, kind, shape in parts:
        if not hasattr(leaf, "dtype"):
            raise ValueError(STATE_OF_ANOTHER.format(problem=f"{name!r} must be an array, and is {leaf!r}"))
        if not jnp.issubdtype(leaf.dtype, kind) or leaf.shape != shape:
            has = f"{leaf.dtype} of the shape {leaf.shape}"
            problem = f"{name!r} is {has}; expected {kind.__name__} of the shape {shape}"
            raise ValueError(STATE_OF_ANOTHER.format(problem=problem))


def with_arrays(state: Any, init: Callable[[Any], Any], params: Any) -> Any:
    """Returns a state in which each number that a user put there is an array of the dtype of its place.

    A number is a Python scalar, a NumPy scalar or, under `jax.jit`, the weakly typed array that JAX makes
    of a Python scalar, as in `optax.tree.set(state, ratio=0.5)`. A state of arrays alone is
    returned as it is, without cost.

    Args:
        state: the state of a transformation.
        init: the `init` of that transformation, which tells the dtypes.
        params: the parameters, or the gradients where a transformation needs no parameters.

    Raises:
        TypeError: for a value that the dtype of its place cannot hold, such as a float for a count.
    """
    leaves = jax.tree.leaves(state)
    # Each leaf of most states is an array without a weak type, which is no number: seen without a call.
    # An array of random keys, as `optax.add_noise` keeps one, has no attribute of this name.
    others = [
        leaf for leaf in leaves if not isinstance(leaf, jax.Array) or getattr(leaf, "weak_type", False)
    ]
    if not any(map(_is_number, others)):
        return state
    expected = jax.eval_shape(init, params)
    if not are_alike(state, expected):
        return state  # `check_state` says how the trees differ.

    def convert(path: Any, leaf: Any, wanted: Any) -> Any:
        if not _is_number(leaf) or _is_weak(wanted):
            return leaf
        kind = np.result_type(leaf) if isinstance(leaf, np.generic) else jnp.result_type(leaf)
        if jnp.issubdtype(wanted.dtype, jnp.floating):
            fits = jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
        elif jnp.issubdtype(wanted.dtype, jnp.integer):
            fits = jnp.issubdtype(kind, jnp.integer)
        else:
            fits = kind == jnp.bool_
        place = jax.tree_util.keystr(path)
        if not fits or wanted.shape != jnp.shape(leaf):
            has = f"an array of {wanted.dtype} and of the shape {wanted.shape}"
            raise TypeError(f"The part {place} of the optimizer's state must be {has}, and is {leaf!r}")
        return jnp.asarray(leaf).astype(wanted.dtype)

    return jax.tree_util.tree_map_with_path(convert, state, expected)


def _is_weak(leaf: Any) -> bool:
    return bool(getattr(leaf, "weak_type", False))


def _is_number(leaf: Any) -> bool:
    if isinstance(leaf, jax.core.Tracer):
        return _is_weak(leaf.aval)
    return isinstance(leaf, bool | int | float | complex | np.generic)


def with_new_arrays(state: Any) -> Any:
    """Returns a state of tuples with copies of its arrays, which no step that donates the state deletes.

    Some frameworks wrap each array of a state in an object. Such an object converts to the array.
    """
    return jax.tree.map(jnp.array, state, is_leaf=lambda node: not isinstance(node, tuple))


def check_real(tree: Any) -> None:
    """Raises a `ValueError` for a tree with a complex leaf."""
    if any(jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating) for leaf in jax.tree.leaves(tree)):
        raise ValueError(
            "emo_optax does not support complex parameters and gradients. Put "
            "optax.contrib.split_real_and_imaginary around the transformation."
        )
