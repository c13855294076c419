"""Hints for arguments that belong to another optimizer, and a warning about a very large learning rate."""

import difflib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from emo_optax._checks.errors import EmoWarning
from emo_optax._checks.validation import is_number

P = ParamSpec("P")
R = TypeVar("R")

LARGE_RATE = 0.1
"""The learning rate from which on the members of the first two generations warn."""

_PULSE = "EmoSens, EmoAiry, EmoCats, EmoTion and EmoVoid"
_THIRD = "emo_sens3, emo_airy3, emo_cats3, emo_tion and emo_void"
_EMO_CLASSES = "the Emo classes of pytorch_optimizer"

FOREIGN_KEYWORDS: dict[str, tuple[str, str]] = {
    # Of the published files.
    "stopcoef": (
        f"{_PULSE} v3.8.6+ and v3.9.1",
        f"The third generation has it here, too: {_THIRD}. The stop signal of the earlier generations has "
        "fixed bounds; `emo_optax.went_quiet` takes others.",
    ),
    "notify": (
        f"{_PULSE} v3.8.6+ and v3.9.1",
        f"The third generation has it here, too: {_THIRD}. Elsewhere read "
        "`emo_optax.get_emotion(state).should_stop`, or use `emo_optax.EarlyStop`.",
    ),
    "fftmode": (
        f"{_PULSE} v3.8.6 (v3.9.1 has it no longer)",
        "It divided the learning rate by 10: pass a tenth of `learning_rate`.",
    ),
    "writer": (
        "EmoNavi, EmoFact and EmoLynx v3.1 and v3.6.1, and EmoSens v3.7.1",
        "Write `emo_optax.get_metrics(state)` to your SummaryWriter after each step.",
    ),
    "use_shadow": (
        "the published files from v2.0 (EmoSens, EmoAiry, EmoCats) and v3.0 (EmoNavi and its relatives) on",
        "This optimizer has no shadow: leave `use_shadow` out.",
    ),
    "lr_max": (
        "EmoNavi, EmoFact and EmoLynx v3.3, also of pytorch_optimizer 3.9",
        "There is no automatic rate here: pass `learning_rate`, bounded by a schedule "
        "of Optax if it needs bounds.",
    ),
    "lr_min": (
        "EmoNavi, EmoFact and EmoLynx v3.3, also of pytorch_optimizer 3.9",
        "There is no automatic rate here: pass `learning_rate`, bounded by a schedule "
        "of Optax if it needs bounds.",
    ),
    "histwarmup": (
        "the scheduler EmoPulse v3.9.3+",
        "It is no option of an optimizer: pass a warm-up schedule of Optax as `learning_rate`.",
    ),
    "boost": (
        "the scheduler EmoPulse v3.9.3+",
        "It is no option of an optimizer: pass a larger `learning_rate`.",
    ),
    "base_lr": (
        "the scheduler EmoPulseScheduler v3.9.1",
        "It is no option of an optimizer: pass `learning_rate`.",
    ),
    # Of pytorch_optimizer's classes of these names.
    "shadow_weight": (
        f"{_EMO_CLASSES} 3.7 to 4.1",
        "It is `shadow_rate` here, with the same default of 0.05.",
    ),
    "weight_decouple": (
        f"{_EMO_CLASSES} 3.7 to 4.1",
        'It is `weight_decay_mode` here: "decoupled" for True (the default), "l2" for False.',
    ),
    "fixed_decay": (
        f"{_EMO_CLASSES} 3.7 to 4.1",
        'It is `weight_decay_mode="absolute"` here.',
    ),
    # Of Optax's optimizers.
    "eps_root": ("optax.adam", "There is no such term here: leave it out."),
    "mu_dtype": ("optax.adam", "It is `moment_dtype` here, which is the dtype of all moments."),
    "nesterov": ("optax.adam and optax.sgd", "There is no such variant here: leave it out."),
    "momentum": ("optax.sgd", "It is `b1` here."),
    "decay": ("optax.rmsprop", "It is `b2` here."),
    "weight_decay_mask": ("optax.adafactor and optax.lars", "It is `mask` here."),
    "decoupled_weight_decay": (
        "emo_optax.emo_clan",
        'It is `weight_decay_mode` here: "decoupled" (the default), "absolute" or "l2".',
    ),
    # Of torch.optim, and of emo_torch.
    "lr": ("PyTorch and emo_torch", "It is `learning_rate` here."),
    "betas": ("PyTorch and emo_torch", "It is `b1` and `b2` here, two numbers."),
    "params": ("PyTorch and emo_torch", "Pass the parameters to `init` and `update` here."),
    "maximize": ("PyTorch and emo_torch", "Negate the loss and the gradients here."),
    "foreach": ("PyTorch and emo_torch", "XLA compiles the whole step here: leave it out."),
    "fused": ("PyTorch and emo_torch", "XLA compiles the whole step here: leave it out."),
    "capturable": ("PyTorch and emo_torch", "XLA compiles the whole step here: leave it out."),
    "differentiable": ("PyTorch", "Leave it out."),
    "process_group": ("emo_torch", "Replicas are told apart by `axis_name` here."),
    "amsgrad": ("torch.optim.Adam and AdamW", "There is no such variant here: leave it out."),
    "dampening": ("torch.optim.SGD", "There is no such variant here: leave it out."),
    "alpha": ("torch.optim.RMSprop", "It is `b2` here."),
    "centered": ("torch.optim.RMSprop", "There is no such variant here: leave it out."),
    "lr_decay": ("torch.optim.Adagrad", "Pass a schedule of Optax as `learning_rate`."),
    "momentum_decay": ("torch.optim.NAdam", "There is no such variant here: leave it out."),
    # Other names for the same thing.
    "wd": ("some other libraries", "It is `weight_decay` here."),
    "epsilon": ("some other libraries", "It is `eps` here."),
    "beta1": ("some other libraries", "It is `b1` here."),
    "beta2": ("some other libraries", "It is `b2` here."),
}
"""Keywords of other optimizers: to which they belong, with versions, and what to write here."""

