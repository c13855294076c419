"""Refuses states of which named arrays would carry only a part."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from emo_optax._pieces.averaged_weights import AverageWeightsState
from emo_optax._pieces.gate import GateByNormState
from emo_optax._wrappers.runaway import Runaway

_PIECES = {
    AverageWeightsState: "average_weights",
    GateByNormState: "gate_by_norm",
}
"""The own pieces whose states have no names in the arrays."""
_MEASURED = (Runaway,)
"""What only shows the last step, and is measured again at the next step."""


def check_carried(state: optax.OptState, carried: tuple[type, ...]) -> None:
    """Raises a `ValueError` if a state holds more than the arrays of a member.

    Numbers of shape `[]` of other transformations, such as counts and learning rates, may stay behind.

    Args:
        state: the state, at any depth inside of wrappers.
        carried: the classes of states that have names in the arrays.
    """
    known = (*carried, *_MEASURED, *_PIECES, optax.MultiStepsState)

    def is_known(node: Any) -> bool:
        return isinstance(node, known)

    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_known):
        if isinstance(node, tuple(_PIECES)):
            raise ValueError(
                f"The state of `{_PIECES[type(node)]}` has no plain arrays: pass the state of the "
                "optimizer inside, or keep the whole state with save_checkpoint"
            )
        if isinstance(node, optax.MultiStepsState):
            check_carried(node.inner_opt_state, carried)
        elif not is_known(node) and jnp.ndim(node) > 0:
            raise ValueError(
                f"The array state{jax.tree_util.keystr(path)} of the shape {jnp.shape(node)} belongs to "
                "another transformation, and to_arrays and from_arrays cannot carry it: pass the state of "
                "the member alone, or keep the whole state with save_checkpoint"
            )
