"""Valid losses, and losses that are refused before anything is changed."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import emo_torch
from emo_torch._checks.validation_test import FAMILY, everything, weight

# The loss.


class Measured:
    """A number of somebody else's making."""

    def __float__(self) -> float:
        return 2.5


LOSSES: dict[str, Any] = {
    "float": 2.5,
    "fraction": Fraction(5, 2),
    "decimal": Decimal("2.5"),
    "np.float16": np.float16(2.5),
    "np.float32": np.float32(2.5),
    "np.float64": np.float64(2.5),
    "np.array": np.array(2.5),
    "float-like": Measured(),
    "scalar": torch.tensor(2.5),
    "one element": torch.tensor([2.5]),
    "one element in three dimensions": torch.tensor([[[2.5]]]),
    "float16": torch.tensor(2.5, dtype=torch.float16),
    "bfloat16": torch.tensor(2.5, dtype=torch.bfloat16),
    "float64": torch.tensor(2.5, dtype=torch.float64),
    "with a graph": torch.tensor(2.5, requires_grad=True) * 1.0,
    "a leaf": torch.tensor(2.5, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.tensor([2.5])),
}


@pytest.mark.parametrize("way", ["loss", "closure"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_real_number_in_any_dress_is_a_loss(loss: str, way: str) -> None:
    optimizer = emo_torch.EmoSens([weight()])
    given = LOSSES[loss]
    returned = optimizer.step(loss=given) if way == "loss" else optimizer.step(lambda: given)
    assert returned is given
    emotion = optimizer.emotion
    assert (emotion.short.item(), emotion.long.item(), emotion.felt.item()) == (2.5, 2.5, 1)
    assert not any(field.requires_grad for field in emotion)
    assert emotion.short.dtype == torch.float32


@pytest.mark.parametrize("loss", [3, np.int64(3), torch.tensor(3), torch.tensor([3], dtype=torch.int8)])
def test_an_integer_is_a_loss(loss: Any) -> None:
    optimizer = emo_torch.EmoSens([weight()])
    optimizer.step(loss=loss)
    assert optimizer.emotion.short.item() == 3.0


def test_a_loss_keeps_its_graph_and_its_numbers() -> None:
    param = weight(grad=False)
    optimizer = emo_torch.EmoSens([param])
    loss = param.square().sum()
    loss.backward(retain_graph=True)
    optimizer.step(loss=loss)
    assert loss.item() == 3.0
    assert loss.requires_grad


def test_the_loss_is_not_held_on_to() -> None:
    optimizer = emo_torch.EmoSens([weight()])
    loss = torch.tensor(1.0)
    optimizer.step(loss=loss)
    loss.fill_(100.0)
    assert optimizer.emotion.short.item() == 1.0


BAD_LOSSES: dict[str, tuple[Any, type[Exception], str]] = {
    "two numbers": (torch.ones(2), ValueError, r"shape \(2,\)\. Reduce it first.*loss\.mean\(\)"),
    "no number": (torch.ones(0), ValueError, r"shape \(0,\)"),
    "a matrix": (torch.ones(2, 2), ValueError, r"shape \(2, 2\)"),
    "an array": (np.ones(2), ValueError, "must be a scalar"),
    "a string": ("1.0", TypeError, "must be a tensor or a real number, and is '1.0'"),
    "bytes": (b"1", TypeError, "must be a tensor or a real number"),
    "a truth": (True, TypeError, "must be a tensor or a real number, and is True"),
    "a truth of NumPy's": (np.True_, TypeError, "must be a tensor or a real number"),
    "a truth as a tensor": (torch.tensor(True), TypeError, "must be a real number.*bool"),
    "complex": (1j, TypeError, "must be a tensor or a real number, and is 1j"),
    "complex of NumPy's": (np.complex128(1j), TypeError, "must be a tensor or a real number"),
    "complex as a tensor": (torch.tensor(1j), TypeError, "must be a real number.*complex"),
    "masked": (np.ma.masked, TypeError, "must be a tensor or a real number, and is masked"),
    "a masked array": (np.ma.array(1.0, mask=True), TypeError, "must be a tensor or a real number"),
    "a list": ([1.0], TypeError, "must be a tensor or a real number"),
    "a dict": ({"loss": 1.0}, TypeError, "must be a tensor or a real number"),
}


@pytest.mark.parametrize("way", ["loss", "closure"])
@pytest.mark.parametrize("loss", BAD_LOSSES)
def test_what_is_no_real_number_is_refused_before_anything_is_changed(loss: str, way: str) -> None:
    given, error, message = BAD_LOSSES[loss]
    optimizer = emo_torch.EmoSens([weight()], use_shadow=True)
    for before in (0.5, 2.0):
        optimizer.step(loss=before)
    kept = everything(optimizer)
    with pytest.raises(error, match=message):
        optimizer.step(loss=given) if way == "loss" else optimizer.step(lambda: given)
    assert everything(optimizer) == kept


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("cls", FAMILY)
@pytest.mark.parametrize("steps", [0, 3])
def test_without_a_loss_the_error_names_the_ways_and_nothing_is_changed(
    cls: Any, steps: int, foreach: bool
) -> None:
    optimizer = cls([{"params": [weight()], "lr": 0.0}, {"params": [weight(2, 2)]}], foreach=foreach)
    for step in range(steps):
        optimizer.step(loss=1.0 + step)
    kept = everything(optimizer)
    ways: tuple[tuple[Any, ...], ...] = ((), (None,), (lambda: None,))
    for closure in ways:
        with pytest.raises(emo_torch.LossMissingError) as caught:
            optimizer.step(*closure)
        for way in (
            "opt.step(loss=loss)",
            "scaler.step(opt, loss=loss)",
            "opt.step(closure)",
            "opt.step(lambda: loss.detach())",
            "emo_torch.unwrap(opt).watch(loss)",
        ):
            assert way in str(caught.value)
        assert everything(optimizer) == kept
    assert issubclass(emo_torch.LossMissingError, ValueError)


@pytest.mark.parametrize("loss", [torch.tensor(1.0), 1.0, np.float32(1.0)])
def test_a_loss_passed_as_closure_is_refused_with_a_hint(loss: Any) -> None:
    optimizer = emo_torch.EmoSens([weight()])
    kept = everything(optimizer)
    with pytest.raises(TypeError, match=r"opt\.step\(loss=loss\)"):
        optimizer.step(loss)
    assert everything(optimizer) == kept


# The parameters.


@pytest.mark.parametrize("cls", FAMILY)
def test_sparse_gradients_are_refused_before_anything_is_changed(cls: Any) -> None:
    dense, sparse = weight(2, 2), weight(2, 2)
    optimizer = cls([dense, sparse])
    optimizer.step(loss=1.0)
    sparse.grad = torch.ones(2, 2).to_sparse()
    kept = everything(optimizer)
    with pytest.raises(RuntimeError, match=f"^{cls.__name__} does not support sparse gradients$"):
        optimizer.step(loss=5.0)
    assert everything(optimizer) == kept


@pytest.mark.parametrize("cls", FAMILY)
def test_complex_parameters_are_refused_before_anything_is_changed(cls: Any) -> None:
    real, other = weight(), torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = cls([{"params": [real]}, {"params": [other]}])
    optimizer.step(loss=1.0)
    other.grad = torch.ones(2, dtype=torch.complex64)
    kept = everything(optimizer)[1:]
    with pytest.raises(RuntimeError, match=f"^{cls.__name__} does not support complex parameters$"):
        optimizer.step(loss=5.0)
    assert everything(optimizer)[1:] == kept


@pytest.mark.parametrize("cls", FAMILY)
def test_a_step_without_a_loss_at_a_learning_rate_of_0_still_refuses_sparse_gradients(cls: Any) -> None:
    param = weight(2, 2)
    param.grad = torch.ones(2, 2).to_sparse()
    optimizer = cls([param], lr=0.0)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert not optimizer.state