_LIKE_ADAMW = (
    "`learning_rate` is a step size like that of AdamW here: 1e-3 by default, usually between 1e-5 and "
    "1e-2."
)
_OF_LION = "`learning_rate` is a step size like that of Lion here: usually between 1e-5 and 1e-3."


def _third(name: str) -> str:
    return (
        f"{_LIKE_ADAMW} In the published {name} from v3.7 on, `lr=1.0` is the scope of an optimizer that "
        f"makes its own rate: that third generation is emo_{name[3:].lower()}3 here."
    )


LARGE_RATE_ADVICE: dict[str, str] = {
    "emo_sens": _third("EmoSens"),
    "emo_airy": _third("EmoAiry"),
    "emo_cats": _third("EmoCats"),
    "emo_navi": f"{_LIKE_ADAMW} For the published EmoNavi v3.6 6e-5 is advised.",
    "emo_fact": f"{_LIKE_ADAMW} For the published EmoFact v3.6 1e-4 is advised.",
    "emo_lynx": f"{_OF_LION} For the published EmoLynx v3.6 8e-5 is advised.",
    "emo_clan": _LIKE_ADAMW,
    "emo_neco": _OF_LION,
    "emo_zeal": _LIKE_ADAMW,
}
"""What to say about a large learning rate, by the function that makes the optimizer."""

_warned: set[str] = set()


def unexpected_keyword(owner: str, name: str, options: list[str]) -> str:
    """Returns the text of the error for a keyword that an optimizer does not have.

    Args:
        owner: the name of the optimizer.
        name: the keyword.
        options: the keywords that the optimizer has.
    """
    text = f"{owner}() got an unexpected keyword argument {name!r}."
    if name in FOREIGN_KEYWORDS:
        origin, here = FOREIGN_KEYWORDS[name]
        return f"{text} {name!r} belongs to {origin}. {here}"
    plain = {option.lower(): option for option in options}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=1)
    if near:
        return f"{text} Did you mean {plain[near[0]]!r}?"
    return f"{text} The options of {owner} are {', '.join(options)}."


def with_hints(function: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that makes an optimizer, with the same signature, and explains wrong arguments.

    Args:
        function: what makes an optimizer from hyperparameters.
    """
    options = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        owner = function.__name__
        unknown = [name for name in kwargs if name not in options]
        if unknown:
            raise TypeError("\n".join(unexpected_keyword(owner, name, options) for name in unknown))
        given = {**dict(zip(options, args, strict=False)), **kwargs}
        _check_order(given)
        made = function(*args, **kwargs)
        warn_of_large_rate(owner, given.get("learning_rate"))
        return made

    return checked


def _check_order(given: dict[str, Any]) -> None:
    """Raises a `TypeError` where a pair stands in the place of a number, as PyTorch's arguments would."""
    pairs = [name for name in ("b1", "b2", "eps") if isinstance(given.get(name), tuple | list)]
    if pairs:
        raise TypeError(
            f"Invalid {pairs[0]}: {given[pairs[0]]!r}; it must be a number or an array. The order here is "
            "learning_rate, b1, b2, eps, weight_decay. PyTorch's optimizers have betas in place of b1 and "
            "b2, and the published files from v3.3 on have other arguments before betas (v3.6: lr, eps, "
            "betas): pass them by name, as in `b1=0.9, b2=0.995, eps=1e-8`."
        )


def warn_of_large_rate(name: str, learning_rate: Any) -> None:
    """Warns, once for each function, of a learning rate that is meant for another generation.

    Looks at numbers of Python and NumPy and at schedules that are constant; never at an array of JAX,
    which may be traced or on a device.

    Args:
        name: the name of the function that makes the optimizer.
        learning_rate: what it was given, or `None`.
    """
    if name not in LARGE_RATE_ADVICE or name in _warned:
        return
    rate = _constant(learning_rate) if inspect.isroutine(learning_rate) else learning_rate
    if isinstance(rate, np.ndarray) and rate.shape == ():
        rate = rate.item()
    if not is_number(rate) or not rate >= LARGE_RATE:
        return
    _warned.add(name)
    message = f"A learning rate of {rate:g} is very large for {name}. {LARGE_RATE_ADVICE[name]}"
    warnings.warn(message, EmoWarning, stacklevel=_caller_level())


def _constant(schedule: Callable[..., Any]) -> Any:
    """Returns what a schedule returns for every step, or `None` where that depends on the step."""
    try:
        return schedule(object())  # Whoever computes with it fails at once, and without JAX.
    except Exception:
        return None


def _caller_level() -> int:
    """Returns the `stacklevel`, for the function that asks, of the code that called this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        ("emo_optax", "optax")
    ):
        level, frame = level + 1, frame.f_back
    return level
