"""Every number that a user does not give is that of the published code, in either package."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import emo_optax
import emo_torch
from parity_tests.family import FAMILY

NUMBERS: dict[str, Any] = {
    "short_factor": 0.3,
    "long_factor": 0.01,
    "gain": 5.0,
    "theta": 1e-4,
    "shadow_rate": 0.05,
    "eps": 1e-8,
    "min_lr": 1e-6,
    "max_lr": 1e-2,
    "schedulefree_alpha": 0.05,
    "ref_max_steps": None,
    "injection_bound": 0.1,
    "b1": 0.9,
    "b2": 0.999,
    "betas": (0.9, 0.999),
    "learning_rate": 1e-3,
    "lr": 1e-3,
    "weight_decay": 0.01,
    "mean_below": 0.05,
    "variance_below": 0.005,
    "use_shadow": False,
    "shadow_ratio": "v2.0",
    "ratio": "v2.0",
    "weight_decay_mode": "decoupled",
    "decoupled_weight_decay": False,
    "moment_dtype": None,
    "rounding": "nearest",
    "axis_name": None,
    "process_group": None,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "fused": None,
}
LION = {"b2": 0.99, "betas": (0.9, 0.99)}
OF_LION = {
    *("emo_cats", "EmoCats", "emo_lynx", "EmoLynx", "emo_neco", "EmoNeco"),
    *("scale_by_lion", "scale_by_cautious_sign", "scale_by_softsign"),
}
SHADOW = {"use_shadow": True}
OF_SHADOW = {"emo_navi", "EmoNavi", "emo_fact", "EmoFact", "emo_lynx", "EmoLynx"}
LATER = {"b2": 0.995, "betas": (0.9, 0.995)}
OF_36 = {
    *("emo_navi36", "emo_fact36", "emo_lynx36", "scale_by_sign"),
    *("EmoNavi36", "EmoFact36", "EmoLynx36"),
}
PULSE = {
    **LATER,
    "learning_rate": 1.0,
    "lr": 1.0,
    "scope": 1.0,
    "stopcoef": 0.04,
    "steady": False,
    "spike_limit": None,
    "loss_unit": None,
}
OF_PULSE = {
    *("emo_sens3", "emo_airy3", "emo_cats3", "emo_tion", "emo_void"),
    *("EmoSens3", "EmoAiry3", "EmoCats3", "EmoTion", "EmoVoid", "EmoPulseScheduler", "init_pulse"),
    *("share_pulse", "scale_by_pulse", "pulse_schedule", "feel_pulse"),
}
PILOT = {"learning_rate": 1e-2, "lr": 1e-2}
OF_PILOT = {"emo_pilot", "emo_pilot_airy", "EmoPilot", "EmoPilotAiry"}
NO_DECAY = {"weight_decay": 0.0}
OF_NO_DECAY = {"emo_tion", "emo_void", "EmoTion", "EmoVoid"}


def _public() -> Iterator[tuple[str, Callable[..., Any]]]:
    for package in (emo_optax, emo_torch):
        for name, value in vars(package).items():
            if callable(value) and not name.startswith("_") and not name.endswith("Error"):
                yield f"{package.__name__}.{name}", value


@pytest.mark.parametrize(("name", "function"), list(_public()), ids=[name for name, _ in _public()])
def test_the_defaults_are_those_of_the_spec(name: str, function: Callable[..., Any]) -> None:
    short = name.split(".")[1]
    expected = {
        **NUMBERS,
        **(LION if short in OF_LION else {}),
        **(SHADOW if short in OF_SHADOW else {}),
        **(LATER if short in OF_36 else {}),
        **(PULSE if short in OF_PULSE else {}),
        **(PILOT if short in OF_PILOT else {}),
        **(NO_DECAY if short in OF_NO_DECAY else {}),
        # Without a learning rate, courage has no warm-up.
        **({"learning_rate": 0.0} if short == "move_courage" else {}),
        # Not one to step by, and read from the state.
        **({"learning_rate": None, "theta": None} if short == "get_metrics" else {}),
    }
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not inspect.Parameter.empty and parameter.name in expected:
            assert parameter.default == expected[parameter.name], parameter.name


def test_both_packages_name_their_options_alike() -> None:
    for member in FAMILY.values():
        ours, theirs = member.optax, member.torch
        names = set(inspect.signature(ours).parameters)
        twins = set(inspect.signature(theirs).parameters)
        # Replicas are told apart by an axis here, by a group of processes there.
        # EmoPilot and EmoPilotAiry need sums over whole parameters.
        shards = {"shard_axis_name"} if member.name in ("EmoPilot", "EmoPilotAiry") else set()
        assert names - twins == {"learning_rate", "b1", "b2", "mask", "axis_name", *shards}
        here = {"params", "lr", "betas", "maximize", "foreach", "fused", "capturable", "process_group"}
        # The stop signal of the pulse is logged there; a transformation that is compiled cannot log.
        assert twins - names == here | ({"notify"} if "stopcoef" in twins else set())
