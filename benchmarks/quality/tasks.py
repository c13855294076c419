"""The tasks: four of the yardstick, six of other kinds, and three that were held back from tuning.

Every task is small: a run of 300 steps takes about a second on one core. All data is made in place, or
comes with scikit-learn, or is the licence text of this repository.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.yardstick import tasks as yardstick

Batch = tuple[Tensor, Tensor]
LossOf = Callable[[nn.Module, Batch], Tensor]


class Task(NamedTuple):
    """Something to learn.

    Attributes:
        name: its name in results and tables.
        title: its name for readers.
        kind: "design" for tasks that EmoPilot may be tuned on, "held back" for the others.
        steps: how many steps a run takes.
        network: from a seed to the network; parameters to be trained require gradients.
        batches: from a seed to batches without end.
        test: the test data.
        loss_of: from a network and a batch to the loss, a tensor of shape `[]`.
    """

    name: str
    title: str
    kind: str
    steps: int
    network: Callable[[int], nn.Module]
    batches: Callable[[int], Iterator[Batch]]
    test: Callable[[], Batch]
    loss_of: LossOf = yardstick.loss_of


def _sampled(data: Callable[[], Batch], size: int) -> Callable[[int], Iterator[Batch]]:
    """Returns a function from a seed to batches of so many examples, drawn with replacement."""

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        inputs, targets = data()
        while True:
            pick = torch.randint(len(inputs), (size,), generator=generator)
            yield inputs[pick], targets[pick]

    return batches


def _seeded(build: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build()

    return network


def _squared(network: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = functional.mse_loss(network(batch[0]), batch[1])
    return loss


@functools.cache
def _digits() -> tuple[Batch, Batch]:
    return yardstick._digits()


def _flat_digits(index: int) -> Callable[[], Batch]:
    def data() -> Batch:
        images, labels = _digits()[index]
        return images.flatten(1), labels

    return data


def _autoencoder() -> nn.Module:
    encoder = (nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 8), nn.Tanh())
    return nn.Sequential(*encoder, nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 64))


def _images_as_targets(index: int) -> Callable[[], Batch]:
    def data() -> Batch:
        images = _digits()[index][0].flatten(1)
        return images, images

    return data


@functools.cache
def _teacher(count: int, seed: int) -> Batch:
    """Returns outputs of a fixed network with noise that has heavy tails."""
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(shape, generator=generator) for shape in ((16, 24), (24, 1)))
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 16, generator=generator)
    noise = torch.randn(count, 1, generator=generator) / torch.rand(count, 1, generator=generator).add(0.1)
    return inputs, torch.tanh(inputs @ first / 4) @ second / 5 + 0.1 * noise


def _huber(network: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = functional.smooth_l1_loss(network(batch[0]), batch[1])
    return loss


class Recurrent(nn.Module):
    """A gated recurrent network over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(8, 32, batch_first=True)
        self.scores = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the scores, shape `[batch, 10]`."""
        scores: Tensor = self.scores(self.cell(images)[0][:, -1])
        return scores


class Factors(nn.Module):
    """Ratings as products of two embeddings: most rows have a gradient of 0 in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.things = nn.Embedding(200, 8), nn.Embedding(150, 8)
        for table in (self.users, self.things):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        """Returns the ratings, shape `[batch]`."""
        ratings: Tensor = (self.users(pairs[:, 0]) * self.things(pairs[:, 1])).sum(-1)
        return ratings


@functools.cache
def _ratings(count: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(2)
    users, things = (torch.randn(n, 4, generator=generator) for n in (200, 150))
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.stack([torch.randint(n, (count,), generator=generator) for n in (200, 150)], 1)
    noise = 0.3 * torch.randn(count, generator=generator)
    return pairs, (users[pairs[:, 0]] * things[pairs[:, 1]]).sum(-1) / 2 + noise


@functools.cache
def _wave() -> Batch:
    inputs = torch.linspace(-1, 1, 256)[:, None]
    return inputs, torch.sin(6 * inputs) + 0.5 * torch.sin(17 * inputs)


def _wave_network() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def _normalised() -> nn.Module:
    hidden = [layer for _ in range(2) for layer in (nn.LazyLinear(48), nn.BatchNorm1d(48), nn.ReLU())]
    network = nn.Sequential(*hidden, nn.Linear(48, 10))
    network(torch.zeros(2, 64))
    return network


# Held back: picked before EmoPilot was tuned, and never looked at while it was.


class Patches(nn.Module):
    """A transformer over the sixteen patches of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 32)
        self.places = nn.Parameter(0.02 * torch.randn(16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encode = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.scores = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the scores, shape `[batch, 10]`."""
        patches = images.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(images), 16, 4)
        scores: Tensor = self.scores(self.encode(self.embed(patches) + self.places).mean(1))
        return scores


