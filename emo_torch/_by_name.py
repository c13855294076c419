"""Optimizers by name, for configuration files and command lines."""

from collections.abc import Callable
from typing import Any

from torch.optim.optimizer import ParamsT

from emo_shared.names import did_you_mean, plain_name
from emo_torch._emo_airy import EmoAiry
from emo_torch._emo_cats import EmoCats
from emo_torch._emo_clan import EmoClan
from emo_torch._emo_fact import EmoFact
from emo_torch._emo_lynx import EmoLynx
from emo_torch._emo_navi import EmoNavi
from emo_torch._emo_neco import EmoNeco
from emo_torch._emo_sens import EmoSens
from emo_torch._emo_zeal import EmoZeal
from emo_torch._emotional import LossOptimizer
from emo_torch._ref_adamw_mini_schedule_free import RefAdamWMiniScheduleFree

_OPTIMIZERS: dict[str, Callable[..., LossOptimizer]] = {
    "emo_airy": EmoAiry,
    "emo_cats": EmoCats,
    "emo_clan": EmoClan,
    "emo_fact": EmoFact,
    "emo_lynx": EmoLynx,
    "emo_navi": EmoNavi,
    "emo_neco": EmoNeco,
    "emo_sens": EmoSens,
    "emo_zeal": EmoZeal,
    "ref_adamw_mini_schedule_free": RefAdamWMiniScheduleFree,
}


def list_optimizers() -> list[str]:
    """Returns the names of all optimizers, in alphabetical order.

    Example:
        >>> import emo_torch
        >>> "emo_sens" in emo_torch.list_optimizers()
        True
    """
    return sorted(_OPTIMIZERS)


def create_optimizer(name: str, /, params: ParamsT, *args: Any, **options: Any) -> LossOptimizer:
    """Makes an optimizer by its name.

    Args:
        name: one of `list_optimizers()`; capitals and underscores don't matter, so that
            `"EmoSens"` is `"emo_sens"`.
        params: the parameters, or groups of them.
        *args: what the optimizer takes behind them, such as the learning rate.
        **options: what it takes by name.

    Returns:
        What the class of that name makes.

    Raises:
        ValueError: for an unknown name, or a hyperparameter out of its range.
        TypeError: for an option that the optimizer does not have, or a name that is no string.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> params = torch.nn.Linear(2, 1).parameters()
        >>> optimizer = emo_torch.create_optimizer("emo_sens", params, lr=1e-3, use_shadow=True)
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
    return _OPTIMIZERS[known[plain]](params, *args, **options)
