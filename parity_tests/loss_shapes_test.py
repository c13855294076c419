"""The shapes of a loss: each package accepts the shapes that its framework can differentiate, and no other.

`Tensor.backward` takes any tensor of one element, and `jax.grad` takes an array of shape `()` alone. In JAX
a loss of shape `(1,)` is usually one device's block of a sharded array: devices would get different losses.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import emo_optax
import emo_torch
from emo_optax._members.by_name import MEMBERS

SHAPES: dict[tuple[int, ...], tuple[bool, bool]] = {  # Whether Optax and PyTorch accept it.
    (): (True, True),
    (1,): (False, True),
    (1, 1): (False, True),
    (2,): (False, False),
    (0,): (False, False),
}
PARAMS = jnp.ones(2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_framework_differentiates_the_losses_that_its_package_accepts(shape: tuple[int, ...]) -> None:
    def loss_of(params: Any) -> Any:
        return jnp.broadcast_to(params.sum(), shape)

    weight: Any = torch.ones(2, requires_grad=True)
    in_optax, in_torch = SHAPES[shape]
    cases: list[tuple[Any, bool]] = [
        (lambda: jax.grad(loss_of)(PARAMS), in_optax),
        (lambda: weight.sum().expand(shape).backward(), in_torch),
    ]
    for differentiate, is_accepted in cases:
        try:
            differentiate()
        except (TypeError, RuntimeError):
            assert not is_accepted
        else:
            assert is_accepted


@pytest.mark.parametrize("library", ["framework", "numpy"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MEMBERS)
def test_a_loss_is_accepted_or_refused_by_its_shape(
    name: str, shape: tuple[int, ...], library: str
) -> None:
    in_optax, in_torch = SHAPES[shape]
    numbers = np.full(shape, 2.5)

    ours = emo_optax.create_optimizer(name)
    value = jnp.asarray(numbers) if library == "framework" else numbers
    if in_optax:
        ours.update(PARAMS, ours.init(PARAMS), PARAMS, value=value)
    else:
        with pytest.raises(ValueError, match="must be a scalar"):
            ours.update(PARAMS, ours.init(PARAMS), PARAMS, value=value)

    weight = torch.nn.Parameter(torch.ones(2))
    theirs = emo_torch.create_optimizer(name, [weight])
    weight.grad = torch.ones(2)
    loss: Any = torch.from_numpy(numbers) if library == "framework" else numbers
    if in_torch:
        theirs.step(loss=loss)
        assert int(theirs.step_count()) == 1
    else:
        with pytest.raises(ValueError, match="must be a scalar"):
            theirs.step(loss=loss)
        assert int(theirs.step_count()) == 0