class Density(nn.Module):
    """The density of points in the plane, as a mixture of 24 normal distributions."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.randn(24, 2))
        self.widths = nn.Parameter(torch.zeros(24, 2))
        self.weights = nn.Parameter(torch.zeros(24))

    def forward(self, points: Tensor) -> Tensor:
        """Returns the logarithm of the density, shape `[batch]`."""
        scaled = (points[:, None] - self.means) * torch.exp(-self.widths)
        each = -0.5 * scaled.square().sum(-1) - self.widths.sum(-1) + self.weights.log_softmax(0)
        return torch.logsumexp(each, 1)


@functools.cache
def _spiral(count: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    angle = 9 * torch.rand(count, generator=generator).sqrt()
    points = torch.stack([angle * angle.cos(), angle * angle.sin()], 1) / 3
    points = points + 0.1 * torch.randn(count, 2, generator=generator)
    return points, points


def _surprise(network: nn.Module, batch: Batch) -> Tensor:
    # Above 0, so that ratios of losses mean something.
    loss: Tensor = 4.0 - network(batch[0]).mean()
    return loss


def _contrast(network: nn.Module, batch: Batch) -> Tensor:
    """Returns the loss of telling which digits of a batch are of the same class."""
    places = functional.normalize(network(batch[0]), dim=1)
    likeness = places @ places.T / 0.2
    likeness = likeness - 1e9 * torch.eye(len(places))
    same = (batch[1][:, None] == batch[1]).float() - torch.eye(len(places))
    return -(likeness.log_softmax(1) * same).sum() / same.sum().clamp(min=1.0)


def _embedder() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16))


@functools.cache
def tasks() -> dict[str, Task]:
    """Returns the tasks by name."""
    known = yardstick.tasks()
    own = [
        Task(name, known[name].title, "design", 300, task.network, task.batches, task.test)
        for name, task in known.items()
    ]
    digits, images = _flat_digits(0), _images_as_targets(0)
    design: list[tuple[Any, ...]] = [
        ("autoencoder", "Digits, autoencoder", _autoencoder, images, 32, _images_as_targets(1), _squared),
        (
            *(
                "teacher",
                "Regression with heavy tails",
                lambda: _teacher_student(),
                lambda: _teacher(4096, 3),
            ),
            *(32, lambda: _teacher(1024, 4), _huber),
        ),
        (
            *("recurrent", "Digits, recurrent", Recurrent, lambda: _digits()[0], 32),
            *(lambda: _digits()[1], yardstick.loss_of),
        ),
        (
            *("factors", "Ratings, embeddings", Factors, lambda: _ratings(8192, 5), 64),
            *(lambda: _ratings(2048, 6), _squared),
        ),
        ("wave", "A function of one variable", _wave_network, _wave, 64, _wave, _squared),
        (
            *("normalised", "Digits, batch normalisation", _normalised, digits, 32),
            *(_flat_digits(1), yardstick.loss_of),
        ),
    ]
    held_back: list[tuple[Any, ...]] = [
        (
            *("patches", "Digits, patch transformer", Patches, lambda: _digits()[0], 32),
            *(lambda: _digits()[1], yardstick.loss_of),
        ),
        (
            *("density", "Density of a spiral", Density, lambda: _spiral(4096, 7), 64),
            *(lambda: _spiral(1024, 8), _surprise),
        ),
        ("contrast", "Digits, contrastive", _embedder, digits, 48, _flat_digits(1), _contrast),
    ]
    for kind, rows in (("design", design), ("held back", held_back)):
        for name, title, build, data, size, test, loss_of in rows:
            network, batches = _seeded(build), _sampled(data, size)
            own.append(Task(name, title, kind, 300, network, batches, test, loss_of))
    return {task.name: task for task in own}


def _teacher_student() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
