"""Wrong input as data: each case ends in the error, or in the behaviour, that it names.

After an error, state, parameters and gradients are as before, to the bit, and the next good step is that
of a twin which never saw the fault.
"""

import functools
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import emo_torch
from emo_shared.fault_case_test import BASIC, EVERY, Case
from emo_torch._fault_groups_test import GROUPS, _fresh
from emo_torch._fault_losses_test import COLLECTED, GRADIENTS, LOSSES
from emo_torch._fault_options_test import INNER, NAMES, ONES_OWN, OPTIONS, PARAMS, _params
from emo_torch._fault_states_test import ARRAYS, FACTORIES, STATES, _stepped, _to_arrays

KINDS = {
    "options": OPTIONS,
    "names": NAMES,
    "inner": INNER,
    "params": PARAMS,
    "losses": LOSSES,
    "collected": COLLECTED,
    "gradients": GRADIENTS,
    "groups": GROUPS,
    "states": STATES,
    "arrays": ARRAYS,
}


@functools.cache
def _third(member: str) -> Any:
    """Returns all of a member after three steps that nothing disturbed."""
    optimizer, params = _stepped(member)
    optimizer.step(loss=1.4)
    return _all_of(optimizer, params)


def _bits(tree: Any) -> Any:
    """Returns a tree with each tensor's dtype, shape and bits in its place."""
    if isinstance(tree, Tensor):
        return str(tree.dtype), tuple(tree.shape), tree.detach().contiguous().numpy().tobytes()
    if isinstance(tree, dict):
        return {key: _bits(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_bits(value) for value in tree]
    return repr(tree)


def _all_of(optimizer: Any, params: list[Parameter]) -> Any:
    grads = [param.grad for param in params]
    return _bits([optimizer.state_dict(), params, grads])


class Ended(NamedTuple):
    """A step that was taken, beside one that a good loss and good gradients made, for a look at both."""

    optimizer: Any
    params: list[Parameter]
    before: Any
    twin: Any
    twins: list[Parameter]


def _is_finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors if not tensor.is_meta)


def _tensors(ended: Ended) -> list[Tensor]:
    states = [value for state in ended.optimizer.state.values() for value in state.values()]
    return [*ended.params, *states]


def _holds_the_loss(ended: Ended) -> bool:
    before, after = ended.before.emotion, ended.optimizer.emotion
    return (
        int(after.held) == int(before.held) + 1
        and (after.short, after.long, after.felt) == (before.short, before.long, before.felt)
        and bool(after.scalar == before.scalar)
        and _is_finite(*_tensors(ended))
    )


def _feels(loss: float) -> Callable[[Ended], bool]:
    def looks_so(ended: Ended) -> bool:
        twin = pickle.loads(pickle.dumps(ended.before))
        params = twin.param_groups[0]["params"]
        for param, other in zip(params, _params(), strict=True):
            param.grad = other.grad
        twin.step(loss=torch.tensor(loss))
        return bool(_all_of(twin, params) == _all_of(ended.optimizer, ended.params))

    return looks_so


def _sits_the_loss_out(ended: Ended) -> bool:
    held = ended.optimizer.divergence.held - ended.before.divergence.held
    return int(held) == 1 and _is_finite(*_tensors(ended))


def _spoils_its_own_leaf_alone(ended: Ended) -> bool:
    (weight, bias), (twin, _) = ended.params, ended.twins
    return (
        _bits([weight, ended.optimizer.state[weight]]) == _bits([twin, ended.twin.state[twin]])
        and _bits(list(ended.optimizer.emotion)) == _bits(list(ended.twin.emotion))
        and not _is_finite(*ended.optimizer.state[bias].values())
    )


def _sits_the_leaf_out(ended: Ended) -> bool:
    bias, before = ended.params[1], ended.before.param_groups[0]["params"][1]
    state, kept = ended.optimizer.state[bias], ended.before.state[before]
    return _bits([bias, state]) == _bits([before, kept]) and _is_finite(*ended.params)


def _skips_the_step(ended: Ended) -> bool:
    before = ended.before
    return bool(
        _bits([ended.optimizer.state_dict(), ended.params])
        == _bits([before.state_dict(), before.param_groups[0]["params"]])
    )


def _takes_a_step(ended: Ended) -> bool:
    if not isinstance(ended.optimizer, emo_torch.EmoOptimizer):
        return int(ended.optimizer.divergence.steps) > 0
    emotion = ended.optimizer.emotion
    return int(emotion.felt) > 0 and int(emotion.held) == 0 and _is_finite(emotion.scalar)


def _trains(ended: Ended) -> bool:
    return _takes_a_step(ended) and _is_finite(*_tensors(ended))


