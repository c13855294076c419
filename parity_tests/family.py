"""The members of the family, each with its two sides, from the registries of both packages.

A new member needs no line here. The test options of a single member are in `_OWN`, by name.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import torch

import emo_torch
from emo_optax._members import by_name as optax_names
from emo_shared.eight_bit import EIGHT_BIT
from emo_torch._members import by_name as torch_names
from parity_tests.tolerances import LOCKSTEP


class Member(NamedTuple):
    """One optimizer in both packages.

    Attributes:
        name: its name in PyTorch, and in the recordings.
        optax: makes the Optax side.
        torch: makes the PyTorch side.
        more_options: options, by PyTorch's names, which only this member has and which are tested too.
        lacks: options, by name, which the others have and this member has not.
        cousin: the member that has the same rule and is tested with more options, if there is one.
        memory: what stands before the names of the leaves in which it remembers the losses.
        recorded: options with which it equals the published code.
        steps: how many steps the twins are held to each other in some dtype, where that is less than 300:
            with one of `OPTIONS`, with one kind of losses, or with `more_options` ("more").
    """

    name: str
    optax: Callable[..., Any]
    torch: Callable[..., emo_torch.LossOptimizer]
    more_options: tuple[dict[str, Any], ...] = ()
    lacks: frozenset[str] = frozenset()
    cousin: str | None = None
    memory: str = "emotion"
    recorded: Mapping[str, Any] = MappingProxyType({})
    steps: Mapping[tuple[str, str], int] = MappingProxyType({})

    def known(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options, among the given ones, that this member has."""
        return {name: value for name, value in options.items() if name not in self.lacks}

    def is_tested_with(self, options: str, dtype: str) -> bool:
        """Returns whether a set of `OPTIONS` is to be tried: one whose cousin has the rule needs few."""
        if self.lacks & OPTIONS[options].keys():
            return False
        return self.cousin is None or (dtype == "float64" and options in ("default", "l2", "numbers"))


WAYS = ("foreach", "fused")
"""Options of PyTorch alone: how to take one and the same step."""

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

ROUNDED: dict[str, tuple[dict[str, Any], ...]] = {
    "EmoSens": ({"rounding": "kahan"}, {"rounding": "stochastic"}),
    "EmoAiry": ({"rounding": "kahan", "foreach": True},),
    "RefAdamWMiniScheduleFree": ({"rounding": "stochastic", "foreach": True},),
}
"""More options for some, in bfloat16: float32 and float64 know no rounding, and it knows no rule.

No shadow in Kahan's sums: it pulls at the parameter alone, so that a unit by which two parameters, but not
their sums, are apart would get into the sums.
"""


_OF_PULSE: dict[str, Any] = {
    "more_options": (
        {"lr": 30.0, "steady": True, "use_shadow": True},
        {"lr": 10.0, "spike_limit": 1.5, "loss_unit": "first", "stopcoef": 0.3},
        {"loss_unit": 0.5, "steady": True, "weight_decay": 0.1},
    ),
}
"""Options of the third generation alone."""

