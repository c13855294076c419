"""Hints about arguments of other optimizers, for both packages."""

import sys
from collections.abc import Iterable, Mapping

from emo_shared.names import nearest

LARGE_RATE = 0.1
"""The lowest learning rate at which the members of the first two generations warn."""

PULSE_FILES = "EmoSens, EmoAiry, EmoCats, EmoTion and EmoVoid"
EMO_CLASSES = "the Emo classes of pytorch_optimizer"
_NO_VARIANT = "There is no such variant here: leave it out."

SHARED_KEYWORDS: dict[str, tuple[str, str]] = {
    # Of the published files.
    "use_shadow": (
        "the published files from v2.0 (EmoSens, EmoAiry, EmoCats) and v3.0 (EmoNavi and its relatives) on",
        "This optimizer has no shadow: leave `use_shadow` out.",
    ),
    # Of pytorch_optimizer's classes of these names.
    "shadow_weight": (
        f"{EMO_CLASSES} 3.7 to 4.1",
        "It is `shadow_rate` here, with the same default of 0.05.",
    ),
    "weight_decouple": (
        f"{EMO_CLASSES} 3.7 to 4.1",
        'It is `weight_decay_mode` here: "decoupled" for True (the default), "l2" for False.',
    ),
    "fixed_decay": (f"{EMO_CLASSES} 3.7 to 4.1", 'It is `weight_decay_mode="absolute"` here.'),
    # Of torch.optim.
    "amsgrad": ("torch.optim.Adam and AdamW", _NO_VARIANT),
    "dampening": ("torch.optim.SGD", _NO_VARIANT),
    "centered": ("torch.optim.RMSprop", _NO_VARIANT),
    "momentum_decay": ("torch.optim.NAdam", _NO_VARIANT),
    # Other names for the same thing.
    "wd": ("some other libraries", "It is `weight_decay` here."),
    "epsilon": ("some other libraries", "It is `eps` here."),
}
"""Keywords of other optimizers with the same hint in both packages: their origin, and the remedy."""


def unexpected_keyword(
    owner: str, name: str, options: list[str], foreign: Mapping[str, tuple[str, str]]
) -> str:
    """Returns the text of the error for a keyword that an optimizer does not have.

    Args:
        owner: the name of the optimizer.
        name: the keyword.
        options: the keywords that the optimizer has.
        foreign: the keywords of other optimizers, each with its origin and its remedy.
    """
    text = f"{owner}() got an unexpected keyword argument {name!r}."
    if name in foreign:
        origin, here = foreign[name]
        return f"{text} {name!r} belongs to {origin}. {here}"
    near = nearest(name, options)
    if near is not None:
        return f"{text} Did you mean {near!r}?"
    return f"{text} The options of {owner} are {', '.join(options)}."


def caller_level(packages: Iterable[str]) -> int:
    """Returns the `stacklevel` that names the first caller outside of some packages.

    Args:
        packages: the names of the top packages whose frames are skipped.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in packages:
        level, frame = level + 1, frame.f_back
    return level
