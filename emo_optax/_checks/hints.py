"""Hints for arguments that belong to another optimizer, and a warning about a very large learning rate."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from emo_optax._checks.errors import EmoWarning
from emo_optax._checks.validation import is_number
from emo_shared.hints import LARGE_RATE, PULSE_FILES, SHARED_KEYWORDS, caller_level, unexpected_keyword

P = ParamSpec("P")
R = TypeVar("R")

_THIRD = "emo_sens3, emo_airy3, emo_cats3, emo_tion and emo_void"

FOREIGN_KEYWORDS: dict[str, tuple[str, str]] = {
    **SHARED_KEYWORDS,
    # Of the published files.
    "stopcoef": (
        f"{PULSE_FILES} v3.8.6+ and v3.9.1",
        f"The third generation has it here, too: {_THIRD}. The stop signal of the earlier generations has "
        "fixed bounds; `emo_optax.went_quiet` takes others.",
    ),
    "notify": (
        f"{PULSE_FILES} v3.8.6+ and v3.9.1",
        f"The third generation has it here, too: {_THIRD}. Elsewhere read "
        "`emo_optax.get_emotion(state).should_stop`, or use `emo_optax.EarlyStop`.",
    ),
    "fftmode": (
        f"{PULSE_FILES} v3.8.6 (v3.9.1 has it no longer)",
        "It divided the learning rate by 10: pass a tenth of `learning_rate`.",
    ),
    "writer": (
        "EmoNavi, EmoFact and EmoLynx v3.1 and v3.6.1, and EmoSens v3.7.1",
        "Write `emo_optax.get_metrics(state)` to your SummaryWriter after each step.",
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
    "process_group": (
        "emo_torch",
        "Use `axis_name` here: the mapped axes over which the loss is averaged.",
    ),
    "alpha": ("torch.optim.RMSprop", "It is `b2` here."),
    "lr_decay": ("torch.optim.Adagrad", "Pass a schedule of Optax as `learning_rate`."),
    # Other names for the same thing.
    "beta1": ("some other libraries", "It is `b1` here."),
    "beta2": ("some other libraries", "It is `b2` here."),
}
"""Keywords of other optimizers: their origin, with versions, and the argument to use here."""

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
"""The advice about a large learning rate, by the function that makes the optimizer."""

_warned: set[str] = set()


def with_hints(function: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that makes an optimizer, with the same signature, and explains wrong arguments.

    Args:
        function: the function that makes an optimizer from hyperparameters.
    """
    options = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        owner = function.__name__
        unknown = [name for name in kwargs if name not in options]
        if unknown:
            lines = (unexpected_keyword(owner, name, options, FOREIGN_KEYWORDS) for name in unknown)
            raise TypeError("\n".join(lines))
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
        learning_rate: the learning rate given to this function, or `None`.
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
    warnings.warn(message, EmoWarning, stacklevel=caller_level(("emo_optax", "optax")))


def _constant(schedule: Callable[..., Any]) -> Any:
    """Returns the constant value of a schedule, or `None` if the value depends on the step."""
    try:
        return schedule(object())  # Code that computes with this object fails at once, and without JAX.
    except Exception:
        return None
