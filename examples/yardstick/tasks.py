"""Four small real tasks: digits twice, a text, and another text for adapters.

A perceptron and a convolutional network learn the digits, a transformer the text, and adapters on that
transformer the other text, while the loss on the first text is measured. The digits
come with scikit-learn. The text is this repository's licence, 11 kB of English; the other text is its
last third in capitals.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from examples.digits import data

Batch = tuple[Tensor, Tensor]

DIGITS_BATCH = 32
CONTEXT = 32
TEXT_BATCH = 16
WIDTH = 32
HEADS = 4
RANK = 4
PRETRAINING_RATE = 3e-3


class Task(NamedTuple):
    """Something to learn.

    Attributes:
        name: the name of the results in the store.
        title: its name in tables and pictures.
        steps: how many steps a run takes in the fast version.
        kinds: how many classes there are to tell apart.
        network: from a seed to the network; the trained parameters require gradients.
        batches: from a seed to batches without end.
        test: the data for testing.
        known: the data that the network had learnt before; `None` if there are none.
    """

    name: str
    title: str
    steps: int
    kinds: int
    network: Callable[[int], nn.Module]
    batches: Callable[[int], Iterator[Batch]]
    test: Callable[[], Batch]
    known: Callable[[], Batch] | None = None


def loss_of(network: nn.Module, batch: Batch) -> Tensor:
    """Returns the mean cross-entropy of a batch, in nats."""
    inputs, targets = batch
    scores: Tensor = network(inputs)
    return nn.functional.cross_entropy(scores.flatten(0, -2), targets.flatten())


@torch.no_grad()
def score(network: nn.Module, batch: Batch) -> tuple[float, float]:
    """Returns the loss of a batch, and the share of it that is told rightly."""
    inputs, targets = batch
    scores: Tensor = network(inputs)
    loss = nn.functional.cross_entropy(scores.flatten(0, -2), targets.flatten())
    return float(loss), float((scores.argmax(-1) == targets).float().mean())


# The digits.


@functools.cache
def _digits() -> tuple[Batch, Batch]:
    digits = data.load("float32")
    train = torch.tensor(digits.train_images), torch.tensor(digits.train_labels)
    return train, (torch.tensor(digits.test_images), torch.tensor(digits.test_labels))


def _perceptron(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def _convolutions(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def _digit_batches(seed: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    images, labels = _digits()[0]
    while True:
        pick = torch.randint(len(images), (DIGITS_BATCH,), generator=generator)
        yield images[pick], labels[pick]


# The text.


class Texts(NamedTuple):
    """Texts as numbers of their characters, each of shape `[characters]`.

    Attributes:
        first: what the transformer learns: the first two thirds, without the end.
        first_test: the end of that, held back.
        second: what the adapters learn: the last third, in capitals, without the end.
        second_test: the end of that, held back.
        kinds: how many characters there are.
    """

    first: Tensor
    first_test: Tensor
    second: Tensor
    second_test: Tensor
    kinds: int


@functools.cache
def texts() -> Texts:
    """Returns the licence, cut in pieces."""
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    # One blank for many: rows of them, as in the headings, are too easy to foretell.
    text = " ".join(text.split())
    characters = sorted(set(text + text.upper()))
    number = {character: index for index, character in enumerate(characters)}
    third = len(text) // 3
    pieces = [text[: 2 * third], text[2 * third :].upper()]
    first, second = (torch.tensor([number[character] for character in piece]) for piece in pieces)
    held_back = third // 4
    return Texts(
        first[:-held_back], first[-held_back:], second[:-held_back], second[-held_back:], len(characters)
    )


def _windows(text: Tensor, begins: Tensor) -> Batch:
    windows = text[begins[:, None] + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


def _text_batches(text: Tensor, seed: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield _windows(text, torch.randint(len(text) - CONTEXT, (TEXT_BATCH,), generator=generator))


def _whole(text: Tensor) -> Batch:
    return _windows(text, torch.arange(0, len(text) - CONTEXT, CONTEXT))


class Transformer(nn.Module):
    """One block of causal attention: characters `[batch, length]` to scores of the next ones."""

    def __init__(self, kinds: int, width: int = WIDTH) -> None:
        super().__init__()
        self.characters = nn.Embedding(kinds, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.before_attention = nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.before_hidden = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)
        self.before_scores = nn.LayerNorm(width)
        self.scores = nn.Linear(width, kinds)

    def forward(self, characters: Tensor) -> Tensor:
        """Returns the scores, shape `[batch, length, kinds]`."""
        batch, length = characters.shape
        flow = self.characters(characters) + self.places.weight[:length]
        mixed = self.attend(self.before_attention(flow)).view(batch, length, 3, HEADS, -1)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        flow = flow + self.attended(seen.transpose(1, 2).reshape(batch, length, -1))
        flow = flow + self.output(nn.functional.gelu(self.hidden(self.before_hidden(flow))))
        scores: Tensor = self.scores(self.before_scores(flow))
        return scores


class Adapted(nn.Module):
    """A frozen linear layer with an adapter of low rank beside it (LoRA), which starts at nothing."""

    def __init__(self, frozen: nn.Linear, rank: int = RANK) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Parameter(torch.randn(rank, frozen.in_features) / frozen.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the output of the frozen layer plus the output of the adapter."""
        outputs: Tensor = self.frozen(inputs) + inputs @ self.down.T @ self.up.T
        return outputs


def add_adapters(network: nn.Module) -> nn.Module:
    """Freezes a network and puts an adapter beside each of its linear layers, in place."""
    network.requires_grad_(False)
    for name, layer in list(network.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(network, name, Adapted(layer))
    return network


def _transformer(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Transformer(texts().kinds)


PRETRAINING_STEPS = 500


@functools.cache
def _pretrained(seed: int) -> dict[str, Tensor]:
    network = _transformer(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PRETRAINING_RATE)
    batches = _text_batches(texts().first, seed)
    for _ in range(PRETRAINING_STEPS):
        optimizer.zero_grad()
        loss_of(network, next(batches)).backward()
        optimizer.step()
    return network.state_dict()


def _adapters(seed: int) -> nn.Module:
    network = _transformer(seed)
    network.load_state_dict(_pretrained(seed))
    torch.manual_seed(seed)
    return add_adapters(network)


@functools.cache
def tasks() -> dict[str, Task]:
    """Returns the tasks by name."""
    all_of_them = [
        Task("mlp", "Digits, perceptron", 400, 10, _perceptron, _digit_batches, lambda: _digits()[1]),
        Task("cnn", "Digits, convolutions", 200, 10, _convolutions, _digit_batches, lambda: _digits()[1]),
        Task(
            "transformer",
            "Text, transformer",
            200,
            texts().kinds,
            _transformer,
            lambda seed: _text_batches(texts().first, seed),
            lambda: _whole(texts().first_test),
        ),
        Task(
            "lora",
            "Other text, adapters",
            120,
            texts().kinds,
            _adapters,
            lambda seed: _text_batches(texts().second, seed),
            lambda: _whole(texts().second_test),
            lambda: _whole(texts().first_test),
        ),
    ]
    return {task.name: task for task in all_of_them}
