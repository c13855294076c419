"""Who is measured: EmoPilot, AdamW, optimizers that promise less tuning, and the published members."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax.numpy as jnp
import optax
from optax import contrib

import emo_optax
from benchmarks.quality.directions import factors, piloted, signs
from benchmarks.quality.first_rule import first_rule, first_weights
from emo_optax._pieces import courage, pilot, relative_emotion
from emo_optax._wrappers import piloted as member

Params = Any
Make = Callable[[Any, int], optax.GradientTransformation]
Evaluated = Callable[[Any, Params], Params]


class Contender(NamedTuple):
    """An optimizer to be measured.

    Attributes:
        name: its name in results.
        default: its default learning rate, which is among the rates of the plan.
        make: from a learning rate and the number of steps of the run to the optimizer.
        evaluated: by the title of a row of the tables, the weights to evaluate, from state and parameters.
    """

    name: str
    default: float
    make: Make
    evaluated: dict[str, Evaluated]


def _trained(title: str) -> dict[str, Evaluated]:
    return {title: lambda _, params: params}


def _member(name: str) -> Contender:
    title = "Emo" + name.removeprefix("emo_").capitalize()
    return Contender(
        # A learning rate in an array would be checked as a number: a schedule is not.
        *(name, 1e-3, lambda rate, _: emo_optax.create_optimizer(name, lambda _: rate)),
        _trained(title),
    )


def _pilot(rate: Any, steps: int) -> optax.GradientTransformation:
    del steps
    return emo_optax.emo_pilot(rate)


def _cosine(rate: Any, steps: int) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=0.01)


def _momo(rate: Any, steps: int) -> optax.GradientTransformation:
    del steps
    return contrib.momo_adam(rate)


def _pilot_airy(rate: Any, steps: int) -> optax.GradientTransformation:
    del steps
    return emo_optax.emo_pilot_airy(rate)


PILOT, ADAMW, AVERAGED = "EmoPilot", "AdamW", "AdamW + average"

CONTENDERS = {
    each.name: each
    for each in (
        Contender("emo_pilot", 1e-2, _pilot, {PILOT: emo_optax.eval_params}),
        Contender(
            *("adamw", 1e-3),
            lambda rate, _: emo_optax.average_weights(optax.adamw(rate, weight_decay=0.01)),
            _trained(ADAMW) | {AVERAGED: emo_optax.eval_params},
        ),
        Contender("cosine", 1e-3, _cosine, _trained("AdamW + cosine")),
        Contender(
            *("schedule_free", 3e-3, lambda rate, _: contrib.schedule_free_adamw(rate)),
            {
                "AdamW, schedule-free": lambda state, params: contrib.schedule_free_eval_params(
                    state, params
                )
            },
        ),
        Contender("prodigy", 1.0, lambda rate, _: contrib.prodigy(rate), _trained("Prodigy")),
        Contender("momo", 1e-2, _momo, _trained("MoMo-Adam")),
        Contender("muon", 1e-3, lambda rate, _: contrib.muon(rate), _trained("Muon")),
        Contender("emo_pilot_airy", 1e-2, _pilot_airy, {"EmoPilotAiry": emo_optax.eval_params}),
        *(_member(name) for name in ("emo_sens", "emo_airy", "emo_cats")),
        *(
            _member(name)
            for name in ("emo_navi", "emo_fact", "emo_lynx", "emo_clan", "emo_neco", "emo_zeal")
        ),
    )
}
"""In the order in which they run: the most telling first."""

DEFAULTS = {title: each.default for each in CONTENDERS.values() for title in each.evaluated}
"""The default learning rate by row of the tables; that of schedule-free AdamW is 2.5e-3."""


# EmoPilot with other options, and without one of its pieces.


def _without(name: str, *patches: tuple[Any, str, Any], is_averaged: bool = True) -> Contender:
    """Returns EmoPilot with some functions replaced while its step is traced."""

    def make(rate: Any, steps: int) -> optax.GradientTransformation:
        inner = _pilot(rate, steps)

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            with contextlib.ExitStack() as stack:
                for module, function, other in patches:
                    stack.enter_context(mock.patch.object(module, function, other))
                return inner.update(updates, state, params, **extra)

        return optax.GradientTransformationExtraArgs(inner.init, update)

    averaged: dict[str, Evaluated] = {name: emo_optax.eval_params}
    evaluated = averaged if is_averaged else _trained(name)
    return Contender(name, 1e-2, make, evaluated)


_feel, _move = relative_emotion.feel_relative, courage.move_courage


def _feel_within(least: float, most: float) -> Callable[..., Any]:
    def feel(*given: Any) -> Any:
        felt = _feel(*given)
        return felt._replace(scalar=jnp.clip(felt.scalar, least, most))

    return feel


def _open_gate(norm: Any, average: Any, *given: Any) -> Any:
    del given
    return jnp.ones_like(norm), average


def _move_blindly(state: Any, agreement: Any, *given: Any) -> Any:
    return _move(state, jnp.zeros_like(agreement), *given)


LEFT_OUT = {
    each.name: each
    for each in (
        _without("whole"),
        _without("without gate", (pilot, "gate", _open_gate)),
        _without("without agreement", (pilot, "move_courage", _move_blindly)),
        _without("without cut on a rising loss", (pilot, "feel_relative", _feel_within(-1.0, 0.5))),
        _without("without growth on a falling loss", (pilot, "feel_relative", _feel_within(-0.5, 1.0))),
        _without("without warm-up", (courage, "warm_up", lambda *given: jnp.zeros_like(given[0]))),
        _without("without ceiling", (member, "step_ceiling", lambda square: jnp.full_like(square, 1e9))),
        _without("without average", is_averaged=False),
    )
}


def _at_most(most: float) -> Contender:
    name = f"EmoPilot, max_courage={most:g}"
    return Contender(
        *(name, 1e-2, lambda rate, _: emo_optax.emo_pilot(rate, max_courage=most)),
        {name: emo_optax.eval_params},
    )


BOUNDED = {each.name: each for each in map(_at_most, (1.0, 10.0))}


def _directed(name: str, direction: Callable[[], optax.GradientTransformation]) -> Contender:
    return Contender(
        *(name, 1e-2, lambda rate, _: piloted(direction(), rate)),
        {name: emo_optax.eval_params},
    )


DIRECTIONS = {
    each.name: each
    for each in (
        _directed("factors, no momentum (Adafactor)", lambda: factors(None)),
        _directed("factors, momentum 0.9", lambda: factors(0.9)),
        _directed("signs (Lion, cautious)", signs),
    )
}
"""EmoPilot with another direction. `emo_pilot_airy` is built on the second one."""

FIRST = "EmoPilot, first version"
_FIRST = Contender(FIRST, 1e-2, lambda rate, _: first_rule(rate), {FIRST: first_weights})

ALL = CONTENDERS | LEFT_OUT | BOUNDED | DIRECTIONS | {FIRST: _FIRST}
