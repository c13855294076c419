"""An optimizer is found in whatever wraps it, and a missing or an ambiguous one is an error that helps."""

import types
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._wrappers.wrappers import HOLDERS, loss_optimizers


def optimizer_of(cls: Any = emo_torch.EmoSens) -> Any:
    return cls([torch.nn.Parameter(torch.ones(2))])


def holding(**attributes: Any) -> Any:
    return types.SimpleNamespace(**attributes)


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another one, as libraries write them."""

    def __init__(self, name: str, inner: Any) -> None:
        super().__init__([torch.nn.Parameter(torch.ones(1))], {})
        setattr(self, name, inner)


@pytest.mark.parametrize("name", [*HOLDERS, "a_name_that_no_library_uses"])
def test_every_attribute_is_looked_at(name: str) -> None:
    inside = optimizer_of()
    assert emo_torch.unwrap(Wrapper(name, inside)) is inside
    assert emo_torch.unwrap(Wrapper(name, [inside])) is inside
    assert emo_torch.unwrap(Wrapper("x", Wrapper(name, inside))) is inside
    assert loss_optimizers([Wrapper(name, inside), inside]) == [inside]


@pytest.mark.parametrize("name", HOLDERS)
def test_a_wrapper_need_not_be_an_optimizer(name: str) -> None:
    inside = optimizer_of()
    assert emo_torch.unwrap(holding(**{name: holding(**{name: inside})})) is inside


def test_unwrap_returns_the_outer_optimizer() -> None:
    inner = emo_torch.RefAdamWMiniScheduleFree([torch.nn.Parameter(torch.ones(2))])
    outer = emo_torch.Emotional(inner)
    assert emo_torch.unwrap(holding(optimizer=outer)) is outer
    assert emo_torch.unwrap(outer) is outer


def test_pairs_with_names_are_looked_into() -> None:
    inside = optimizer_of()
    assert emo_torch.unwrap(holding(_optims=[("", torch.optim.SGD), ("a", inside)])) is inside


def test_a_property_that_fails_does_not_hide_the_others() -> None:
    inside = optimizer_of()

    class Chained:
        chained_optimizers = (inside,)

        @property
        def optimizer(self) -> Any:
            raise AssertionError("there may be several")

    assert emo_torch.unwrap(Chained()) is inside


def test_a_wrapper_that_hands_on_every_attribute_is_seen_through() -> None:
    inside = optimizer_of()

    class Proxy:
        def __init__(self, hidden: Any) -> None:
            self._optimizer = hidden

        def __getattr__(self, name: str) -> Any:
            return getattr(self._optimizer, name)

    assert emo_torch.unwrap(Proxy(Proxy(inside))) is inside


def test_cycles_end() -> None:
    inside = optimizer_of()
    outer = holding(optimizer=inside)
    outer.base = outer
    inside.optimizer = inside
    assert emo_torch.unwrap(outer) is inside
    first, second = holding(), holding()
    first.optimizer, second.optim = second, first
    with pytest.raises(TypeError, match="No optimizer of emo_torch was found"):
        emo_torch.unwrap(first)
    second.base = inside
    assert emo_torch.unwrap(first) is inside


def test_an_object_that_makes_a_new_one_at_every_look_ends() -> None:
    class Endless:
        def __getattr__(self, name: str) -> Any:
            return Endless()

    with pytest.raises(TypeError, match="No optimizer of emo_torch was found"):
        emo_torch.unwrap(Endless())


def test_one_optimizer_under_several_names_is_one() -> None:
    inside = optimizer_of()
    assert emo_torch.unwrap(holding(optimizer=inside, base_optimizer=holding(optim=inside))) is inside


@pytest.mark.parametrize(
    "make",
    [
        lambda one, two: holding(optimizer=one, base_optimizer=two),
        lambda one, two: holding(chained_optimizers=[one, holding(optimizer=two)]),
        lambda one, two: [one, two],
        lambda one, two: Wrapper("generator", Wrapper("discriminator", [one, two])),
    ],
)
def test_of_two_optimizers_the_error_names_both(make: Any) -> None:
    one, two = optimizer_of(), optimizer_of(emo_torch.EmoCats)
    with pytest.raises(TypeError, match="There are 2 optimizers of emo_torch inside") as caught:
        emo_torch.unwrap(make(one, two))
    assert "EmoSens at " in str(caught.value)
    assert "EmoCats at " in str(caught.value)
    assert loss_optimizers([make(one, two)]) == [one, two]


@pytest.mark.parametrize("found", [None, 3, "EmoSens", emo_torch.EmoSens, {}, [], torch.ones(2)])
def test_where_there_is_none_the_error_says_what_was_looked_at(found: Any) -> None:
    with pytest.raises(
        TypeError, match="No optimizer of emo_torch was found inside of an object"
    ) as caught:
        emo_torch.unwrap(found)
    assert all(repr(name) in str(caught.value) for name in HOLDERS)


def test_the_error_does_not_name_an_optimizer_that_it_could_not_reach() -> None:
    class Telling:
        def __init__(self, hidden: Any) -> None:
            self.hidden = {"deep": hidden}

        def __repr__(self) -> str:
            return f"Telling {self.hidden}"

    with pytest.raises(TypeError) as caught:
        emo_torch.unwrap(Telling(optimizer_of()))
    assert "EmoSens" not in str(caught.value)
    assert "Telling" in str(caught.value)


def test_the_advice_of_a_missing_loss_works_where_a_wrapper_drops_what_a_closure_returns() -> None:
    class Dropping(Wrapper):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            if closure is not None:
                closure()
            inside.step()

    inside = optimizer_of()
    (param,) = inside.param_groups[0]["params"]
    wrapper = Dropping("inside", inside)
    loss = param.square().sum()
    loss.backward()
    with pytest.raises(emo_torch.LossMissingError) as caught:
        wrapper.step(lambda: loss.detach())
    assert "emo_torch.unwrap(opt).watch(loss)" in str(caught.value)
    emo_torch.unwrap(wrapper).watch(param.square().sum()).backward()
    wrapper.step()
    assert float(inside.emotion.long) == 2.0
