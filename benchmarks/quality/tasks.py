"""The tasks: the four kinds of the yardstick, seven of other kinds, eleven held back, and a large one.

All but one are small. All data is made in place, or comes with scikit-learn or Python, or is the licence
text of this repository. A task is pure functions of JAX, so that one compiled program trains it with all
seeds and learning rates at once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality import networks
from benchmarks.quality.later_tasks import LATER
from benchmarks.quality.task import Array, Data, Task, classes, entropy, layers, normal, squares
from benchmarks.quality.texts import CONTEXT, help_texts, text
from examples.digits import data

# The data. A function of the whole data, so that nothing is made before it is needed.


@functools.cache
def digits() -> tuple[Data, Data]:
    """Returns the digits to learn from, images `[1437, 8, 8]` and labels, and the digits to test on."""
    known = data.load("float32")
    train = known.train_images, known.train_labels
    return train, (known.test_images, known.test_labels)


def _flat(index: int) -> Callable[[], Data]:
    return lambda: (digits()[index][0].reshape(-1, 64), digits()[index][1])


def _images(index: int) -> Callable[[], Data]:
    return lambda: digits()[index]


def _images_twice(index: int) -> Callable[[], Data]:
    return lambda: (digits()[index][0].reshape(-1, 64),) * 2


def _help(index: int) -> Callable[[], Data]:
    return lambda: help_texts()[0][index]


def _large(key: jax.Array) -> Any:
    """Returns the parameters of a transformer of 3.2 million weights."""
    return networks.transformer(key, help_texts()[1], 64, width=256, depth=4)


def _text(index: int) -> Callable[[], Data]:
    return lambda: text()[0][index]


def _language(params: Any, frozen: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    del frozen
    return entropy(networks.run_transformer(params, inputs), targets)


def _adapted(params: Any, frozen: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    return _language(networks.join(frozen, params), (), inputs, targets)


def _transformer(key: jax.Array) -> Any:
    return networks.transformer(key, text()[1], CONTEXT)


def _adapters(key: jax.Array) -> Any:
    return networks.adapters(key, _transformer(key))


@jax.jit
def _pretrained(key: jax.Array) -> Any:
    """Returns a transformer after 500 steps on the first text."""
    inputs, targets = (jnp.asarray(each) for each in text()[0][0])
    optimizer = optax.adamw(3e-3)
    params = _transformer(key)

    def step(carry: Any, key: jax.Array) -> Any:
        params, state = carry
        pick = jax.random.randint(key, (16,), 0, len(inputs))
        grads = jax.grad(_language)(params, (), inputs[pick], targets[pick])
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 500))[0][0]


def _teacher(count: int, seed: int) -> Callable[[], Data]:
    """Outputs of a fixed network with noise that has heavy tails."""

    def make() -> Data:
        inputs = normal(seed, count, 16)
        tails = np.random.default_rng(seed + 1).uniform(0.1, 1.1, (count, 1)).astype(np.float32)
        exact = np.tanh(inputs @ normal(1, 16, 24) / 4) @ normal(2, 24, 1) / 5
        return inputs, exact + 0.1 * normal(seed + 2, count, 1) / tails

    return make


def _huber(params: Any, _: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean(optax.huber_loss(networks.run(params, inputs), targets))


def _ratings(count: int, seed: int) -> Callable[[], Data]:
    def make() -> Data:
        users, things = normal(3, 200, 4), normal(4, 150, 4)
        pairs = np.random.default_rng(seed).integers(0, (200, 150), (count, 2))
        exact = (users[pairs[:, 0]] * things[pairs[:, 1]]).sum(-1) / 2
        return pairs, exact + 0.3 * normal(seed + 1, count)

    return make


def _rate(params: Any, pairs: jax.Array) -> jax.Array:
    ratings: jax.Array = (params["users"][pairs[:, 0]] * params["things"][pairs[:, 1]]).sum(-1)
    return ratings


def _wave() -> Data:
    inputs = np.linspace(-1, 1, 256, dtype=np.float32)[:, None]
    return inputs, np.sin(6 * inputs) + 0.5 * np.sin(17 * inputs)


def _spiral(count: int, seed: int) -> Callable[[], Data]:
    def make() -> Data:
        angle = 9 * np.sqrt(np.random.default_rng(seed).random(count, np.float32))
        points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1) / 3
        points = points + 0.1 * normal(seed + 1, count, 2)
        return points, points

    return make


def _mixture(key: jax.Array) -> Any:
    return {
        "means": jax.random.normal(key, (24, 2)),
        "widths": jnp.zeros((24, 2)),
        "weights": jnp.zeros(24),
    }


def _surprise(params: Any, _: Any, points: jax.Array, targets: jax.Array) -> jax.Array:
    del targets
    scaled = (points[:, None] - params["means"]) * jnp.exp(-params["widths"])
    each = -0.5 * jnp.square(scaled).sum(-1) - params["widths"].sum(-1)
    density = jax.nn.logsumexp(each + jax.nn.log_softmax(params["weights"]), axis=1)
    return 4.0 - density.mean()  # Above 0, so that ratios of losses mean something.


# Noisy labels, for long runs.


def noisy_scores(inputs: Array) -> Array:
    """Returns the logarithms of the true probabilities of 8 classes."""
    scores = np.tanh(inputs @ normal(11, 16, 24) / 4) @ normal(12, 24, 8) / 3
    logarithms: Array = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return logarithms


def _noisy(count: int, seed: int) -> Callable[[], Data]:
    def make() -> Data:
        inputs = normal(seed, count, 16)
        chance = np.random.default_rng(seed + 1).gumbel(size=(count, 8))
        return inputs, (noisy_scores(inputs) + chance).argmax(-1)

    return make


def _true_noisy(count: int, seed: int) -> Callable[[], Data]:
    def make() -> Data:
        inputs = normal(seed, count, 16)
        return inputs, noisy_scores(inputs)

    return make


def _divergence(params: Any, _: Any, inputs: jax.Array, true: jax.Array) -> jax.Array:
    found = jax.nn.log_softmax(networks.run(params, inputs))
    return (jnp.exp(true) * (true - found)).sum(-1).mean()


# Held back: never looked at while EmoPilot was tuned.


def _alike(params: Any, _: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the loss of telling which digits of a batch are of the same class."""
    places = networks.run(params, inputs, jax.nn.gelu)
    places = places / jnp.linalg.norm(places, axis=1, keepdims=True)
    itself = jnp.eye(len(places))
    same = (labels[:, None] == labels).astype(jnp.float32) - itself
    likeness = jax.nn.log_softmax(places @ places.T / 0.2 - 1e9 * itself)
    return -(likeness * same).sum() / jnp.maximum(same.sum(), 1.0)


