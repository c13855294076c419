"""The training in Flax NNX, with an optimizer from `emo_optax`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

import emo_optax
from examples.digits.history import Step
from examples.digits.settings import FACTORS, MAX_NORM, OPTIMIZERS, Settings

TrainStep = Callable[
    [optax.Params, optax.OptState, NDArray[Any], NDArray[np.int64]],
    tuple[optax.Params, optax.OptState, Step],
]


LOOKS: dict[str, Callable[[optax.OptState], Any]] = {
    "emotion": emo_optax.get_emotion,
    "drive": emo_optax.get_drive,
    "pulse": emo_optax.get_pulse,
    "pilot": emo_optax.get_pilot,
}
"""How to look at each memory of the losses in a state."""


class Network(nnx.Module):
    """Two convolutions and a linear layer: images `[batch, 8, 8]` to scores `[batch, 10]`."""

    def __init__(self, dtype: str, rngs: nnx.Rngs) -> None:
        # The padding is written out: "SAME" would pad a stride of 2 on one side only, unlike PyTorch.
        self.convolution1 = nnx.Conv(1, 16, (3, 3), padding=1, param_dtype=dtype, rngs=rngs)
        self.convolution2 = nnx.Conv(16, 32, (3, 3), strides=2, padding=1, param_dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(4 * 4 * 32, 10, param_dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns ten scores for each image; the highest one is the network's guess."""
        # Not relu: it has a kink at 0, where the biases start, and there a rounding decides too much.
        hidden = nnx.silu(self.convolution1(images[..., None]))
        hidden = nnx.silu(self.convolution2(hidden))
        return self.output(hidden.reshape(len(images), -1))


def make_optimizer(settings: Settings) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer, behind a clip of the gradients."""
    optimizer = emo_optax.create_optimizer(settings.optimizer, settings.learning_rate, **settings.options())
    if OPTIMIZERS[settings.optimizer].has_factors:
        optimizer = output_axis_first(optimizer)
    return optax.chain(optax.clip_by_global_norm(MAX_NORM), optimizer)


def turn(tree: Any) -> Any:
    """Returns a tree whose arrays have their last axis first."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), tree)


def turn_back(tree: Any) -> Any:
    """Returns a tree whose arrays have their first axis last."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), tree)


def output_axis_first(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Shows `inner` every kernel with its output axis first, as PyTorch keeps it.

    Rules with factors set the first axis of a tensor against all others. In PyTorch the first axis of a
    convolution counts the output channels, in Flax it is the kernel's height: without this, the two
    would be different optimizers. A training in Flax alone does not need it.
    """

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(turn(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = inner.update(turn(updates), state, turn(params), **extra_args)
        return turn_back(updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def make_train_step(
    graph: nnx.GraphDef[Network],
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    memory: str,
) -> TrainStep:
    """Compiles one step: parameters, state, images, labels -> new parameters, new state, record."""

    def loss_function(params: optax.Params, images: jax.Array, labels: jax.Array) -> jax.Array:
        scores = nnx.merge(graph, params)(images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))

    # Donated: the old parameters and the old state give their memory to the new ones.
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(
        params: optax.Params, state: optax.OptState, images: jax.Array, labels: jax.Array
    ) -> tuple[optax.Params, optax.OptState, Step]:
        loss, gradients = jax.value_and_grad(loss_function)(params, images, labels)
        # The one thing that an emotional optimizer asks for: the loss.
        updates, state = optimizer.update(gradients, state, params, value=loss)
        params = optax.apply_updates(params, updates)
        weights = jnp.concatenate([weight.ravel() for weight in weights_for_torch(params).values()])
        seen = LOOKS[memory](state)
        ratio = jnp.zeros([]) if memory == "pilot" else seen.shadow_ratio
        return params, state, Step(loss, seen.scalar, getattr(seen, FACTORS[memory]), ratio, weights)

    return train_step


def weights_for_torch(params: optax.Params) -> dict[str, jax.Array]:
    """Returns the parameters as PyTorch's network names, orders and lays them out."""
    plain = nnx.as_pure(params)
    weights = {}
    for name in ("convolution1", "convolution2"):
        # From height, width, input, output to output, input, height, width.
        weights[f"{name}.weight"] = plain[name]["kernel"].transpose(3, 2, 0, 1)
        weights[f"{name}.bias"] = plain[name]["bias"]
    # An image reaches the last layer as height, width, channel; in PyTorch as channel, height, width.
    kernel = plain["output"]["kernel"].reshape(4, 4, 32, 10)
    weights["output.weight"] = kernel.transpose(3, 2, 0, 1).reshape(10, -1)
    weights["output.bias"] = plain["output"]["bias"]
    return weights


class FlaxRun:
    """A training in Flax NNX."""

    def __init__(self, settings: Settings) -> None:
        network = Network(settings.dtype, nnx.Rngs(settings.seed))
        graph, self._params = nnx.split(network)
        optimizer = make_optimizer(settings)
        self._state = optimizer.init(self._params)
        self._is_pilot = settings.is_pilot
        self._is_turned = OPTIMIZERS[settings.optimizer].has_factors
        self._train_step = make_train_step(graph, optimizer, memory=settings.memory)
        self._scores = jax.jit(lambda params, images: nnx.merge(graph, params)(images))

    def weights_for_torch(self) -> dict[str, NDArray[Any]]:
        """Returns copies of the weights now, for PyTorch's network to start from."""
        return {name: np.array(weight) for name, weight in weights_for_torch(self._params).items()}

    def step(self, images: NDArray[Any], labels: NDArray[np.int64]) -> Step:
        """Takes one step with a batch of digits."""
        self._params, self._state, record = self._train_step(self._params, self._state, images, labels)
        return record

    def evaluate(self, images: NDArray[Any], labels: NDArray[np.int64]) -> tuple[float, float]:
        """Returns the share of digits that the network tells rightly now, and its loss on them."""
        params = self._params
        if self._is_pilot:
            # The average is in the state, which has the axes that the optimizer sees.
            seen = turn(params) if self._is_turned else params
            params = emo_optax.eval_params(self._state, seen)
            params = turn_back(params) if self._is_turned else params
        scores = self._scores(params, images)
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))
        return float(np.mean(np.asarray(scores.argmax(axis=-1)) == labels)), float(loss)
