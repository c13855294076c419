"""The members of the family, each with its two sides. A new member is a new line here."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
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
        more_options: options, by PyTorch's names, which only this member has and which are tested too.
        lacks: options of the others that this member does not have.
        memory: what stands before the names of the leaves in which it remembers the losses.
        recorded: options with which it does what the published code did.
        steps: how many steps the twins stay in step under some of `OPTIONS`, where that is not 300.
        is_narrow: whether some of the published code's float64 passes through float32.
    """

    name: str
    optax: Callable[..., Any]
    torch: Callable[..., emo_torch.LossOptimizer]
    more_options: tuple[dict[str, Any], ...] = ()
    lacks: frozenset[str] = frozenset()
    memory: str = "emotion"
    recorded: Mapping[str, Any] = MappingProxyType({})
    steps: Mapping[str, int] = MappingProxyType({})
    is_narrow: bool = False

    def known(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns those of the options that this member has."""
        return {name: value for name, value in options.items() if name not in self.lacks}


FAMILY = {
    member.name: member
    for member in (
        Member("EmoSens", emo_optax.emo_sens, emo_torch.EmoSens),
        Member("EmoAiry", emo_optax.emo_airy, emo_torch.EmoAiry),
        Member(
            "EmoCats",
            emo_optax.emo_cats,
            emo_torch.EmoCats,
            ({"decoupled_weight_decay": True, "lr": 2e-3, "weight_decay": 1e-4},),
        ),
        Member(
            "RefAdamWMiniScheduleFree",
            emo_optax.ref_adamw_mini_schedule_free,
            emo_torch.RefAdamWMiniScheduleFree,
            (
                {"ref_max_steps": 250, "ref_alpha": 0.3, "injection_bound": 0.2},
                {"min_lr": 1e-4, "max_lr": 2e-3, "schedulefree_alpha": 0.5},
            ),
            lacks=frozenset(
                (
                    "use_shadow",
                    "shadow_ratio",
                    "shadow_rate",
                    "theta",
                    "short_factor",
                    "long_factor",
                    "gain",
                )
            ),
            memory="divergence",
            recorded=MappingProxyType({"injection_bound": None}),
            # With no gradient but L2 decay, weights swing around 0 by steps of their own length, and a
            # rounding grows a hundred million times in 100 steps.
            steps=MappingProxyType({"l2": 150}),
            is_narrow=True,
        ),
    )
}


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "shadow": {"use_shadow": True},
    "shadow_v1": {"use_shadow": True, "shadow_ratio": "v1.0"},
    "absolute": {"weight_decay_mode": "absolute", "weight_decay": 1e-4, "use_shadow": True},
    "l2": {"weight_decay_mode": "l2", "use_shadow": True},
    "theta": {"theta": 0.3},
    "feeling": {"short_factor": 0.5, "long_factor": 0.05, "gain": 0.7, "use_shadow": True},
    "numbers": {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "shadow_rate": 0.2},
}
"""Options, by PyTorch's names, with which every member is held to its twin."""


def optax_options(options: dict[str, Any]) -> dict[str, Any]:
    """Translates options from PyTorch's names to Optax's."""
    options = {name: value for name, value in options.items() if name != "foreach"}
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
