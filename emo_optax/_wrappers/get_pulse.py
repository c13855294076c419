"""Access to the pulse, and to the drive of v3.6.1, in any optimizer state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import first_node_of, with_new_arrays
from emo_optax._pieces.drive import DriveState, drive_factor
from emo_optax._pieces.early_stop import went_quiet
from emo_optax._pieces.pulse import PulseState
from emo_optax._pieces.shadow_system import BlendWithShadowState
from emo_optax._pieces.trust import trust_of


class Pulse(NamedTuple):
    """The pulse of an optimizer; every field is an array of shape `[]`.

    Attributes:
        pulse: the learning rate of the last step.
        short: the short average of the loss, in the unit of the loss.
        medium: the medium average of the loss, in the unit of the loss.
        long: the long average of the loss, in the unit of the loss.
        scalar: the emotion scalar s, in [-1, 1]; above 0 the loss is below its trend.
        trust: 1 - |s| with the sign of s, in [-1, 1].
        level: h, the level of the pulse.
        shadow_ratio: how far the last step pulled the weights to their shadow, in [0, 1]; 0 without one.
        should_stop: whether training has gone quiet, bool; can become False again.
        felt: losses felt so far, int32.
        held: losses skipped because they were not finite, int32.
    """

    pulse: jax.Array
    short: jax.Array
    medium: jax.Array
    long: jax.Array
    scalar: jax.Array
    trust: jax.Array
    level: jax.Array
    shadow_ratio: jax.Array
    should_stop: jax.Array
    felt: jax.Array
    held: jax.Array


def get_pulse(state: optax.OptState) -> Pulse:
    """Looks up the pulse in any nested optimizer state, inside or outside of jit.

    Args:
        state: the state of an optimizer with a pulse in it (`emo_sens3`, `scale_by_pulse`,
            `pulse_schedule`, and so on), at any depth inside of wrappers.

    Returns:
        The pulse, its averages, scalar, trust, stop signal and counts, as arrays. If several optimizers are
        combined (`optax.partition`), the values of the first one.

    Raises:
        ValueError: if there is no pulse in the state.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), emo_optax.emo_sens3())
        >>> params = jnp.ones(2)
        >>> _, state = optimizer.update(params, optimizer.init(params), params, value=0.7)
        >>> pulse = emo_optax.get_pulse(state)
        >>> print(f"{pulse.pulse:.1e} {pulse.trust} {pulse.should_stop}")
        1.0e-04 1.0 False
    """
    found = first_node_of(state, PulseState)
    if found is None:
        raise ValueError(
            "There is no pulse in this state. Pass the state of emo_sens3, emo_airy3, emo_cats3, emo_tion, "
            "emo_void, of scale_by_pulse or of pulse_schedule, or of a chain or wrapper around one. "
            "get_emotion is for the other members of the family."
        )
    felt = with_new_arrays(found)
    shadow = first_node_of(state, BlendWithShadowState)
    return Pulse(
        pulse=felt.pulse,
        short=felt.short,
        medium=felt.medium,
        long=felt.long,
        scalar=felt.scalar,
        trust=trust_of(felt.scalar),
        level=felt.level,
        shadow_ratio=jnp.zeros_like(felt.scalar) if shadow is None else jnp.asarray(shadow.ratio),
        should_stop=felt.should_stop,
        felt=felt.felt,
        held=felt.held,
    )


class Drive(NamedTuple):
    """The emotion of v3.6.1; every field is an array of shape `[]`.

    Attributes:
        drive: e, the factor of the update, in [0, 6.45].
        short: the short average of the loss, in the unit of the loss.
        medium: the medium average of the loss, in the unit of the loss.
        long: the long average of the loss, in the unit of the loss.
        scalar: the emotion scalar s, in [-1, 1]; above 0 the loss is below its trend.
        trust: 1 - |s| with the sign of s, in [-1, 1].
        shadow_ratio: how far the last step pulled the weights to their shadow, in [0, 1]; 0 without one.
        should_stop: whether training has ever gone quiet, bool; stays set.
        is_quiet: whether training is quiet now, over the last 32 losses, bool.
        felt: losses felt so far, int32.
        held: losses skipped because they were not finite, int32.
    """

    drive: jax.Array
    short: jax.Array
    medium: jax.Array
    long: jax.Array
    scalar: jax.Array
    trust: jax.Array
    shadow_ratio: jax.Array
    should_stop: jax.Array
    is_quiet: jax.Array
    felt: jax.Array
    held: jax.Array


def get_drive(state: optax.OptState) -> Drive:
    """Looks up the emotion of v3.6.1 in any nested optimizer state, inside or outside of jit.

    Args:
        state: the state of `emo_navi36`, `emo_fact36`, `emo_lynx36` or `scale_by_drive`, at any depth
            inside of wrappers.

    Returns:
        The drive, the averages, scalar, trust, stop signal (whether it was ever set, and now) and counts,
        as arrays.

    Raises:
        ValueError: if the state holds none.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> optimizer = emo_optax.emo_navi36(1e-4)
        >>> params = jnp.ones(2)
        >>> state = optimizer.init(params)
        >>> for loss in (2.0, 0.1):
        ...     _, state = optimizer.update(params, state, params, value=loss)
        >>> drive = emo_optax.get_drive(state)
        >>> print(f"{drive.scalar:.3f} {drive.drive:.3f}")
        0.271 6.255
    """
    found = first_node_of(state, DriveState)
    if found is None:
        raise ValueError(
            "There is no emotion of v3.6.1 in this state. Pass the state of emo_navi36, emo_fact36, "
            "emo_lynx36 or scale_by_drive, or of a chain or wrapper around one."
        )
    found = with_new_arrays(found)
    felt = found.emotion
    shadow = first_node_of(state, BlendWithShadowState)
    return Drive(
        drive=drive_factor(felt.scalar),
        short=felt.short,
        medium=found.medium,
        long=felt.long,
        scalar=felt.scalar,
        trust=trust_of(felt.scalar),
        shadow_ratio=jnp.zeros_like(felt.scalar) if shadow is None else jnp.asarray(shadow.ratio),
        should_stop=felt.should_stop,
        is_quiet=went_quiet(felt.history, felt.felt),
        felt=felt.felt,
        held=felt.held,
    )
