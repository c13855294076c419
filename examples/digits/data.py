"""The digits: 1797 scans of 8 by 8 pixels that come with scikit-learn."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from examples.digits.settings import TRAIN_COUNT as TRAIN_COUNT

TEST_COUNT = 360


class Digits(NamedTuple):
    """Digits to learn from, and others to be tested on.

    Attributes:
        train_images: shape `[1437, 8, 8]`, floating point in [0, 1].
        train_labels: shape `[1437]`, integers from 0 to 9.
        test_images: shape `[360, 8, 8]`, as `train_images`.
        test_labels: shape `[360]`, as `train_labels`.
    """

    train_images: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_images: NDArray[Any]
    test_labels: NDArray[np.int64]


def load(dtype: str) -> Digits:
    """Returns the digits, always split in the same way, with as many of each kind as is fair."""
    digits = load_digits()
    images = (digits.images / 16.0).astype(dtype)  # A pixel counts from 0 to 16.
    labels = digits.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, train_size=TRAIN_COUNT, test_size=TEST_COUNT, random_state=0, stratify=labels
    )
    return Digits(train_images, train_labels, test_images, test_labels)


def shuffled_batches(generator: np.random.Generator, batch_size: int) -> NDArray[np.int64]:
    """Returns the batches of one epoch: indices of training digits, shape `[steps, batch_size]`.

    The few digits that do not fill a batch sit this epoch out.
    """
    steps = TRAIN_COUNT // batch_size
    return generator.permutation(TRAIN_COUNT)[: steps * batch_size].reshape(steps, batch_size)
