"""Metrics of the emotion, under names for a logger, fetched from the device in one transfer."""

from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_optax._checks.states import first_node_of, nodes_of
from emo_optax._checks.validation import check_not_negative
from emo_optax._pieces.drive import DriveState
from emo_optax._pieces.emotion import LENGTH, ShareEmotionState, wide_dtype
from emo_optax._pieces.pilot import PilotState, get_pilot
from emo_optax._pieces.pulse import PulseState
from emo_optax._pieces.shadow_effect import (
    FilterByEmotionState,
    Keep,
    ScaleByEmotionState,
    keep_elements,
    keep_rows_and_columns,
    with_options,
)
from emo_optax._wrappers.emotional import get_emotion
from emo_optax._wrappers.get_pulse import get_drive, get_pulse


@overload
def get_metrics(
    state: optax.OptState,
    *,
    grads: optax.Updates | None = None,
    theta: jax.typing.ArrayLike | None = None,
    keep: Keep | None = None,
    learning_rate: jax.typing.ArrayLike | None = None,
    shadow_effect: bool | None = None,
    as_floats: Literal[True] = True,
) -> dict[str, float]: ...
@overload
def get_metrics(
    state: optax.OptState,
    *,
    grads: optax.Updates | None = None,
    theta: jax.typing.ArrayLike | None = None,
    keep: Keep | None = None,
    learning_rate: jax.typing.ArrayLike | None = None,
    shadow_effect: bool | None = None,
    as_floats: Literal[False],
) -> dict[str, jax.Array]: ...
def get_metrics(
    state: optax.OptState,
    *,
    grads: optax.Updates | None = None,
    theta: jax.typing.ArrayLike | None = None,
    keep: Keep | None = None,
    learning_rate: jax.typing.ArrayLike | None = None,
    shadow_effect: bool | None = None,
    as_floats: bool = True,
) -> dict[str, float] | dict[str, jax.Array]:
    """Returns the emotion or the pulse of an optimizer, and its effects, as a flat dict for a logger.

    A step computes none of the metrics; only a call of this function does. Whether the optimizer filters
    and scales its updates, the threshold of the filter and the elements that the filter keeps are read
    from the state.

    Args:
        state: the state of an optimizer with an emotion in it, at any depth inside of wrappers.
        grads: the gradients of the last step, a tree of the shapes of the parameters, as the filter saw
            them (an "l2" decay included).
        theta: a threshold to use in the place of the filter's own, >= 0.
        keep: which elements the filter keeps; needed only where the filter was made with a `keep` of
            your own.
        learning_rate: the learning rate of the last step, a number >= 0; `schedule(step)` of a schedule.
            `None` takes the learning rate of `optax.inject_hyperparams`, if that is in the state.
        shadow_effect: whether updates are filtered and scaled; `None` reads it from the state.
        as_floats: whether to wait for the device, once, and return numbers; else arrays of shape
            `[]`, without waiting, also inside of jit.

    Returns:
        By names that begin with `emotion/`:

        - `short`, `long`: the averages of the loss, in its unit.
        - `scalar`: the emotion scalar, in [-1, 1].
        - `step_scale`: 1 - |scalar|, in [0, 1].
        - `shadow_ratio`: how far the last step pulled the weights to their shadow, in [0, 1].
        - `learning_rate`: the learning rate times the step scale, or the learning rate alone if updates are
            not scaled; left out if the learning rate is not known.
        - `masked_share`: the share of the gradients' elements that the filter stops, in [0, 1]; left
            out without `grads`.
        - `should_stop`, `is_quiet`: whether training was ever quiet, and whether it is quiet now; 0 or 1.
        - `felt`, `held`: the number of losses in the averages, and the number of losses that were not
            finite.
        - `medium`, `trust`, `drive`: of v3.6.1 alone (see `get_drive`); the learning rate is multiplied by
            the drive there, and not by the step scale, and there is no masked share.

        The third generation (`emo_sens3` and so on) has names that begin with `pulse/`, one for each field
        of `get_pulse`: `pulse/pulse` is the learning rate of the step. The other arguments have no effect
        there. `emo_pilot` and `autopilot` have names that begin with `pilot/`, one for each field of
        `get_pilot`, such as `pilot/courage`; the other arguments have no effect there, either.

    Raises:
        TypeError: for a schedule in the place of a learning rate, and for numbers asked for inside of
            jit.
        ValueError: if there is no emotion in the state, for a theta below 0, for a learning rate that is
            not one number, for `grads` without `keep` where the filter was made with a `keep` of your own,
            and for numbers of a state with a batch axis, as `jax.vmap` makes one.

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
    if first_node_of(state, PulseState) is not None:
        metrics = {f"pulse/{name}": value for name, value in get_pulse(state)._asdict().items()}
    elif first_node_of(state, PilotState) is not None:
        metrics = {f"pilot/{name}": value for name, value in get_pilot(state)._asdict().items()}
    else:
        metrics = _of_emotion(state, grads, theta, keep, learning_rate, shadow_effect)
    if not as_floats:
        return metrics
    if any(isinstance(value, jax.core.Tracer) for value in metrics.values()):
        raise TypeError("Inside jit the values are not known yet: call get_metrics(..., as_floats=False)")
    many = next((name for name, value in metrics.items() if value.shape), None)
    if many is not None:
        raise ValueError(
            f"The state has a batch axis: {many!r} has the shape {metrics[many].shape}. Ask for "
            "get_metrics(..., as_floats=False), which returns arrays of this shape, or pass the state of "
            "one model"
        )
    # All numbers in one array, so that one transfer fetches all; as bits, so that counts stay exact.
    fetched, values = np.asarray(_bits(tuple(metrics.values()))), {}
    for name, value in metrics.items():
        size = max(value.dtype.itemsize // 4, 1)
        bits, fetched = fetched[:size], fetched[size:]
        values[name] = float(bits.view(value.dtype)[0] if value.dtype != jnp.bool_ else bits[0])
    return values


def _of_emotion(
    state: optax.OptState,
    grads: Any,
    theta: Any,
    keep: Keep | None,
    learning_rate: Any,
    shadow_effect: bool | None,
) -> dict[str, jax.Array]:
    """Returns the metrics of an emotion, also of the emotion of v3.6.1."""
    emotion = get_emotion(state)
    shared = first_node_of(state, ShareEmotionState)
    inside = None if shared is None else shared.inner_state
    scales = shadow_effect
    if scales is None:
        own_filter = first_node_of(inside, FilterByEmotionState)
        is_whole_effect = own_filter is not None and isinstance(own_filter.theta, tuple)
        scales = is_whole_effect or first_node_of(inside, ScaleByEmotionState) is not None
    has_filter = shadow_effect is not False
    filtering = first_node_of(inside, FilterByEmotionState) if has_filter else None
    if filtering is not None and isinstance(filtering.theta, tuple):  # Of a member or of `emotional`.
        filtering = with_options(filtering, jnp.asarray(shared.emotion.numbers)[..., LENGTH:])
    if filtering is None and shadow_effect:
        filtering = FilterByEmotionState(jnp.asarray(1e-4), {"elements": ()}, None)
    scale, own = emotion.step_scale, {}
    if first_node_of(state, DriveState) is not None:
        drive = get_drive(state)
        own = {f"emotion/{name}": getattr(drive, name) for name in ("medium", "trust", "drive")}
        scale, scales, grads = drive.drive, True, None
    return {
        "emotion/short": emotion.short,
        "emotion/long": emotion.long,
        "emotion/scalar": emotion.scalar,
        "emotion/step_scale": emotion.step_scale,
        "emotion/shadow_ratio": emotion.shadow_ratio,
        **own,
        **_learning_rate(_known_rate(state, learning_rate), scale, scales),
        **_masked_share(grads, emotion.scalar, theta, keep, filtering),
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


def _known_rate(state: optax.OptState, learning_rate: Any) -> Any:
    """Returns the learning rate that was given, or the one of `optax.inject_hyperparams` in the state."""
    if learning_rate is not None:
        return learning_rate
    injected = [*nodes_of(state, optax.InjectStatefulHyperparamsState)]
    injected += nodes_of(state, optax.InjectHyperparamsState)
    rates = [node.hyperparams["learning_rate"] for node in injected if "learning_rate" in node.hyperparams]
    return rates[0] if len(rates) == 1 else None


def _learning_rate(learning_rate: Any, scale: jax.Array, scales: bool) -> dict[str, jax.Array]:
    """Returns the factor of the updates."""
    if learning_rate is None:
        return {}
    if callable(learning_rate):
        raise TypeError("`learning_rate` is a schedule; pass its value at the step, schedule(step)")
    rate = jnp.asarray(learning_rate, scale.dtype)
    if rate.size != 1 and rate.shape != scale.shape:
        raise ValueError(f"`learning_rate` must be one number, and has the shape {rate.shape}")
    rate = rate if rate.shape == scale.shape else rate.reshape(())
    return {"emotion/learning_rate": rate * scale if scales else rate}


def _masked_share(
    grads: optax.Updates | None,
    scalar: jax.Array,
    theta: Any,
    keep: Keep | None,
    filtering: FilterByEmotionState | None,
) -> dict[str, jax.Array]:
    """Returns the share of the gradients' elements that the filter stops, if there are any."""
    if theta is not None:
        check_not_negative("theta", theta)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(grads)]
    count = sum(leaf.size for leaf in leaves)
    if not count:
        return {}
    if filtering is None:
        return {"emotion/masked_share": jnp.zeros_like(scalar)}
    theta = filtering.theta if theta is None else theta
    keep = _keep_of(filtering) if keep is None else keep
    tolerance = jnp.asarray(theta).astype(scalar.dtype) * (1.0 + jnp.abs(scalar))
    kept = jnp.zeros_like(scalar)
    for leaf in leaves:
        wide = leaf.astype(wide_dtype(leaf))
        # A count of each leaf, in whole numbers; of all of them there may be more than int32 holds.
        kept = kept + jnp.sum(keep(wide, tolerance.astype(wide.dtype))).astype(scalar.dtype)
    return {"emotion/masked_share": 1.0 - kept / count}


def _keep_of(filtering: FilterByEmotionState) -> Keep:
    """Returns the test that a filter was made with."""
    if "elements" in filtering.keep:
        return keep_elements
    if "rows_and_columns" in filtering.keep:
        return keep_rows_and_columns(jnp.asarray(filtering.keep["rows_and_columns"]))
    raise ValueError("The filter uses a custom `keep` function: pass the same function as `keep`")
