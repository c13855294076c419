"""Hints for arguments of another optimizer, and warnings about learning rates and narrow weights."""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from emo_shared.hints import LARGE_RATE, PULSE_FILES, SHARED_KEYWORDS, caller_level, unexpected_keyword
from emo_torch._checks.errors import EmoWarning

_THIRD = "EmoSens3, EmoAiry3, EmoCats3, EmoTion and EmoVoid"

FOREIGN_KEYWORDS: dict[str, tuple[str, str]] = {
    **SHARED_KEYWORDS,
    # Of the published files.
    "stopcoef": (
        f"{PULSE_FILES} v3.8.6+ and v3.9.1",
        f"The third generation has it here, too: {_THIRD}. The stop signal of the earlier generations has "
        "fixed bounds; `emo_torch.went_quiet` takes others.",
    ),
    "notify": (
        f"{PULSE_FILES} v3.8.6+ and v3.9.1",
        f"The third generation has it here, too: {_THIRD}. Elsewhere read `optimizer.should_stop`, or use "
        "`emo_torch.EarlyStop`.",
    ),
    "fftmode": (
        f"{PULSE_FILES} v3.8.6 (v3.9.1 has it no longer)",
        "It divided the learning rate by 10: pass a tenth of `lr`.",
    ),
    "writer": (
        "EmoNavi, EmoFact and EmoLynx v3.1 and v3.6.1, and EmoSens v3.7.1",
        "Write `emo_torch.get_metrics(optimizer)` to your SummaryWriter after each step.",
    ),
    "lr_max": (
        "EmoNavi, EmoFact and EmoLynx v3.3, also of pytorch_optimizer 3.9",
        "There is no automatic rate here: pass `lr`, and bound it with a schedule of "
        "`torch.optim.lr_scheduler`.",
    ),
    "lr_min": (
        "EmoNavi, EmoFact and EmoLynx v3.3, also of pytorch_optimizer 3.9",
        "There is no automatic rate here: pass `lr`, and bound it with a schedule of "
        "`torch.optim.lr_scheduler`.",
    ),
    "histwarmup": (
        "the scheduler EmoPulse v3.9.3+",
        "It is no option of an optimizer: use a warm-up schedule of `torch.optim.lr_scheduler`.",
    ),
    "boost": (
        "the scheduler EmoPulse v3.9.3+",
        "It is no option of an optimizer: pass a larger `lr`.",
    ),
    "base_lr": (
        "the scheduler EmoPulseScheduler v3.9.1",
        "It is no option of an optimizer: pass `lr`.",
    ),
    # Of torch.optim.
    "nesterov": ("torch.optim.SGD", "There is no such variant here: leave it out."),
    "momentum": ("torch.optim.SGD and RMSprop", "It is the first of `betas` here."),
    "alpha": ("torch.optim.RMSprop", "It is the second of `betas` here."),
    "lr_decay": ("torch.optim.Adagrad", "Use a schedule of `torch.optim.lr_scheduler`."),
    "differentiable": ("torch.optim", "A step has no gradient here: leave it out."),
    "decoupled_weight_decay": (
        "torch.optim.Adam, NAdam and RAdam, and emo_torch.EmoClan",
        'It is `weight_decay_mode` here: "decoupled" (the default), "absolute" or "l2".',
    ),
    # Of Optax, and of emo_optax.
    "learning_rate": ("Optax and emo_optax", "It is `lr` here."),
    "b1": ("Optax and emo_optax", "It is the first of `betas` here."),
    "b2": ("Optax and emo_optax", "It is the second of `betas` here."),
    "eps_root": ("Optax", "There is no such term here: leave it out."),
    "mu_dtype": ("Optax", "It is `moment_dtype` here, which is the dtype of all moments."),
    "mask": (
        "Optax and emo_optax",
        "Give weight decay by parameter groups here: `emo_torch.decay_groups(model.named_parameters())`.",
    ),
    "axis_name": ("emo_optax", "Use `process_group` here: the processes over which the loss is averaged."),
    # Other names for the same thing.
    "beta1": ("some other libraries", "It is the first of `betas` here."),
    "beta2": ("some other libraries", "It is the second of `betas` here."),
}
"""Keywords of other optimizers: their origin, with versions, and the argument to use here."""

_LIKE_ADAMW = "`lr` is a step size like that of AdamW here: 1e-3 by default, usually between 1e-5 and 1e-2."
_OF_LION = "`lr` is a step size like that of Lion here: usually between 1e-5 and 1e-3."


