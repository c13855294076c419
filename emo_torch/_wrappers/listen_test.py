"""The loss of every backward pass reaches the optimizers while a listener is on."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import emo_torch
from emo_torch import EmoSens, LossMissingError, listen


def pair(value: float = 1.0) -> tuple[torch.nn.Parameter, EmoSens]:
    weight = torch.nn.Parameter(torch.full((2,), value))
    return weight, EmoSens([weight], lr=1e-3)


def felt(optimizer: Any) -> float:
    return float(optimizer.emotion.long)


def originals() -> tuple[Any, ...]:
    scaler = torch.amp.GradScaler
    patched = (torch.autograd.backward, torch.autograd.grad, scaler.scale, scaler.step)
    return (*patched, emo_torch.LossOptimizer.__init__)


def test_parts_of_a_step_add_up_and_the_step_is_that_of_a_given_loss() -> None:
    weight, optimizer = pair()
    other, expected = pair()
    for scale in (1.0, 2.0, 3.0):
        losses = [scale * part * weight.square().sum() / 2 for part in (1.0, 3.0)]
        total = sum(float(loss.detach()) for loss in losses)
        with listen(optimizer):
            for loss in losses:
                loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        for part in (1.0, 3.0):
            (scale * part * other.square().sum() / 2).backward()
        expected.step(loss=total)
        expected.zero_grad()
        assert torch.equal(weight, other)
        assert torch.equal(optimizer.emotion.short, expected.emotion.short)


def test_all_is_as_it_was_after_the_end_and_after_an_exception() -> None:
    before = originals()
    _, optimizer = pair()
    during: list[Any] = []

    def fail() -> None:
        with listen(optimizer):
            during.extend(originals())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(one is not other for one, other in zip(during, before, strict=True))
    with listen(), listen(optimizer):
        pass
    assert originals() == before


def test_nested_listeners_hear_each_root_once_and_the_outer_one_goes_on() -> None:
    weight, optimizer = pair()
    with listen(optimizer):
        with listen(optimizer), listen():
            weight.sum().backward()
        weight.sum().backward()
        optimizer.step()
    assert felt(optimizer) == 4.0


def test_what_was_heard_ends_with_the_listener() -> None:
    weight, optimizer = pair()
    with listen(optimizer):
        weight.sum().backward()
    with pytest.raises(LossMissingError):
        optimizer.step()


def test_each_optimizer_hears_what_reaches_its_parameters() -> None:
    (first, one), (second, two) = pair(1.0), pair(5.0)
    with listen(one, two):
        for _ in range(3):  # From the second time on by the cached paths.
            first.sum().backward()
            second.sum().backward()
            (2 * second.sum()).backward()
            one.zero_grad()
            first.square().sum().backward()
            expected = (float(first.detach().square().sum()), float(3 * second.detach().sum()))
            sums = [optimizer._collected.heard() for optimizer in (one, two)]
            assert [float(each) for each in sums if each is not None] == pytest.approx(expected)
            one.step()
            two.step()
            one.zero_grad()
            two.zero_grad()


def test_roots_of_one_kind_that_reach_others_in_turn_are_found() -> None:
    (first, one), (second, two) = pair(), pair(2.0)
    with listen(one, two):
        for weight, optimizer, value in [(first, one, 2.0), (second, two, 4.0), (first, one, 2.0)]:
            optimizer._collected.discard()
            weight.sum().backward()
            heard = optimizer._collected.heard()
            assert heard is not None
            assert float(heard) == value


def test_none_means_all_that_exist_and_all_that_are_made() -> None:
    first, one = pair()
    with listen():
        second, two = pair(2.0)
        (first.sum() + second.sum()).backward()
        one.step()
        two.step()
    assert (felt(one), felt(two)) == (6.0, 6.0)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("divided", ["before", "behind", "in place"])
def test_a_scaled_loss_is_heard_unscaled(given: bool, divided: str) -> None:
    weight, optimizer = pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with listen(optimizer, scaler=scaler if given else None):
        for _ in range(2):
            scaled: Any = scaler.scale(weight.sum() / (2 if divided == "before" else 1))
            scaled = scaled.div_(2) if divided == "in place" else scaled
            (scaled / 2 if divided == "behind" else scaled).backward()
        scaler.step(optimizer)
        scaler.update()
    assert felt(optimizer) == 2.0


def test_a_step_that_overflows_leaves_no_loss_behind_where_the_model_resets_the_gradients() -> None:
    weight, optimizer = pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with listen(optimizer):
        for factor in (float("inf"), 1.0):
            scaled: Any = scaler.scale(factor * weight.sum())
            scaled.backward()
            scaler.step(optimizer)
            scaler.update()
            weight.grad = None
    assert felt(optimizer) == 2.0
    assert int(optimizer.emotion.held) == 0


def test_a_stray_pass_is_forgotten_with_its_gradients() -> None:
    weight, optimizer = pair()
    with listen(optimizer):
        (100 * weight.sum()).backward()
        weight.grad = None
        weight.sum().backward()
        optimizer.step()
    assert felt(optimizer) == 2.0


@pytest.mark.parametrize("is_observed", [False, True])
def test_a_given_loss_goes_first(is_observed: bool) -> None:
    weight, optimizer = pair()
    with listen(optimizer):
        weight.sum().backward()
        if is_observed:
            optimizer.observe(7.0)
        optimizer.step(loss=None if is_observed else 7.0)
    assert felt(optimizer) == 7.0


def test_a_watched_loss_goes_first_and_counts_once() -> None:
    weight, optimizer = pair()
    with listen(optimizer):
        for _ in range(2):
            (optimizer.watch(weight.sum()) / 2).backward()
        optimizer.step()
    assert felt(optimizer) == 2.0


@pytest.mark.parametrize("returned", ["the loss", "nothing", "a part"])
def test_a_closure_is_heard_and_counts_once(returned: str) -> None:
    weight, optimizer = pair()

    def closure() -> Tensor | None:
        optimizer.zero_grad()
        loss = weight.sum()
        loss.backward()
        return {"the loss": loss, "nothing": None, "a part": loss / 2}[returned]

    with listen(optimizer):
        optimizer.step(closure)
    assert felt(optimizer) == 2.0


def test_a_list_of_roots_is_their_sum_for_each_optimizer() -> None:
    (first, one), (second, two) = pair(1.0), pair(5.0)
    with listen(one, two):
        for _ in range(2):
            torch.autograd.backward([first.sum(), second.sum(), (first * second).sum()])
            sums = [optimizer._collected.heard() for optimizer in (one, two)]
            assert [float(each) for each in sums if each is not None] == [12.0, 20.0]
            one.zero_grad()
            two.zero_grad()


def test_a_weight_of_a_root_counts_and_inputs_restrict_it() -> None:
    (first, one), (second, two) = pair(), pair(5.0)
    with listen(one, two):
        (first.sum() + second.sum()).backward(torch.tensor(0.5), inputs=[first])
        one.step()
        with pytest.raises(LossMissingError, match="1 reached other parameters only"):
            two.step()
    assert felt(one) == 6.0


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_of_the_whole_model_is_heard_once(use_reentrant: bool) -> None:
    weight, optimizer = pair()
    x = torch.ones(2, requires_grad=True)
    with listen(optimizer):
        for _ in range(2):
            loss: Any = checkpoint(lambda x: (x * weight).sum(), x, use_reentrant=use_reentrant)
            loss.backward()
            optimizer.step(loss=None)
            optimizer.zero_grad()
    assert int(optimizer.emotion.felt) == 2
    assert felt(optimizer) == pytest.approx(2.0, abs=1e-2)


def test_steps_inside_of_the_pass_hear_the_loss_in_time() -> None:
    weight, optimizer = pair()

    def step(param: Tensor) -> None:
        del param
        optimizer.step()
        optimizer.zero_grad()

    weight.register_post_accumulate_grad_hook(step)
    with listen(optimizer):
        for _ in range(3):
            weight.sum().backward()
    assert int(optimizer.emotion.felt) == 3


def test_a_gradient_penalty_is_no_loss_of_its_own() -> None:
    weight, optimizer = pair()
    x = torch.ones(2, requires_grad=True)
    with listen(optimizer):
        out = (weight * x).square().sum()
        (slope,) = torch.autograd.grad(out, x, create_graph=True)
        (out + slope.square().sum()).backward()
        optimizer.step()
    assert felt(optimizer) == 2.0 + 8.0


def test_gradients_that_are_set_by_hand_are_never_half_of_a_step() -> None:
    weight, optimizer = pair()
    with listen(optimizer):
        (weight.grad,) = torch.autograd.grad((2 * weight).sum(), weight)
        with pytest.raises(
            LossMissingError, match=r"torch\.autograd\.grad computed gradients of parameters"
        ):
            optimizer.step()
        weight.square().sum().backward()
        before = weight.detach().clone()
        with pytest.raises(LossMissingError, match="only a part of the loss"):
            optimizer.step()
        assert torch.equal(weight, before)
        optimizer.step(loss=4.0)
        optimizer.zero_grad()
        loss = weight.sum()  # Looked at, and then taken through a pass of its own.
        torch.autograd.grad(loss, weight, retain_graph=True)
        loss.backward()
        optimizer.step()
    assert int(optimizer.emotion.felt) == 2


def test_a_root_that_is_not_one_number_is_named() -> None:
    weight, optimizer = pair()
    with listen(optimizer):
        (weight * 2).backward(torch.ones(2))
        weight.sum().backward()
        with pytest.raises(LossMissingError, match="root of this pass is not one number"):
            optimizer.step()


def test_a_pass_that_fails_is_not_heard() -> None:
    weight, optimizer = pair()

    def fail(gradient: Tensor) -> None:
        raise OSError(f"of {gradient}")

    with listen(optimizer):
        weight.sum().backward()
        middle = weight * 3
        middle.register_hook(fail)
        with pytest.raises(OSError, match="of tensor"):
            middle.sum().backward()
        optimizer.step()
    assert felt(optimizer) == 2.0


def test_the_error_names_what_was_seen() -> None:
    weight, optimizer = pair()
    other, stranger = pair()
    with listen(optimizer):
        with pytest.raises(LossMissingError, match="saw no backward pass"):
            optimizer.step()
        other.sum().backward()
        with pytest.raises(LossMissingError, match=r"of 1 backward passes .* 1 reached other parameters"):
            optimizer.step()
        with pytest.raises(LossMissingError, match="was not given this EmoSens"):
            stranger.step()
    with listen():
        weight.sum().backward()
        late = EmoSens([weight])
        with pytest.raises(LossMissingError, match="made after the last backward pass"):
            late.step()
        assert torch.equal(weight, torch.ones(2))
    # The passes of an earlier listener are no passes of this one.
    with listen(), pytest.raises(LossMissingError, match="saw no backward pass"):
        EmoSens([weight]).step()


def test_bad_input_is_refused() -> None:
    weight, optimizer = pair()
    with pytest.raises(TypeError, match="No optimizer of emo_torch"), listen(torch.optim.SGD([weight])):
        pass
    with pytest.raises(TypeError, match="must have a method `scale`"), listen(optimizer, scaler=2.0):
        pass
    assert originals()[0].__module__ == "torch.autograd"
    assert not hasattr(torch.autograd.backward, "__wrapped__")


def test_it_cannot_begin_inside_of_a_compiled_region(monkeypatch: pytest.MonkeyPatch) -> None:
    _, optimizer = pair()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(RuntimeError, match="Begin it outside"), listen(optimizer):
        pass


def test_a_compiled_model_is_heard() -> None:
    weight, optimizer = pair()
    compiled = torch.compile(lambda x: (x * weight).sum(), backend="aot_eager")
    with listen(optimizer):
        compiled(torch.ones(2)).backward()
        optimizer.step()
    assert felt(optimizer) == 2.0


def test_threads_hear_their_own_losses() -> None:
    pairs = [pair(float(index + 1)) for index in range(4)]

    def train(weight: Tensor, optimizer: EmoSens) -> None:
        for _ in range(20):
            (0.0 * weight.sum() + weight.detach()[0].round()).backward()
            optimizer.step()
            optimizer.zero_grad()

    with listen(*(optimizer for _, optimizer in pairs)):
        threads = [threading.Thread(target=train, args=each) for each in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [felt(optimizer) for _, optimizer in pairs] == [1.0, 2.0, 3.0, 4.0]


def test_other_optimizers_inside_are_heard() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = emo_torch.Emotional(torch.optim.SGD([weight], lr=0.1))
    with listen(optimizer):
        weight.sum().backward()
        optimizer.step()
    assert felt(optimizer) == 2.0


def test_the_graph_is_walked_once_for_all_optimizers_and_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    from emo_torch._wrappers import reach

    walks = []
    walk = reach._search_graph

    def counted(root: Any, wanted: list[set[int]]) -> Any:
        walks.append(root)
        return walk(root, wanted)

    monkeypatch.setattr(reach, "_search_graph", counted)
    pairs = [pair() for _ in range(5)]
    with listen(*(optimizer for _, optimizer in pairs)):
        for _ in range(4):
            torch.stack([weight.sum() for weight, _ in pairs]).logsumexp(0).backward()
            for _, optimizer in pairs:
                optimizer.step()
                optimizer.zero_grad()
    assert len(walks) == 1