BEHAVIOURS: dict[str, Callable[[Ended], bool]] = {
    # The averages, their count and the scalar are as before, one more is counted as held; all is finite.
    "holds the loss": _holds_the_loss,
    # As a scalar tensor of that value.
    "feels 2.5": _feels(2.5),
    "feels 3": _feels(3.0),
    # Counted as held; all is finite.
    "sits the loss out": _sits_the_loss_out,
    # The parameter's moments are no longer finite, as with torch.optim.AdamW; all others, and the emotion,
    # are those of a step with a good gradient. The guard is a gradient scaler, or a look at the norm.
    "spoils its own leaf alone": _spoils_its_own_leaf_alone,
    # Its parameter, moments and smoothed norm stay.
    "sits the leaf out": _sits_the_leaf_out,
    # Nothing changes: the scaler does not call `step`.
    "skips the step": _skips_the_step,
    # The emotion is finite.
    "takes a step": _takes_a_step,
    # The same, and all is finite.
    "trains": _trains,
}


def _make(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> None:
    """Makes an optimizer; options that a group may have are also set in an added group."""
    if optimizer is not None and not case.name.startswith(ONES_OWN) and member in EVERY:
        with pytest.raises(case.end.error, match=case.end.message.split(":")[0]):
            optimizer.add_param_group({"params": [_fresh()], **case.given})
    FACTORIES[member](params, **case.given)


def _by_name(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> None:
    del member, optimizer
    emo_torch.create_optimizer(case.given["name"], params)


def _wrap(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> None:
    del member, optimizer, params
    emo_torch.Emotional(case.given["inner"]())


def _begin(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> Ended:
    """Makes a member, and takes one step."""
    del optimizer, params
    made = FACTORIES[member](case.given["params"]())
    made.step(loss=1.0)
    return Ended(made, made.param_groups[0]["params"], None, None, [])


def _step(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> Ended:
    """Takes one step with the wrong input of the case in the place of good input."""
    given = dict(case.given)
    before = pickle.loads(pickle.dumps(optimizer))
    twin, twins = _stepped(member)
    twin.step(loss=1.4)
    given.pop("grads", lambda _: None)(params)
    given.pop("groups", lambda _: None)(optimizer)
    for way in ("observe", "watch"):
        getattr(optimizer, way)(*given.pop(way)) if way in given else None
    step = optimizer.step
    if given.pop("guarded", False):
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        scaler.scale(torch.ones(()))
        step = functools.partial(scaler.step, optimizer)
    step(**({} if "closure" in given else {"loss": 1.4}) | given)
    return Ended(optimizer, params, before, twin, twins)


def _load(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> None:
    del member, params
    optimizer.load_state_dict(case.given["state"](optimizer.state_dict()))


def _load_arrays(case: Case, member: str, optimizer: Any, params: list[Parameter]) -> None:
    del member
    named = list(zip(("weight", "bias"), params, strict=True))
    emo_torch.from_arrays(case.given["arrays"](_to_arrays(optimizer)), optimizer, named)


RUNNERS: dict[str, Callable[..., Any]] = {
    "options": _make,
    "names": _by_name,
    "inner": _wrap,
    "params": _begin,
    "states": _load,
    "arrays": _load_arrays,
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
        optimizer, params = _stepped(member)
        if isinstance(case.end, str):
            assert BEHAVIOURS[case.end](execute(case, member, optimizer, params)), member
            continue
        if member not in EVERY:  # A piece, which keeps nothing that a wrong option could change.
            with pytest.raises(case.end.error, match=case.end.message):
                execute(case, member, None, params)
            continue
        before, group = _all_of(optimizer, params), dict(optimizer.param_groups[0])
        grads = [param.grad for param in params]
        with pytest.raises(case.end.error) as caught:
            execute(case, member, optimizer, params)
        assert type(caught.value) is case.end.error, member
        assert case.end.message in str(caught.value), member
        # A wrong value in a group or in the gradients is taken back; the error changed nothing.
        optimizer.param_groups[:] = [group] if kind == "groups" else optimizer.param_groups
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        assert _all_of(optimizer, params) == before, member
        optimizer.step(loss=1.4)
        assert _all_of(optimizer, params) == _third(member), member


def test_there_are_200_cases_at_least_and_no_two_of_one_name() -> None:
    names = [(kind, case.name) for kind, cases in KINDS.items() for case in cases]
    assert len(names) == len(set(names)) >= 200
    ends = {case.end for cases in KINDS.values() for case in cases}
    assert ends >= set(BEHAVIOURS)
    assert {member for cases in KINDS.values() for case in cases for member in case.members} >= set(EVERY)