_OWN: dict[str, dict[str, Any]] = {
    # One member of each later generation, and of each new rule, is driven in full.
    **{name: {**_OF_PULSE, "cousin": None} for name in ("emo_sens3", "emo_void")},
    # Its step depends on the ratio of nearly equal sums. Where both sums agree in all digits, the order in
    # which a framework adds decides: lockstep_test.py shows that PyTorch alone is as far from itself.
    "emo_tion": {
        **_OF_PULSE,
        "cousin": None,
        "steps": MappingProxyType(
            {
                ("negative", "float64"): 200,
                ("more", "float64"): 120,
                **{(title, "float32"): 120 for title in ("spiky", "not_finite", "l2")},
            }
        ),
    },
    "emo_airy3": {**_OF_PULSE, "cousin": "EmoVoid"},
    "emo_cats3": _OF_PULSE,
    "emo_navi36": {"cousin": None, "steps": MappingProxyType({("l2", "bfloat16"): 150})},
    "emo_fact36": {"cousin": "EmoVoid"},
    # Of `steps`: with no gradient but L2 decay, weights swing around 0 by steps of their own length, and a
    # rounding grows; of RefAdamWMiniScheduleFree a hundred million times in 100 steps.
    "emo_pilot": {
        "more_options": (
            {"average": False, "min_courage": 0.5, "max_courage": 2.0, "gate_limit": 1.5},
            {"max_courage": 1.0, "weight_decay": 0.1},
            {"lr": 1e-3},  # Small enough for the warm-up.
        ),
    },
    # A long step of bfloat16 is rounded by more than a weight that it brings near 0.
    "emo_pilot_airy": {
        "more_options": ({"max_courage": 1.0, "weight_decay": 0.1},),
        "cousin": "EmoPilot",
        "steps": MappingProxyType({("spiky", "bfloat16"): 150}),
    },
    "emo_zeal": {"steps": MappingProxyType({("l2", "bfloat16"): 150})},
    "ref_adamw_mini_schedule_free": {
        "more_options": (
            {"ref_max_steps": 250, "ref_alpha": 0.3, "injection_bound": 0.2},
            {"min_lr": 1e-4, "max_lr": 2e-3, "schedulefree_alpha": 0.5},
        ),
        "recorded": MappingProxyType({"injection_bound": None}),
        "steps": MappingProxyType({("l2", dtype): 150 for dtype in LOCKSTEP}),
    },
}
"""Attributes of a `Member` that cannot be derived, by the member's name in the registries."""


def _cousin(member: torch_names.Member) -> str | None:
    """Returns the member of the second generation with the very same rules, if it is another one."""
    recipe = member.make.recipe
    for other in torch_names.MEMBERS.values():
        is_other = other.name != member.name and other.generation == 2
        if is_other and other.make.recipe.rules == recipe.rules and recipe.first is None:
            return other.make.__name__
    return None


def _member(name: str) -> Member:
    ours, theirs = optax_names.MEMBERS[name], torch_names.MEMBERS[name]
    known = inspect.signature(theirs.make).parameters
    tested = {option for options in OPTIONS.values() for option in options} | set(WAYS)
    derived: dict[str, Any] = {
        "more_options": _DECOUPLED if "decoupled_weight_decay" in known else (),
        "lacks": frozenset(
            (tested - known.keys()) | (set() if theirs.make.recipe.has_kernel else {"fused"})
        ),
        "cousin": _cousin(theirs),
        "memory": theirs.make.memory_title,
    }
    return Member(theirs.make.__name__, ours.make, theirs.make, **{**derived, **_OWN.get(name, {})})


_DECOUPLED = ({"decoupled_weight_decay": True, "lr": 2e-3, "weight_decay": 1e-4},)
FAMILY = {member.name: member for member in map(_member, torch_names.MEMBERS)}
"""Every member, by its name in PyTorch."""


def optax_options(options: dict[str, Any]) -> dict[str, Any]:
    """Translates options from PyTorch's names to Optax's."""
    options = {name: value for name, value in options.items() if name not in WAYS}
    if "lr" in options:
        options["learning_rate"] = options.pop("lr")
    if "betas" in options:
        options["b1"], options["b2"] = options.pop("betas")
    if options.get("moment_dtype") not in (None, EIGHT_BIT):
        options["moment_dtype"] = jnp.dtype(str(options["moment_dtype"]).removeprefix("torch."))
    return options


def torch_options(options: dict[str, Any]) -> dict[str, Any]:
    """Returns options as PyTorch's side takes them: the readable way to step, unless they name another."""
    options = dict(options) if options.get("fused") else {"foreach": False, **options}
    if isinstance(options.get("moment_dtype"), str) and options["moment_dtype"] != EIGHT_BIT:
        options["moment_dtype"] = getattr(torch, options["moment_dtype"])
    return options
