"""A task: data, a network as plain functions of its parameters, and a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from benchmarks.quality import networks

Array = NDArray[Any]
Data = tuple[Array, Array]


class Task(NamedTuple):
    """Something to learn.

    Attributes:
        name: its name in results.
        title: its name for readers.
        kind: "yardstick" or "other" for tasks on which EmoPilot may be tuned; "held back" and "held back
            later" for tasks that nobody looked at before the rule was fixed; "long", "large" and
            "fine-tuning" for other studies.
        start: from a key to the first parameters.
        loss: from parameters, frozen parameters, inputs and targets to the loss, an array of shape `[]`.
        train: inputs and targets to learn from; the first axes count the examples.
        test: the same for testing.
        batch_size: how many examples make one step.
        frozen: from a key to arrays that are not trained.
        measure: the function for the test, if not `loss`.
        known: inputs and targets that the network had learnt before the training, to measure forgetting.
    """

    name: str
    title: str
    kind: str
    start: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any, jax.Array, jax.Array], jax.Array]
    train: Callable[[], Data]
    test: Callable[[], Data]
    batch_size: int = 32
    frozen: Callable[[jax.Array], Any] = lambda _: ()
    measure: Callable[[Any, Any, jax.Array, jax.Array], jax.Array] | None = None
    known: Callable[[], Data] | None = None


def entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross entropy of scores `[..., classes]` and labels `[...]`."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))


def classes(network: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns the loss of a network whose outputs are scores of classes."""
    return lambda params, _, inputs, labels: entropy(network(params, inputs), labels)


def squares(network: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns the mean squared error of a network."""
    return lambda params, _, inputs, targets: jnp.mean(jnp.square(network(params, inputs) - targets))


def normal(seed: int, *shape: int) -> Array:
    """Returns numbers of a normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def layers(*sizes: int) -> Callable[[jax.Array], Any]:
    """Returns a function from a key to the parameters of a perceptron."""
    return lambda key: networks.perceptron(key, sizes)
