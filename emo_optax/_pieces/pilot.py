"""The scalars that steer EmoPilot: gate, emotion, agreement and courage, once a step for all parameters."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import first_node_of, how_trees_differ, nodes_of, with_new_arrays
from emo_optax._pieces.averaged_weights import AverageWeightsState
from emo_optax._pieces.courage import CourageState, init_courage, move_courage
from emo_optax._pieces.gate import gate
from emo_optax._pieces.relative_emotion import (
    RelativeEmotionState,
    feel_relative,
    init_relative_emotion,
    quotient,
    root,
)
from emo_optax._pieces.replicas import AxisName, split_axes

ANOTHER_TREE = (
    "give eval_params the parameters that this state was made for. Around a wrapper that changes the "
    "shapes of parameters, such as optax.flatten, put emo_optax.average_weights"
)


class PilotState(NamedTuple):
    """The scalars of EmoPilot; every field is an array of shape `[]` or a tuple of them.

    Attributes:
        step: steps taken so far, int32.
        skipped: steps that were skipped, because the loss or a gradient was not finite, int32.
        emotion: the averages and the noise of the loss.
        norm: the running average of the gradient's norm.
        gate: the factor that the last gradient was multiplied by, in [0, 1].
        courage: the agreement of the last step, which moves the courage of the next step, and the courage.
        peak: the largest learning rate so far.
        longest: the longest step of any parameter in the last step.
        bound: the share of the parameters whose last step the ceiling bounded, in [0, 1].
    """

    step: jax.Array
    skipped: jax.Array
    emotion: RelativeEmotionState
    norm: jax.Array
    gate: jax.Array
    courage: CourageState
    peak: jax.Array
    longest: jax.Array
    bound: jax.Array


class Pilot(NamedTuple):
    """The values of EmoPilot, to be read; every field is an array of shape `[]`.

    Attributes:
        short: the short average of the loss, in the unit of the loss.
        long: the long average of the loss, in the unit of the loss.
        noise: the standard deviation of the loss around its trend, in the unit of the loss.
        scalar: the emotion scalar s, in [-1, 1]; above 0 the loss is above its trend.
        agreement: the cosine of the last gradient and the first moments before it, in [-1, 1]; in
            `autopilot` the last change is in the place of the first moments.
        courage: the factor on the learning rate.
        gate: the factor that the last gradient was multiplied by, in [0, 1].
        ceiling_bound: the share of the parameters whose last step the ceiling bounded, in [0, 1].
        learning_rate: the longest step of any parameter in the last step.
        steps: steps taken so far, int32.
        skipped: steps that were skipped, because the loss or a gradient was not finite, int32.
    """

    short: jax.Array
    long: jax.Array
    noise: jax.Array
    scalar: jax.Array
    agreement: jax.Array
    courage: jax.Array
    gate: jax.Array
    ceiling_bound: jax.Array
    learning_rate: jax.Array
    steps: jax.Array
    skipped: jax.Array


def init_pilot(dtype: jax.typing.DTypeLike) -> PilotState:
    """Returns the scalars before any step, each in its own array."""
    return PilotState(
        step=jnp.zeros([], jnp.int32),
        skipped=jnp.zeros([], jnp.int32),
        emotion=init_relative_emotion(dtype),
        norm=jnp.zeros([], dtype),
        gate=jnp.ones([], dtype),
        courage=init_courage(dtype),
        peak=jnp.zeros([], dtype),
        longest=jnp.zeros([], dtype),
        bound=jnp.zeros([], dtype),
    )


def steer(
    state: PilotState,
    loss: jax.Array,
    square: jax.Array,
    *,
    limit: jax.typing.ArrayLike,
    min_courage: jax.typing.ArrayLike,
    max_courage: jax.typing.ArrayLike,
    learning_rate: jax.typing.ArrayLike,
) -> tuple[PilotState, jax.Array]:
    """Moves the scalars by the loss and the norm of the gradient of one step.

    The agreement of the step before moves the courage. `with_agreement` stores the agreement of this step.

    Args:
        state: the scalars before this step.
        loss: the loss of this step, shape `[]`.
        square: <g, g> of the gradient g, over all parameters together, shape `[]`.
        limit: how many times its running average the norm of a gradient may be.
        min_courage: the least courage.
        max_courage: the largest courage, >= `min_courage`.
        learning_rate: the largest learning rate so far, for the warm-up.

    Returns:
        The scalars after this step, and whether the step can be taken (bool of shape `[]`): only if the
        loss, the difference of its averages and the norm of the gradient are finite. Otherwise the scalars
        must not be used.
    """
    norm = root(square)
    step = optax.safe_increment(state.step)
    factor, average = gate(norm, state.norm, step, limit)
    emotion = feel_relative(state.emotion, loss, step)
    # Two finite losses can be further apart than the largest number.
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(emotion.short - emotion.long)
    bounds = (min_courage, max_courage, learning_rate)
    courage = move_courage(state.courage, state.courage.agreement, emotion.scalar, step, *bounds)
    new = state._replace(step=step, emotion=emotion, norm=average, gate=factor, courage=courage)
    return new, is_finite


def with_agreement(state: PilotState, products: jax.Array) -> PilotState:
    """Returns the scalars after a step with the agreement of this step, for the next step.

    Args:
        state: the scalars after this step.
        products: over all parameters together <g, g>, <g, d> and <d, d> of the gradient g and the direction
            d before it, shape `[3]`; d is the first moments of EmoPilot, or the last update of `autopilot`.
            At the first step there is no direction: the agreement stays 0.
    """
    agreement = quotient(products[1], root(products[0]) * root(products[2]))
    agreement = jnp.where(state.step > 1, jnp.clip(agreement, -1.0, 1.0), jnp.zeros_like(agreement))
    return state._replace(courage=state.courage._replace(agreement=agreement))


def choose_finite(is_finite: jax.Array, new: Any, old: Any) -> Any:
    """Returns the new tree where a step can be taken, else the old one, array by array."""
    return jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, old)


def skip(is_finite: jax.Array, new: PilotState, old: PilotState) -> PilotState:
    """Returns the new scalars, or the old ones with one more skipped step."""
    chosen: PilotState = choose_finite(is_finite, new, old)
    missed = jnp.where(is_finite, old.skipped, optax.safe_increment(old.skipped))
    # The largest learning rate comes of a schedule, and not of the loss.
    return chosen._replace(skipped=missed, peak=new.peak)


def learning_rate_at(learning_rate: Any, state: PilotState) -> jax.Array:
    """Returns the learning rate of this step, of the dtype of the scalars."""
    rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
    if jnp.shape(rate) != ():
        raise ValueError(f"The schedule of the learning rate must return one number, and returns {rate!r}")
    return jnp.asarray(rate, state.norm.dtype)


def scheduled(rate: jax.Array, peak: jax.Array) -> jax.Array:
    """Returns a scheduled rate over its largest value so far, in [0, 1]; 1 without a schedule."""
    return jnp.where(peak > 0.0, rate / jnp.where(peak > 0.0, peak, 1.0), jnp.zeros_like(peak))


def whole_sums(
    products: list[jax.Array], weights: optax.Params, dtype: Any, shard_axis_name: AxisName
) -> tuple[jax.Array, list[jax.Array]]:
    """Returns the products of all parameters together, shape `[3]`, and the mean square of each parameter.

    Args:
        products: the products of each parameter, or of its part on this device, shape `[3]`.
        weights: the parameters.
        dtype: the dtype of the sums.
        shard_axis_name: the mapped axes over which parameters are split; a parameter that `jax.shard_map`
            knows to be replicated counts once.
    """
    leaves = jax.tree.leaves(weights)
    squares = [jnp.sum(jnp.square(leaf)).astype(dtype) for leaf in leaves]
    axes = split_axes(leaves, shard_axis_name)
    total = jnp.zeros([3], dtype)
    for own in dict.fromkeys(axes):
        places = [place for place, each in enumerate(axes) if each == own]
        # One sum over all parameters: XLA on a CPU would copy moments that some products read after these
        # have moved. Behind a barrier: XLA would add up all products again in the loops of each parameter.
        part = jnp.zeros([3], dtype)
        if products:
            part = jnp.stack([products[place] for place in places])
            part = jnp.sum(jax.lax.optimization_barrier(part), axis=0)
        if own:
            summed = jax.lax.psum(jnp.stack([*part, *(squares[place] for place in places)]), own)
            part = summed[:3]  # One reduction for all parameters that are split alike.
            for place, square in zip(places, summed[3:], strict=True):
                squares[place] = square
        total = total + part
    # Number by number: XLA compiles slowly where each parameter reads one number of a long array.
    sizes = [
        leaf.size * (jax.lax.axis_size(own) if own else 1) for leaf, own in zip(leaves, axes, strict=True)
    ]
    return total, [square / max(size, 1) for square, size in zip(squares, sizes, strict=True)]


def get_pilot(state: optax.OptState) -> Pilot:
    """Looks up the scalars of EmoPilot in any nested optimizer state, inside or outside of jit.

    Args:
        state: the state of `emo_pilot` or `autopilot`, at any depth inside of wrappers.

    Returns:
        Its averages, noise, scalar, agreement, courage, gate, ceiling, step and counts, as arrays.

    Raises:
        ValueError: if there is no EmoPilot in the state.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> optimizer = emo_optax.emo_pilot()
        >>> params = jnp.ones(2)
        >>> _, state = optimizer.update(params, optimizer.init(params), params, value=0.7)
        >>> pilot = emo_optax.get_pilot(state)
        >>> print(pilot.courage, pilot.gate, pilot.steps)
        1.0 1.0 1
    """
    found = first_node_of(state, PilotState)
    if found is None:
        raise ValueError(
            "There is no EmoPilot in this state. Pass the state of emo_optax.emo_pilot(...) or "
            "emo_optax.autopilot(...), or of a chain or wrapper around one."
        )
    found = with_new_arrays(found)
    emotion, courage = found.emotion, found.courage
    weight = jnp.where(emotion.weight > 0.0, emotion.weight, jnp.ones_like(emotion.weight))
    return Pilot(
        short=emotion.short,
        long=emotion.long,
        noise=jnp.sqrt(emotion.square / weight),
        scalar=emotion.scalar,
        agreement=courage.agreement,
        courage=courage.courage,
        gate=found.gate,
        ceiling_bound=found.bound,
        learning_rate=found.longest,
        steps=found.step,
        skipped=found.skipped,
    )


class SteeredState(NamedTuple):
    """The state of an optimizer that EmoPilot steers.

    Attributes:
        pilot: the scalars.
        rule: the moments of the rule, or the state of the optimizer inside.
        last: the last update, a tree like the parameters; `()` where the rule recomputes it.
        average: the averaged weights, a tree like the parameters; `()` without them.
    """

    pilot: PilotState
    rule: Any
    last: Any
    average: Any


def eval_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    """Returns the averaged weights, on which to evaluate and which to export.

    Args:
        state: the state of an optimizer that averages weights (`emo_pilot`, `autopilot` or
            `average_weights`), at any depth inside of wrappers.
        params: the parameters that are trained, for their dtypes, and for the parameters that are not
            averaged. With `nnx.Optimizer`: `nnx.state(model, nnx.Param)`.

    Returns:
        A tree like `params`, in the dtypes of `params`; parameters that the optimizer does not own
        (`optax.masked`, `optax.partition`) as they are. All arrays are new: a later step may donate the
        state and the parameters.

    Raises:
        ValueError: if no optimizer in the state averages weights, or a shape does not fit `params`. Inside
            of `optax.flatten` and `optax.contrib.split_real_and_imaginary` the average has other shapes:
            put `average_weights` around them, and `emo_pilot(average=False)` into them.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.emo_pilot()
        >>> params = jnp.asarray([1.0, -2.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(50):
        ...     loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
        ...     updates, state = optimizer.update(grads, state, params, value=loss)
        ...     params = optax.apply_updates(params, updates)
        >>> average = emo_optax.eval_params(state, params)
        >>> bool(jnp.sum(average**2) < jnp.sum(params**2))  # The weights swing around the minimum.
        True
    """
    # An average of no parameters is a tree, too; without averages it is `()`.
    trees = [node.average for node in nodes_of(state, SteeredState) if not _is_missing(node.average)]
    trees += [node.average for node in nodes_of(state, AverageWeightsState)]
    if not trees:
        raise ValueError(
            "No optimizer in this state averages weights. Make emo_pilot with average=True, or "
            "put emo_optax.average_weights(...) around the optimizer."
        )

    given = {id(leaf) for leaf in jax.tree.leaves(params)}
    for tree in trees:
        params = _put_average(tree, params)

    def copied(leaf: Any) -> Any:
        is_given = (
            isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and id(leaf) in given
        )
        return leaf.copy() if is_given else leaf

    return jax.tree.map(copied, params)


def check_average_of(state: SteeredState, *, average: bool) -> None:
    """Raises a `ValueError` for an average in the state of an optimizer that does not move it."""
    if not average and not _is_missing(state.average):
        raise ValueError("The state has averaged weights, and the optimizer was made with average=False")


def _is_missing(average: Any) -> bool:
    return isinstance(average, tuple) and not average


def _places(tree: Any, is_leaf: Callable[[Any], bool]) -> list[str]:
    """Returns where the leaves of a tree are; a variable of Flax is at the place of its value."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [re.sub(r"\.\w*value$", "", jax.tree_util.keystr(path)) for path, _ in leaves]


def _put_average(tree: Any, params: optax.Params) -> optax.Params:
    """Returns the parameters with the averaged leaves in their place."""

    def is_hole(node: Any) -> bool:
        return node is None or isinstance(node, optax.MaskedNode)

    def put(average: Any, param: Any) -> Any:
        if is_hole(average):
            return param
        if jnp.shape(average) != jnp.shape(param):
            shapes = f"The average has shape {jnp.shape(average)} where params has {jnp.shape(param)}"
            raise ValueError(f"{shapes}: {ANOTHER_TREE}")
        return jnp.array(average, jnp.result_type(param))

    try:
        # A mask may stand for a whole branch, so that the numbers of leaves say nothing.
        jax.tree.map(lambda *_: None, tree, params, is_leaf=is_hole)
    except (TypeError, ValueError) as error:
        # `nnx.Optimizer` keeps the average in variables of another class than the parameters are.
        if _places(tree, is_hole) == _places(params, is_hole):
            averages = jax.tree.leaves(tree, is_leaf=is_hole)
            leaves, structure = jax.tree.flatten(params, is_leaf=is_hole)
            return jax.tree.unflatten(structure, map(put, averages, leaves))
        problem = how_trees_differ(tree, params)
        problem = f"The average has another tree structure than params ({problem})"
        raise ValueError(f"{problem}: {ANOTHER_TREE}") from error
    return jax.tree.map(put, tree, params, is_leaf=is_hole)
