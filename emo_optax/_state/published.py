"""Continues runs of the published files, and of pytorch_optimizer, in this package."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from emo_optax._state.bridge import from_arrays, to_arrays, with_steps
from emo_shared.published import KINDS, Published, read_published
from emo_shared.published_form import check_new, check_steps


def load_published_state(
    state: optax.OptState,
    state_dict: Mapping[str, Any],
    params: optax.Params,
    names: Sequence[str],
    member: str,
    *,
    steps: int = 0,
) -> tuple[optax.OptState, tuple[str, ...]]:
    """Returns a state with the values of a published optimizer's state, so that its run continues here.

    `emo_navi`, `emo_fact`, `emo_lynx`, `emo_sens`, `emo_airy` and `emo_cats` take states of v2.0.
    `emo_navi36`, `emo_fact36` and `emo_lynx36` take states of v3.6.1, and of the classes EmoNavi, EmoFact
    and EmoLynx of pytorch_optimizer from 3.10 on. `emo_sens3`, `emo_airy3`, `emo_cats3`, `emo_tion` and
    `emo_void` take states of v3.9.1. Options are not part of a state here: the second result lists the
    options of the file.

    Args:
        state: a fresh state of the member, as `init(params)` makes it.
        state_dict: the published `state_dict()`, with NumPy arrays in the place of tensors; it is not
            changed.
        params: the parameters, as a tree; with the shapes of the published run.
        names: the name of each parameter, in the order of the published optimizer: its path in the tree,
            the parts joined by dots, as in "layers.0.weight".
        member: the name of the member, one of `list_optimizers()`.
        steps: how many steps the published run took, >= 0; the file does not have this number. Schedules
            continue at this step.

    Returns:
        The new state, and one sentence for each part of the published state that could not be carried over.

    Raises:
        TypeError: for anything but a mapping, and for steps that are not a whole number.
        ValueError: for a new state of another member or of other parameters, for a state of another
            optimizer or version, for names that differ from the names of the parameters, for a part that is
            missing, has another shape, or is damaged, and for a state of an optimizer that has taken
            steps.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> import emo_optax
        >>> own = {"exp_avg": np.full(2, 0.5), "ema": {"short": 1.0, "long": 2.0}}
        >>> published = {"state": {0: own, "scalar_hist": [0.0]}, "param_groups": [{"params": [0]}]}
        >>> params = {"weight": jnp.ones(2)}
        >>> state = emo_optax.emo_cats().init(params)
        >>> state, notes = emo_optax.load_published_state(state, published, params, ["weight"], "emo_cats")
        >>> print(emo_optax.to_arrays(state)["exp_avg/weight"], emo_optax.get_emotion(state).long, notes)
        [0.5 0.5] 2.0 ()

    Source: the files of EmoSens and EmoNavi by muooon, v2.0, v3.6.1 and v3.9.1, for the names of the state.
    """
    by_name = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    check_steps(steps)
    if not all(isinstance(name, str) for name in names) or sorted(names) != sorted(by_name):
        raise ValueError(
            f"The names must be the names of the parameters: {sorted(by_name)}; they are {list(names)}"
        )
    own = to_arrays(state)
    for name, param in by_name.items():
        kept = own.get(f"exp_avg/{name}", own.get(f"shadow/{name}", param))
        if kept.shape != param.shape:
            raise ValueError(
                f"The state was made for other parameters: {name!r} has the shape {kept.shape} in it, and "
                f"{param.shape} in params"
            )
    read = read_published(state_dict, member, own, names, by_name)
    check_new(own)
    loaded = with_steps(from_arrays(read.arrays, state), steps)
    return loaded, (*read.notes, *_notes_on_options(read, member))


def _notes_on_options(read: Published, member: str) -> list[str]:
    """Returns which options the file has, by their names here."""
    if len({str(options) for options in read.options}) > 1:
        return ["The parameter groups of the file have different options: use `optax.partition`."]
    options = dict(read.options[0])
    if "lr" in options:
        options["learning_rate"] = options.pop("lr")
    if "betas" in options:
        options["b1"], options["b2"] = options.pop("betas")
    listed = ", ".join(f"{name}={_formatted(value)}" for name, value in sorted(options.items()))
    return [f"The options of {KINDS[member].title} in the file: {member}({listed})."] if listed else []


def _formatted(value: Any) -> str:
    return repr(value) if isinstance(value, str) else f"{float(value):g}"
