"""Switching between rules by emotion, and taking a step before another."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from emo_optax._checks.states import with_arrays
from emo_optax._checks.validation import (
    takes_extra_args,
)
from emo_optax._pieces.emotion import EmotionState, shared_emotion, wide_dtype

Choose = Callable[[jax.Array], jax.Array]
"""The emotion scalar (shape `[]`) to the index of a rule, a whole number of shape `[]`."""


class SwitchByEmotionState(NamedTuple):
    """The states of the rules, one for each.

    Attributes:
        states: one state for each rule, in their order.
    """

    states: tuple[optax.OptState, ...]


def switch_by_emotion(
    rules: Sequence[optax.GradientTransformation],
    choose: Choose,
    *,
    one_state: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Lets the emotion choose one of several rules for each step.

    .. math:: u = rule_{k(s)}(g)

    Only the chosen rule is computed, and only its state moves. The states of the other rules do not change.

    Args:
        rules: the transformations, whose updates must agree in dtype; they receive the gradients in
            float32 at least, and the extra argument `emotion` and no other.
        choose: k(s), a function from the scalar (shape `[]`) to the index of a rule, a whole number.
        one_state: whether the rules have a single state between them, which each of them moves.

    Returns:
        A transformation for an `optax.chain` inside of `share_emotion` or `emotional`.

    Raises:
        ValueError: for no rules.
        EmotionMissingError: from `update`, outside of `share_emotion` and `emotional`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> rules = (optax.scale(1.0), optax.scale(0.0))
        >>> piece = emo_optax.switch_by_emotion(rules, lambda s: (s > 0.5).astype(jnp.int32))
        >>> optimizer = emo_optax.share_emotion(optax.chain(piece, optax.sgd(0.5)))
        >>> params = jnp.ones(2)
        >>> state = optimizer.init(params)
        >>> for loss in (1.0, 1.0, 2.0):
        ...     updates, state = optimizer.update(jnp.ones(2), state, params, value=loss)
        ...     print(updates)
        [-0.5 -0.5]
        [-0.5 -0.5]
        [-0. -0.]

    Source: EmoClan and EmoNeco v2.0 by muooon.
    """
    if not rules:
        raise ValueError("switch_by_emotion needs at least one rule, and none was given")
    pieces = [takes_extra_args(rule) for rule in rules]

    # Made once, and closed over nothing that changes: outside of jit, too, they are compiled once.
    def branch(index: int) -> Callable[..., tuple[optax.Updates, tuple[optax.OptState, ...]]]:
        own = 0 if one_state else index

        def take(
            updates: optax.Updates,
            states: tuple[optax.OptState, ...],
            params: optax.Params | None,
            emotion: EmotionState,
        ) -> tuple[optax.Updates, tuple[optax.OptState, ...]]:
            updates, state = pieces[index].update(updates, states[own], params, emotion=emotion)
            return updates, (*states[:own], state, *states[own + 1 :])

        return take

    branches = [branch(index) for index in range(len(pieces))]

    def init_fn(params: optax.Params) -> optax.OptState:
        if one_state:
            return pieces[0].init(params)
        return SwitchByEmotionState(tuple(piece.init(params) for piece in pieces))

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        emotion: EmotionState | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        state = with_arrays(state, init_fn, updates if params is None else params)
        emotion = shared_emotion(emotion)
        states = (state,) if one_state else state.states
        updates = jax.tree.map(lambda g: g.astype(wide_dtype(g)), updates)
        updates, states = jax.lax.switch(choose(emotion.scalar), branches, updates, states, params, emotion)
        return updates, states[0] if one_state else SwitchByEmotionState(states)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def select_by_emotion(
    rules: Sequence[optax.GradientTransformation], choose: Choose, *, one_state: bool = False
) -> optax.GradientTransformationExtraArgs:
    """As `switch_by_emotion`, without a branch, for rules that know `is_chosen`.

    All rules are computed, and one result is chosen element by element. XLA on a CPU makes one pass over
    memory for this; around a branch it would copy all states, also the states that do not change.

    Args:
        rules: transformations whose `update` takes `is_chosen` (see `emo_optax._rules`), or has no
            state; their updates must agree in dtype.
        choose: k(s), a function from the scalar (shape `[]`) to the index of a rule, a whole number.
        one_state: whether the rules have a single state between them, which each of them moves alike.

    Returns:
        A transformation with the states of `switch_by_emotion`.
    """
    pieces = [takes_extra_args(rule) for rule in rules]

    def init_fn(params: optax.Params) -> optax.OptState:
        if one_state:
            return pieces[0].init(params)
        return SwitchByEmotionState(tuple(piece.init(params) for piece in pieces))

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        emotion: EmotionState | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        state = with_arrays(state, init_fn, updates if params is None else params)
        emotion = shared_emotion(emotion)
        index = choose(emotion.scalar)
        gradients = jax.tree.map(lambda g: g.astype(wide_dtype(g)), updates)
        taken, moved = [], []
        for k, piece in enumerate(pieces):
            old = state if one_state else state.states[k]
            is_chosen = None if one_state else index == k
            updates, new = piece.update(gradients, old, params, emotion=emotion, is_chosen=is_chosen)
            taken.append(updates)
            moved.append(new)
        updates = jax.tree.map(lambda *each: jax.lax.select_n(index, *each), *taken)
        return updates, moved[0] if one_state else SwitchByEmotionState(tuple(moved))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class StepFirstState(NamedTuple):
    """The states of the first step and of the rules after it.

    Attributes:
        first_state: the state of the first step.
        inner_state: the state of the rules after it.
    """

    first_state: optax.OptState
    inner_state: optax.OptState


def step_first(
    first: optax.GradientTransformation, inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    r"""Takes two steps in one: `inner` sees the parameters that `first` has moved.

    .. math:: p' = p + first(g, p), \qquad p \leftarrow p' + inner(g, p')

    Both see the same gradient. The result differs from a sum of both updates if `inner` reads the
    parameters, as weight decay does.

    Args:
        first: the optimizer of the first step, learning rate included.
        inner: the transformation of the second step.

    Returns:
        A transformation that needs `params` if one of the two does; it passes extra arguments to both.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.step_first(optax.sgd(0.5), optax.add_decayed_weights(-0.1))
        >>> params = jnp.asarray([1.0])
        >>> updates, _ = optimizer.update(jnp.zeros(1), optimizer.init(params), params)
        >>> print(updates)
        [-0.1]

    Source: EmoZeal v2.0 by muooon.
    """
    first = takes_extra_args(first)
    inner = takes_extra_args(inner)

    def init_fn(params: optax.Params) -> StepFirstState:
        return StepFirstState(first.init(params), inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: StepFirstState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, StepFirstState]:
        steps, first_state = first.update(updates, state.first_state, params, **extra_args)

        def move(param: jax.Array, step: jax.Array) -> jax.Array:
            dtype = wide_dtype((param, step))
            return (param.astype(dtype) + step.astype(dtype)).astype(param.dtype)

        def add(update: jax.Array, step: jax.Array) -> jax.Array:
            dtype = update.dtype if update.dtype == step.dtype else wide_dtype((update, step))
            return update.astype(dtype) + step.astype(dtype)

        moved = None if params is None else jax.tree.map(move, params, steps)
        updates, inner_state = inner.update(updates, state.inner_state, moved, **extra_args)
        return jax.tree.map(add, updates, steps), StepFirstState(first_state, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
