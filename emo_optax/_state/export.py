"""Serialization of exported steps: `jax.export` has to know the classes of an optimizer's state."""

from typing import Any

import jax
import jax.export
import optax

from emo_optax._members.ref_adamw_mini_schedule_free import RefAdamWMiniScheduleFreeState, RefMomentsState
from emo_optax._pieces.accumulation import AccumulateState
from emo_optax._pieces.averaged_weights import AverageWeightsState
from emo_optax._pieces.courage import CourageState
from emo_optax._pieces.divergence import DivergenceState
from emo_optax._pieces.drive import DriveState, ShareDriveState
from emo_optax._pieces.emotion import Emotion, EmotionState, ShareEmotionState
from emo_optax._pieces.gate import GateByNormState
from emo_optax._pieces.pilot import Pilot, PilotState, SteeredState
from emo_optax._pieces.pulse import PulseState
from emo_optax._pieces.relative_emotion import RelativeEmotionState
from emo_optax._pieces.rounding import RoundStochasticallyState, RoundWithKahanState
from emo_optax._pieces.shadow_effect import FilterByEmotionState, ScaleByEmotionState
from emo_optax._pieces.shadow_system import BlendWithShadowState
from emo_optax._pieces.share_pulse import SharePulseState
from emo_optax._pieces.weight_decay import AddWeightDecayState
from emo_optax._rules.adam import ScaleByUncorrectedAdamState
from emo_optax._rules.directions import PilotFactorsState, PilotMomentsState
from emo_optax._rules.eight_bit import CodedMoment
from emo_optax._rules.factors import ScaleByFactorsState
from emo_optax._rules.lion import ScaleByLionState
from emo_optax._rules.sign_rules import HoldNormState, ScaleByFreshSignState, ScaleBySignState
from emo_optax._rules.signs import ScaleByMomentumState
from emo_optax._rules.switch import StepFirstState, SwitchByEmotionState
from emo_optax._wrappers.early_stop_monitor import EarlyStopState
from emo_optax._wrappers.get_pulse import Drive, Pulse
from emo_optax._wrappers.runaway import Runaway, ScaleByRunawayState

_OURS: tuple[type, ...] = (
    *(AccumulateState, AddWeightDecayState, BlendWithShadowState, DivergenceState, EarlyStopState),
    *(Emotion, EmotionState, FilterByEmotionState, RefAdamWMiniScheduleFreeState, RefMomentsState),
    *(RoundStochasticallyState, RoundWithKahanState, Runaway, ScaleByEmotionState, ScaleByFactorsState),
    *(ScaleByLionState, ScaleByMomentumState, ScaleByRunawayState, ScaleByUncorrectedAdamState),
    *(ShareEmotionState, StepFirstState, SwitchByEmotionState),
    *(CodedMoment, Drive, Pilot, Pulse),
    *(AverageWeightsState, CourageState, GateByNormState, PilotState, SteeredState),
    *(PilotFactorsState, PilotMomentsState),
    *(RelativeEmotionState, DriveState, ShareDriveState, PulseState, SharePulseState),
    *(HoldNormState, ScaleByFreshSignState, ScaleBySignState),
)
_OF_OPTAX: tuple[type, ...] = (
    *(optax.EmptyState, optax.MaskedNode, optax.MaskedState, optax.ScaleByScheduleState),
    *(optax.MultiStepsState, optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState),
)
"""The classes of Optax in the states of members, `accumulate` and `optax.inject_hyperparams`."""


def register_for_export(*states: Any) -> None:
    """Lets `jax.export` serialize functions that take or return an optimizer state.

    All state classes of emo_optax are registered, and the classes of Optax that stand in the states of
    the members: `EmptyState`, `MaskedNode`, `MaskedState`, `ScaleByScheduleState`, `MultiStepsState`,
    `InjectHyperparamsState`, `InjectStatefulHyperparamsState` and the counter of an injected schedule.
    Call the function in the process that serializes and in the process that deserializes. A class that
    is registered already is skipped, so that the function may be called again.

    Args:
        *states: states, or trees of states, with other named tuples in them, such as the state of
            `emo_optax.emotional(optax.adamw(1e-3))`; each of their classes is registered, too.

    Raises:
        ValueError: if the name of a class is registered already for another class.

    Example:
        >>> import jax
        >>> import jax.export
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> emo_optax.register_for_export()
        >>> optimizer = emo_optax.emo_sens(1e-1)
        >>> params = jnp.ones(2)
        >>> state = optimizer.init(params)
        >>> step = jax.jit(lambda grads, state, loss: optimizer.update(grads, state, params, value=loss))
        >>> exported = jax.export.export(step)(params, state, jnp.asarray(1.0))
        >>> # Then jax.export.deserialize(exported.serialize()); JAX needs the package flatbuffers for it.
        >>> updates, state = exported.call(params, state, jnp.asarray(1.0))
        >>> print(emo_optax.get_emotion(state).felt)
        1
    """
    wrapped = type(optax.schedules.WrappedSchedule(lambda count: count).init())
    kinds = dict.fromkeys((*_OURS, *_OF_OPTAX, wrapped))
    for state in states:
        _collect(jax.tree.structure(state), kinds)
    for kind in kinds:
        _register(kind)


def _collect(structure: Any, kinds: dict[type, None]) -> None:
    """Adds the classes of all named tuples of a tree."""
    node = structure.node_data()
    if node is not None and hasattr(node[0], "_fields"):
        kinds[node[0]] = None
    for child in structure.children():
        _collect(child, kinds)


def _register(kind: type) -> None:
    """Registers the class of a named tuple, unless the class is registered already."""
    if kind in _OURS:
        name = f"emo_optax.{kind.__name__}"  # Stays the same if a file is renamed.
    elif getattr(optax, kind.__name__, None) is kind:
        name = f"optax.{kind.__name__}"
    else:
        name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        jax.export.register_namedtuple_serialization(kind, serialized_name=name)
    except ValueError as error:
        # There is no public way to ask. The other error of JAX is a name that another class has taken.
        if "registration for type" not in str(error):
            raise
