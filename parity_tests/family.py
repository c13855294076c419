"""The members of the family, each with its two sides. A new member is a new line here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import torch

import emo_optax
import emo_torch


class Member(NamedTuple):
    """One optimizer in both packages.

    Attributes:
        name: its name in PyTorch, and in the recordings.
        optax: makes the Optax side.
        torch: makes the PyTorch side.
    """

    name: str
    optax: Callable[..., Any]
    torch: Callable[..., emo_torch.EmoOptimizer]


FAMILY = {
    member.name: member
    for member in (
        Member("EmoSens", emo_optax.emo_sens, emo_torch.EmoSens),
        Member("EmoAiry", emo_optax.emo_airy, emo_torch.EmoAiry),
        Member("EmoCats", emo_optax.emo_cats, emo_torch.EmoCats),
    )
}


def optax_options(options: dict[str, Any]) -> dict[str, Any]:
    """Translates options from PyTorch's names to Optax's."""
    options = dict(options)
    if "lr" in options:
        options["learning_rate"] = options.pop("lr")
    if "betas" in options:
        options["b1"], options["b2"] = options.pop("betas")
    if options.get("moment_dtype") is not None:
        options["moment_dtype"] = jnp.dtype(str(options["moment_dtype"]).removeprefix("torch."))
    return options


def torch_options(options: dict[str, Any]) -> dict[str, Any]:
    """Returns options as PyTorch's side takes them."""
    options = dict(options)
    if isinstance(options.get("moment_dtype"), str):
        options["moment_dtype"] = getattr(torch, options["moment_dtype"])
    return options