def _counts(count: int, seed: int) -> Callable[[], Data]:
    """Counts of rare events, which depend on four categories."""

    def make() -> Data:
        kinds = np.random.default_rng(seed).integers(0, 12, (count, 4))
        each = 0.7 * normal(21, 4, 12)[np.arange(4), kinds]
        rates = np.exp(each.sum(-1) / 2 + 0.5 * each[:, 0] * each[:, 1])
        return kinds, np.random.default_rng(seed + 1).poisson(rates).astype(np.float32)

    return make


def _deviance(params: Any, _: Any, kinds: jax.Array, counts: jax.Array) -> jax.Array:
    flow = params["table"][jnp.arange(4), kinds].reshape(len(kinds), -1)
    found = networks.run(params["layers"], flow, jnp.tanh)[:, 0]
    full = jax.scipy.special.xlogy(counts, counts) - counts
    return 2.0 * jnp.mean(full - counts * found + jnp.exp(found))


def _counter(key: jax.Array) -> Any:
    table = 0.3 * jax.random.normal(key, (4, 12, 6))
    return {"table": table, "layers": networks.perceptron(key, (24, 32, 1))}


@functools.cache
def tasks() -> dict[str, Task]:
    """Returns the tasks by name."""
    perceptron = classes(networks.run)
    tanh = squares(lambda params, inputs: networks.run(params, inputs, jnp.tanh))
    ratings = {"users": (200, 8), "things": (150, 8)}

    def tables(key: jax.Array) -> Any:
        keys = jax.random.split(key, 2)
        return {
            name: 0.3 * jax.random.normal(each, shape)
            for each, (name, shape) in zip(keys, ratings.items(), strict=True)
        }

    every = [
        Task("mlp", "Digits, perceptron", "yardstick", layers(64, 64, 10), perceptron, _flat(0), _flat(1)),
        Task(
            *("cnn", "Digits, convolutions", "yardstick", networks.convolutions),
            *(classes(networks.run_convolutions), _images(0), _images(1)),
        ),
        Task(
            *("transformer", "Text, transformer", "yardstick", _transformer),
            *(_language, _text(0), _text(1), 8),
        ),
        Task(
            *("lora", "Other text, adapters", "yardstick", _adapters),
            *(_adapted, _text(2), _text(3), 8),
            frozen=_pretrained,
            known=_text(1),
        ),
        Task(
            *("autoencoder", "Digits, autoencoder", "other", layers(64, 48, 8, 48, 64)),
            *(tanh, _images_twice(0), _images_twice(1)),
        ),
        Task(
            *("teacher", "Regression with heavy tails", "other", layers(16, 48, 48, 1)),
            *(_huber, _teacher(4096, 30), _teacher(1024, 40)),
        ),
        Task(
            *("recurrent", "Digits, recurrent", "other", networks.recurrent),
            *(classes(networks.run_recurrent), _images(0), _images(1)),
        ),
        Task(
            *("factors", "Ratings, embeddings", "other", tables),
            *(squares(_rate), _ratings(8192, 50), _ratings(2048, 60), 64),
        ),
        Task("wave", "A function of one variable", "other", layers(1, 32, 32, 1), tanh, _wave, _wave, 64),
        Task(
            *("normalised", "Digits, batch normalisation", "other", networks.normalised),
            *(classes(networks.run_normalised), _flat(0), _flat(1)),
        ),
        Task(
            *("density", "Density of a spiral", "other", _mixture),
            *(_surprise, _spiral(4096, 70), _spiral(1024, 80), 64),
        ),
        Task(
            *("noisy", "Noisy labels", "long", layers(16, 64, 8)),
            *(perceptron, _noisy(65536, 90), _true_noisy(4096, 100), 16),
            measure=_divergence,
        ),
        Task(
            *("finetune", "Other text, whole transformer", "fine-tuning", _pretrained),
            *(_language, _text(2), _text(3), 8),
            known=_text(1),
        ),
        Task(
            *("large", "Python's help texts, transformer of 3.2 million weights", "large", _large),
            *(_language, _help(0), _help(1), 8),
        ),
        Task(
            *("patches", "Digits, patch transformer", "held back", networks.patch_transformer),
            *(classes(networks.run_patch_transformer), _images(0), _images(1)),
        ),
        Task(
            *("contrast", "Digits, contrastive", "held back", layers(64, 64, 16)),
            *(_alike, _flat(0), _flat(1), 48),
        ),
        Task(
            *("counts", "Counts of rare events", "held back", _counter),
            *(_deviance, _counts(4096, 110), _counts(2048, 120)),
        ),
    ]
    return {task.name: task for task in (*every, *LATER)}