def _third(name: str) -> str:
    return (
        f"{_LIKE_ADAMW} In the published {name} from v3.7 on, `lr=1.0` is the scope of an optimizer that "
        f"makes its own rate: that third generation is {name}3 here."
    )


LARGE_RATE_ADVICE: dict[str, str] = {
    "EmoSens": _third("EmoSens"),
    "EmoAiry": _third("EmoAiry"),
    "EmoCats": _third("EmoCats"),
    "EmoNavi": f"{_LIKE_ADAMW} For the published EmoNavi v3.6 6e-5 is advised.",
    "EmoFact": f"{_LIKE_ADAMW} For the published EmoFact v3.6 1e-4 is advised.",
    "EmoLynx": f"{_OF_LION} For the published EmoLynx v3.6 8e-5 is advised.",
    "EmoClan": _LIKE_ADAMW,
    "EmoNeco": _OF_LION,
    "EmoZeal": _LIKE_ADAMW,
}
"""The advice about a large learning rate, by the class of the optimizer."""

_warned: set[str] = set()


def with_hints(init: Callable[..., None]) -> Callable[..., None]:
    """Returns an `__init__` with the same signature that explains an argument of another optimizer.

    Args:
        init: the `__init__` of an optimizer.
    """
    parameters = list(inspect.signature(init).parameters.values())[1:]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    options = [
        each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        unknown = [] if takes_any else [name for name in kwargs if name not in options]
        if unknown:
            owner = type(self).__name__
            lines = (unexpected_keyword(owner, name, options, FOREIGN_KEYWORDS) for name in unknown)
            raise TypeError("\n".join(lines))
        _check_order({**dict(zip(options, args, strict=False)), **kwargs})
        init(self, *args, **kwargs)

    return checked


def _check_order(given: dict[str, Any]) -> None:
    """Raises a `TypeError` where `eps` was given in the place of `betas`."""
    betas, others = given.get("betas"), (given.get("eps"), given.get("weight_decay"))
    if isinstance(betas, int | float) and any(isinstance(other, tuple | list) for other in others):
        raise TypeError(
            f"Invalid betas: {betas!r}; it must be a pair of numbers. The order here is lr, betas, eps, "
            "weight_decay. The published files from v3.3 on have other arguments before betas (v3.6: lr, "
            "eps, betas): pass them by name, as in `betas=(0.9, 0.995), eps=1e-8`."
        )


def warn_of_large_rate(optimizer: Any, lr: Any) -> None:
    """Warns, once for each class, of a learning rate that is meant for another generation.

    Never waits for a device: a tensor is read where it is on the CPU.

    Args:
        optimizer: the optimizer that gets the learning rate.
        lr: the learning rate of a new parameter group, a number or a tensor of one element.
    """
    if torch.compiler.is_compiling():
        return
    is_readable = type(lr) is Tensor and lr.device.type == "cpu" if isinstance(lr, Tensor) else True
    if not is_readable or not float(lr) >= LARGE_RATE:
        return
    name = _made_as(type(optimizer))
    if name in LARGE_RATE_ADVICE:
        advice = LARGE_RATE_ADVICE[name]
        _warn_once(name, f"A learning rate of {float(lr):g} is very large for {name}. {advice}")


def warn_of_narrow_weights(name: str, narrow: Iterable[Tensor]) -> None:
    """Warns, once for each name, of weights below float32 where steps are read from the weights.

    Args:
        name: the name of the class or function that reads the steps.
        narrow: the parameters below float32.
    """
    dtypes = {param.dtype for param in narrow}
    if dtypes:
        _warn_once(
            name,
            f"{name} reads each step of the inner optimizer from the weights. With weights of "
            f"{', '.join(map(str, dtypes))} it loses steps that are shorter than the rounding of the "
            "weights, and may hardly train. Keep the weights in float32 (torch.autocast computes in "
            "bfloat16), or use EmoPilot, whose rounding='kahan' loses nothing.",
        )


def _warn_once(name: str, message: str) -> None:
    if name not in _warned:
        _warned.add(name)
        warnings.warn(message, EmoWarning, stacklevel=caller_level(("emo_torch", "torch", "contextlib")))


def _made_as(cls: type) -> str:
    """Returns the name of the class of this package whose `__init__` makes an optimizer."""
    own = (each for each in cls.__mro__ if "__init__" in vars(each))
    return next((each.__name__ for each in own if each.__module__.partition(".")[0] == "emo_torch"), "")
