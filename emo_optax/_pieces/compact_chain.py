"""A chain whose state has only the states that hold something.

A compiled step takes a fixed time for each node of its state, empty nodes included.
"""

from typing import Any

import optax

from emo_optax._checks.errors import STATE_OF_ANOTHER
from emo_optax._checks.validation import takes_extra_args


class Stateless(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
    """A transformation whose state holds no arrays, and is the same for all parameters."""

    __slots__ = ()


def stateless(piece: optax.GradientTransformation) -> Stateless:
    """Marks a transformation whose state holds no arrays, so that `compact_chain` keeps no state for it."""
    return Stateless(*takes_extra_args(piece))


def compact_chain(*pieces: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Applies transformations one after the other, as `optax.chain`, with a smaller state.

    Args:
        *pieces: the transformations; at least one is not `Stateless`.

    Returns:
        A transformation. Its state is a tuple of the states of the pieces that are not `Stateless`, or the
        only such state.
    """
    parts = [takes_extra_args(piece) for piece in pieces]
    kept = [part for part in parts if not isinstance(part, Stateless)]
    empty = [part.init(()) if isinstance(part, Stateless) else None for part in parts]

    def init_fn(params: optax.Params) -> optax.OptState:
        states = tuple(part.init(params) for part in kept)
        return states[0] if len(states) == 1 else states

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        states: Any = (state,) if len(kept) == 1 else state
        if len(states) != len(kept):
            problem = f"it has {len(states)} parts, and the chain has {len(kept)}"
            raise ValueError(STATE_OF_ANOTHER.format(problem=problem))
        before, after = iter(states), []
        for part, nothing in zip(parts, empty, strict=True):
            if isinstance(part, Stateless):
                updates, _ = part.update(updates, nothing, params, **extra_args)
            else:
                updates, own = part.update(updates, next(before), params, **extra_args)
                after.append(own)
        return updates, after[0] if len(after) == 1 else tuple(after)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
