"""Wrong input as data: each case ends in the error, or in the behaviour, that it names.

After an error, state, parameters and gradients are as before, to the bit, and the next good step is that
of a twin which never saw the fault.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._fault_losses_test import CHANGED_PARAMS, GRADIENTS, LOSSES
from emo_optax._fault_options_test import INNER, NAMES, OPTIONS, PARAMS, Tree, _params
from emo_optax._fault_states_test import ARRAYS, STATES
from emo_shared.fault_case_test import BASIC, EVERY, Case

KINDS = {
    "options": OPTIONS,
    "names": NAMES,
    "inner": INNER,
    "params": PARAMS,
    "losses": LOSSES,
    "gradients": GRADIENTS,
    "changed params": CHANGED_PARAMS,
    "states": STATES,
    "arrays": ARRAYS,
}


# The code that runs the cases.

FACTORIES: dict[str, Callable[..., Any]] = {
    **{name: functools.partial(emo_optax.create_optimizer, name) for name in EVERY},
    "emotional": functools.partial(emo_optax.emotional, optax.sgd(0.1)),
    "early_stop": emo_optax.early_stop,
    "runaway": emo_optax.scale_by_runaway,
    "stochastic": emo_optax.round_stochastically,
}


def _gradients() -> Tree:
    return {
        "weight": jnp.asarray([[0.1, 0.2, 0.3], [-0.4, 0.5, 0.6]]),
        "bias": jnp.asarray([1.0, -1.0, 0.5]),
    }


class Run(NamedTuple):
    """A member after two steps, and after a third one that nothing disturbed."""

    optimizer: Any
    step: Callable[..., Any]
    params: Tree
    state: Tree
    third: tuple[Tree, Tree]


@functools.cache
def _run(member: str, guarded: bool = False) -> Run:
    optimizer = FACTORIES[member](1e-2)
    if guarded:  # A branch, which would be compiled at every step outside of jit.
        optimizer = optax.apply_if_finite(optimizer, 5)
        optimizer = optimizer._replace(update=jax.jit(optimizer.update))
    step = jax.jit(optimizer.update)
    params = _params()
    state = optimizer.init(params)
    for loss in (1.0, 1.2):
        updates, state = step(_gradients(), state, params, value=loss)
        params = optax.apply_updates(params, updates)
    return Run(optimizer, step, params, state, step(_gradients(), state, params, value=1.4))


def _equal(tree: Tree, other: Tree) -> bool:
    """Returns whether two trees are equal to the last bit."""
    structure: Any = jax.tree.structure(tree)
    if structure != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(
        np.asarray(leaf).dtype == np.asarray(twin).dtype
        and np.asarray(leaf).tobytes() == np.asarray(twin).tobytes()
        for leaf, twin in pairs
    )


def _copied(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


class Ended(NamedTuple):
    """A step that was taken, for a behaviour to be looked at."""

    run: Run
    params: Tree
    updates: Tree
    state: Tree


def _is_finite(tree: Tree) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def _holds_the_loss(ended: Ended) -> bool:
    before = emo_optax.get_emotion(ended.run.state)
    after = emo_optax.get_emotion(ended.state)
    return (
        int(after.held) == int(before.held) + 1
        and (after.short, after.long, after.felt) == (before.short, before.long, before.felt)
        and bool(after.scalar == before.scalar)
        and _is_finite((ended.updates, ended.state))
    )


def _feels(loss: float) -> Callable[[Ended], bool]:
    def looks_so(ended: Ended) -> bool:
        _, expected = ended.run.optimizer.update(
            _gradients(), ended.run.state, ended.run.params, value=jnp.asarray(loss, jnp.float32)
        )
        return _equal(ended.state, expected)

    return looks_so


def _sits_the_loss_out(ended: Ended) -> bool:
    before = emo_optax.get_divergence(ended.run.state)
    after = emo_optax.get_divergence(ended.state)
    return int(after.held) == int(before.held) + 1 and _is_finite((ended.updates, ended.state))


def _spoils_its_own_leaf_alone(ended: Ended) -> bool:
    updates, state = ended.run.optimizer.update(_gradients(), ended.run.state, ended.run.params, value=1.4)
    return (
        _equal(ended.updates["weight"], updates["weight"])
        and _equal(emo_optax.get_emotion(ended.state), emo_optax.get_emotion(state))
        and not _is_finite(ended.state)
    )


def _sits_the_leaf_out(ended: Ended) -> bool:
    moments = emo_optax.to_arrays(ended.state)["exp_avg/bias"]
    before = emo_optax.to_arrays(ended.run.state)["exp_avg/bias"]
    return _equal(moments, before) and not np.any(ended.updates["bias"]) and _is_finite(ended.updates)


def _skips_the_step(ended: Ended) -> bool:
    return not any(map(np.any, jax.tree.leaves(ended.updates))) and _equal(
        ended.state.inner_state, ended.run.state.inner_state
    )


def _takes_a_step(ended: Ended) -> bool:
    shapes = jax.tree.map(
        lambda update, param: update.shape == jnp.shape(param), ended.updates, ended.params
    )
    counted = {True}
    if emo_optax.to_arrays(ended.state).get("emotion/felt") is not None:
        emotion = emo_optax.get_emotion(ended.state)
        counted = {bool(jnp.isfinite(emotion.scalar)), int(emotion.held) == 0}
    return jax.tree.all(shapes) and counted == {True}


def _trains(ended: Ended) -> bool:
    return _takes_a_step(ended) and _is_finite((ended.updates, ended.state))


BEHAVIOURS: dict[str, Callable[[Ended], bool]] = {
    # The averages, their count and the scalar are as before, one more is counted as held; all is finite.
    "holds the loss": _holds_the_loss,
    # As a scalar array of that value.
    "feels 2.5": _feels(2.5),
    "feels 3": _feels(3.0),
    # Counted as held; all is finite.
    "sits the loss out": _sits_the_loss_out,
    # The parameter's moments are no longer finite, as with optax.adam; all others, and the emotion, are
    # those of a step with a good gradient. The guard is `optax.apply_if_finite`.
    "spoils its own leaf alone": _spoils_its_own_leaf_alone,
    # Its parameter, moments and smoothed norm stay.
    "sits the leaf out": _sits_the_leaf_out,
    # Nothing changes but the guard's own count.
    "skips the step": _skips_the_step,
    # Updates have the parameters' shapes, and the emotion is finite.
    "takes a step": _takes_a_step,
    # The same, and all is finite.
    "trains": _trains,
}


def _make(case: Case, member: str) -> None:
    FACTORIES[member](**case.given)


def _by_name(case: Case, member: str) -> None:
    del member
    emo_optax.create_optimizer(case.given["name"])


def _wrap(case: Case, member: str) -> None:
    del member
    emo_optax.emotional(case.given["inner"]).init(_params())


def _begin(case: Case, member: str) -> Ended:
    """Makes a member, its state, and one step."""
    given = dict(case.given)
    params = given.pop("params")
    optimizer = FACTORIES[member](**given)
    state = optimizer.init(params)
    grads = jax.tree.map(lambda param: jnp.full(jnp.shape(param), 0.1), params)
    updates, after = optimizer.update(grads, state, params, value=1.0)
    return Ended(Run(optimizer, optimizer.update, params, state, ({}, {})), params, updates, after)


def _step(case: Case, member: str) -> Ended:
    """Takes one step with the wrong input of the case in the place of good input."""
    given = dict(case.given)
    run = _run(member, given.pop("guarded", False))
    params = given.pop("params", lambda tree: tree)(run.params)
    state = given.pop("state", lambda tree: tree)(run.state)
    grads = given.pop("grads", lambda tree: tree)(_gradients())
    updates, after = run.optimizer.update(grads, state, params, **{"value": 1.4, **given})
    return Ended(run, params, updates, after)


def _load(case: Case, member: str) -> None:
    run = _run(member)
    emo_optax.from_arrays(case.given["arrays"](emo_optax.to_arrays(run.state)), run.state)


RUNNERS: dict[str, Callable[[Case, str], Any]] = {
    "options": _make,
    "names": _by_name,
    "inner": _wrap,
    "params": _begin,
    "arrays": _load,
}


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        pytest.param(kind, case, id=f"{kind}: {case.name}")
        for kind, cases in KINDS.items()
        for case in cases
    ],
)
def test_every_fault_ends_in_the_error_or_behaviour_that_it_names(kind: str, case: Case) -> None:
    execute: Callable[..., Any] = RUNNERS.get(kind, _step)
    for member in case.members or BASIC[:1]:
        if isinstance(case.end, str):
            assert BEHAVIOURS[case.end](execute(case, member)), member
            continue
        run = _run(member) if member in EVERY and execute in (_step, _load) else None
        before = None if run is None else _copied((run.params, run.state))
        with pytest.raises(case.end.error) as caught:
            execute(case, member)
        assert type(caught.value) is case.end.error, member
        assert case.end.message in str(caught.value), member
        if run is not None:
            assert _equal(before, _copied((run.params, run.state))), member
            third = run.step(_gradients(), run.state, run.params, value=1.4)
            assert _equal(third, run.third), member


def test_there_are_200_cases_at_least_and_no_two_of_one_name() -> None:
    names = [(kind, case.name) for kind, cases in KINDS.items() for case in cases]
    assert len(names) == len(set(names)) >= 200
    ends = {case.end for cases in KINDS.values() for case in cases}
    assert ends >= set(BEHAVIOURS)
    assert {member for cases in KINDS.values() for case in cases for member in case.members} >= set(EVERY)
