"""Metrics: what the emotion does, by names that a logger takes, fetched from the device at once."""

from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_optax._drive import DriveState
from emo_optax._emotion import wide_dtype
from emo_optax._emotional import _find, get_emotion
from emo_optax._get_pulse import get_drive, get_pulse
from emo_optax._pulse import PulseState
from emo_optax._shadow_effect import Keep, keep_elements
from emo_optax._validation import check_not_negative


@overload
def get_metrics(
    state: optax.OptState,
    *,
    grads: optax.Updates | None = None,
    theta: jax.typing.ArrayLike = 1e-4,
    keep: Keep = keep_elements,
    learning_rate: jax.typing.ArrayLike | None = None,
    shadow_effect: bool = True,
    as_floats: Literal[True] = True,
) -> dict[str, float]: ...
@overload
def get_metrics(
    state: optax.OptState,
    *,
    grads: optax.Updates | None = None,
    theta: jax.typing.ArrayLike = 1e-4,
    keep: Keep = keep_elements,
    learning_rate: jax.typing.ArrayLike | None = None,
    shadow_effect: bool = True,
    as_floats: Literal[False],
) -> dict[str, jax.Array]: ...
def get_metrics(
    state: optax.OptState,
    *,
    grads: optax.Updates | None = None,
    theta: jax.typing.ArrayLike = 1e-4,
    keep: Keep = keep_elements,
    learning_rate: jax.typing.ArrayLike | None = None,
    shadow_effect: bool = True,
    as_floats: bool = True,
) -> dict[str, float] | dict[str, jax.Array]:
    """Returns what the emotion, or the pulse, of an optimizer is, and does, as a flat dict for a logger.

    Nothing of it is computed unless asked for, and a step costs no more for it. A state is arrays
    alone: what the optimizer was made with, and it is to tell of, goes along.

    Args:
        state: the state of an optimizer with an emotion in it, however deeply wrapped.
        grads: the gradients of the last step, as the filter saw them (with what "l2" decay added).
        theta: the filter's threshold, as the optimizer has it, >= 0.
        keep: which elements it keeps: `keep_rows_and_columns(eps)` for `emo_airy`.
        learning_rate: the learning rate of the last step, a number; `schedule(step)` of a schedule.
        shadow_effect: whether updates are filtered and scaled; not by `emo_navi`, `emo_fact`,
            `emo_lynx`, `emo_clan`, `emo_neco` and `emo_zeal`.
        as_floats: whether to wait for the device, once, and return numbers; else arrays of shape
            `[]`, without waiting, also inside of jit.

    Returns:
        By names that begin with `emotion/`:

        - `short`, `long`: the averages of the loss, in its unit.
        - `scalar`: the emotion scalar, in [-1, 1].
        - `step_scale`: 1 - |scalar|, in [0, 1].
        - `shadow_ratio`: how far the last step pulled the weights to their shadow, in [0, 1].
        - `learning_rate`: the learning rate times the step scale, or alone without `shadow_effect`;
            left out without `learning_rate`.
        - `masked_share`: the share of the gradients' elements that the filter stops, in [0, 1]; left
            out without `grads`.
        - `should_stop`, `is_quiet`: whether training ever went quiet, and is quiet now; 0 or 1.
        - `felt`, `held`: how many losses were felt, and kept out because they were not finite.
        - `medium`, `trust`, `drive`: of v3.6.1 alone (see `get_drive`); the learning rate is multiplied by
            the drive there, and not by the step scale, and there is no masked share.

        The third generation (`emo_sens3` and so on) has names that begin with `pulse/`, one for each field
        of `get_pulse`: `pulse/pulse` is the learning rate of the step. The other arguments have no effect
        there.

    Raises:
        TypeError: for a schedule in the place of a learning rate, and for numbers asked for inside of
            jit.
        ValueError: if there is no emotion in the state, and for a theta below 0.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.emo_sens(0.1)
        >>> params = jnp.asarray([1.0, 2.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     loss, grads = jax.value_and_grad(lambda p: p[0] ** 2)(params)
        ...     updates, state = optimizer.update(grads, state, params, value=loss)
        ...     params = optax.apply_updates(params, updates)
        >>> metrics = emo_optax.get_metrics(state, grads=grads, learning_rate=0.1)
        >>> print(metrics["emotion/felt"], metrics["emotion/masked_share"])
        2.0 0.5
        >>> print(f"{metrics['emotion/scalar']:.4f} {metrics['emotion/learning_rate']:.4f}")
        -0.6493 0.0351
    """
    if _find(state, PulseState) is not None:
        metrics = {f"pulse/{name}": value for name, value in get_pulse(state)._asdict().items()}
    else:
        metrics = _of_emotion(state, grads, theta, keep, learning_rate, shadow_effect)
    if not as_floats:
        return metrics
    if any(isinstance(value, jax.core.Tracer) for value in metrics.values()):
        raise TypeError("Inside of jit there are no numbers yet: ask for get_metrics(..., as_floats=False)")
    # Side by side in one array, so that one look fetches all, and bit by bit, so that counts stay whole.
    fetched, values = np.asarray(_bits(tuple(metrics.values()))), {}
    for name, value in metrics.items():
        size = max(value.dtype.itemsize // 4, 1)
        bits, fetched = fetched[:size], fetched[size:]
        values[name] = float(bits.view(value.dtype)[0] if value.dtype != jnp.bool_ else bits[0])
    return values


def _of_emotion(
    state: optax.OptState, grads: Any, theta: Any, keep: Keep, learning_rate: Any, shadow_effect: bool
) -> dict[str, jax.Array]:
    """Returns the metrics of an emotion, that of v3.6.1 included."""
    emotion, scale = get_emotion(state), None
    own: dict[str, jax.Array] = {}
    if _find(state, DriveState) is not None:
        drive = get_drive(state)
        own = {f"emotion/{name}": getattr(drive, name) for name in ("medium", "trust", "drive")}
        scale, grads = drive.drive, None
    return {
        "emotion/short": emotion.short,
        "emotion/long": emotion.long,
        "emotion/scalar": emotion.scalar,
        "emotion/step_scale": emotion.step_scale,
        "emotion/shadow_ratio": emotion.shadow_ratio,
        **own,
        **_learning_rate(learning_rate, emotion.step_scale if scale is None else scale, shadow_effect),
        **_masked_share(grads, emotion.scalar, theta, keep, shadow_effect),
        "emotion/should_stop": emotion.should_stop,
        "emotion/is_quiet": emotion.is_quiet,
        "emotion/felt": emotion.felt,
        "emotion/held": emotion.held,
    }


@jax.jit
def _bits(values: tuple[jax.Array, ...]) -> jax.Array:
    """Returns the bits of numbers of 32 and 64 bits, and of booleans, as words of 32 bits."""
    words = [
        value.astype(jnp.uint32)
        if value.dtype == jnp.bool_
        else jax.lax.bitcast_convert_type(value, jnp.uint32)
        for value in values
    ]
    return jnp.concatenate([word.reshape(-1) for word in words])


def _learning_rate(learning_rate: Any, scale: jax.Array, shadow_effect: bool) -> dict[str, jax.Array]:
    """Returns what the updates are multiplied by."""
    if learning_rate is None:
        return {}
    if callable(learning_rate):
        raise TypeError("`learning_rate` is a schedule; pass its value at the step, schedule(step)")
    rate = jnp.asarray(learning_rate, scale.dtype).reshape(())
    return {"emotion/learning_rate": rate * scale if shadow_effect else rate}


def _masked_share(
    grads: optax.Updates | None, scalar: jax.Array, theta: Any, keep: Keep, shadow_effect: bool
) -> dict[str, jax.Array]:
    """Returns the share of the gradients' elements that the filter stops, if there are any."""
    check_not_negative("theta", theta)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(grads)]
    count = sum(leaf.size for leaf in leaves)
    if not count:
        return {}
    kept = jnp.asarray(0 if shadow_effect else count, scalar.dtype)
    for leaf in leaves if shadow_effect else ():
        wide = leaf.astype(wide_dtype(leaf))
        tolerance = jnp.asarray(theta, scalar.dtype) * (1.0 + jnp.abs(scalar))
        # A count of each leaf, in whole numbers; of all of them there may be more than int32 holds.
        kept = kept + jnp.sum(keep(wide, tolerance.astype(wide.dtype))).astype(scalar.dtype)
    return {"emotion/masked_share": 1.0 - kept / count}
