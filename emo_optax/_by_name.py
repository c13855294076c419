"""Optimizers by name, for configuration files and command lines."""

from collections.abc import Callable
from typing import Any

import optax

from emo_optax._emo_airy import emo_airy
from emo_optax._emo_cats import emo_cats
from emo_optax._emo_clan import emo_clan
from emo_optax._emo_fact import emo_fact
from emo_optax._emo_lynx import emo_lynx
from emo_optax._emo_navi import emo_navi
from emo_optax._emo_neco import emo_neco
from emo_optax._emo_sens import emo_sens
from emo_optax._emo_zeal import emo_zeal
from emo_optax._ref_adamw_mini_schedule_free import ref_adamw_mini_schedule_free
from emo_shared.names import did_you_mean, plain_name

_OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "emo_airy": emo_airy,
    "emo_cats": emo_cats,
    "emo_clan": emo_clan,
    "emo_fact": emo_fact,
    "emo_lynx": emo_lynx,
    "emo_navi": emo_navi,
    "emo_neco": emo_neco,
    "emo_sens": emo_sens,
    "emo_zeal": emo_zeal,
    "ref_adamw_mini_schedule_free": ref_adamw_mini_schedule_free,
}


def list_optimizers() -> list[str]:
    """Returns the names of all optimizers, in alphabetical order.

    Example:
        >>> import emo_optax
        >>> "emo_sens" in emo_optax.list_optimizers()
        True
    """
    return sorted(_OPTIMIZERS)


def create_optimizer(name: str, /, *args: Any, **options: Any) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer by its name.

    Args:
        name: one of `list_optimizers()`; capitals and underscores don't matter, so that
            `"EmoSens"` is `"emo_sens"`.
        *args: what the optimizer takes, such as the learning rate.
        **options: what it takes by name.

    Returns:
        What the function of that name returns.

    Raises:
        ValueError: for an unknown name, or a hyperparameter out of its range.
        TypeError: for an option that the optimizer does not have, or a name that is no string.

    Example:
        >>> import emo_optax
        >>> optimizer = emo_optax.create_optimizer("emo_sens", 1e-3, use_shadow=True)
    """
    if not isinstance(name, str):
        raise TypeError(f"The name of an optimizer is needed, and this is {name!r}")
    known = {plain_name(each): each for each in _OPTIMIZERS}
    plain = plain_name(name)
    if plain not in known:
        raise ValueError(
            f"There is no optimizer named {name!r}{did_you_mean(name, _OPTIMIZERS)} "
            f"Known are {', '.join(list_optimizers())}."
        )
    return _OPTIMIZERS[known[plain]](*args, **options)
