"""Shows at which step of the closed loop a float32 rounding can decide which rule a member takes.

A processor decides how float32 rounds: how long its vectors are, in which order it adds, whether it
rounds between a product and a sum. To know the results of any processor, this module trains in float64,
where all processors agree, and adds random noise of the size of float32 roundings to all scores and
gradients, and to the sums of norms that EmoTion and EmoVoid read. Where a training with noise leaves the
band, a sign, a filter or a switch stood so close to its border that a rounding decided.
"""

import functools
from collections.abc import Collection
from typing import NamedTuple

import jax
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emo_torch._step.later_optimizers import NormOptimizer
from examples.digits import data, torch_side
from examples.digits.flax_side import FlaxRun
from examples.digits.settings import OPTIMIZERS, Settings
from examples.digits.torch_side import TorchRun
from parity_tests import closed_loop

NOISE = 32.0
"""The noise in units of float32's epsilon. A gradient here is a sum of up to 2048 products, of roundings as
if at random: sqrt(2048) / 2 = 23 units. Fewer products, and vectors that add in lanes, make less of it."""


class _Noise:
    """Adds noise to a tensor: relative to each value, and to the mean size of all values.

    The sum of many products has a rounding of the size of the products, however small the sum is. A zero
    stays zero: where all products are zero there is no rounding.
    """

    def __init__(self, seed: int, size: float) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._size = size * torch.finfo(torch.float32).eps

    def __call__(self, values: Tensor) -> Tensor:
        drawn = 2.0 * torch.rand(values.shape, generator=self._generator, dtype=values.dtype) - 1.0
        sizes = values.detach().abs()
        return values + self._size * drawn * (sizes + sizes.mean()) * (sizes != 0)


def _disturb_norm(optimizer: NormOptimizer, add_noise: _Noise) -> None:
    """Adds noise to the sum of the norms: another order of the sum has another last digit."""
    take = optimizer.take_norm
    vars(optimizer)["take_norm"] = lambda: add_noise(take())


@functools.cache
def losses(optimizer: str, epochs: int, noise: float, seed: int = 0) -> NDArray[np.float64]:
    """Trains the network of the closed loop in PyTorch, in float64, and returns the loss of each step.

    Args:
        optimizer: a name in `OPTIMIZERS`.
        epochs: how long, at 44 steps an epoch.
        noise: the size of the noise in units of float32's epsilon; 0 for none.
        seed: decides the noise; weights and batches are the same as in the closed loop.
    """
    rate = OPTIMIZERS[optimizer].learning_rate
    settings = Settings(optimizer=optimizer, learning_rate=rate, epochs=epochs, dtype="float64")
    cpu = jax.default_device(jax.devices("cpu")[0])
    with cpu, jax.enable_x64(True), torch_side.one_thread():
        digits = data.load(settings.dtype)
        run = TorchRun(settings, torch_side.tensors(FlaxRun(settings).weights_for_torch()))
        if noise:
            add_noise = _Noise(seed, noise)
            run._network.register_forward_hook(lambda *given: add_noise(given[-1]))
            for param in run._network.parameters():
                param.register_hook(add_noise)
            if isinstance(run._optimizer, NormOptimizer):
                _disturb_norm(run._optimizer, _Noise(seed, noise / NOISE))
        generator = np.random.default_rng(settings.seed)
        found = []
        for _ in range(epochs):
            for batch in data.shuffled_batches(generator, settings.batch_size):
                step = run.step(digits.train_images[batch], digits.train_labels[batch])
                found.append(float(step.loss))
    return np.array(found)


def share_of_band(
    optimizer: str, epochs: int | None = None, noise: float = NOISE, seed: int = 0, dtype: str = "float32"
) -> float:
    """Returns how much of the band noise uses: above 1, a rounding can take a loss out of the band.

    Args:
        optimizer: a name in `OPTIMIZERS`.
        epochs: how long, if not as long as the closed loop holds the member.
        noise: the size of the noise in units of the epsilon of `dtype`.
        seed: decides the noise.
        dtype: "float32" or "float64": whose roundings and whose band.
    """
    epochs = closed_loop.epochs(optimizer, dtype) if epochs is None else epochs
    size = noise * float(np.finfo(dtype).eps / np.finfo("float32").eps)
    plain = losses(optimizer, epochs, 0.0)
    noisy = losses(optimizer, epochs, size, seed)
    return float(np.max(np.abs(noisy - plain) / closed_loop.band(plain, dtype)))


class Decision(NamedTuple):
    """A member in a dtype whose roundings decide something within the closed loop.

    Attributes:
        optimizer: the optimizer's name in `emo_optax`.
        dtype: "float32" or "float64".
        steps: the number of steps for which the closed loop holds the member to the band.
        share: how much of the band PyTorch alone uses in all steps, with noise of the size of roundings.
    """

    optimizer: str
    dtype: str
    steps: int
    share: float


def decisions(optimizers: Collection[str], dtypes: Collection[str]) -> list[Decision]:
    """Returns the members that the closed loop holds for less than all steps, and how noise moves them."""
    return [
        Decision(
            name,
            dtype,
            closed_loop.epochs(name, dtype) * closed_loop.STEPS_PER_EPOCH,
            # One of two kinds of noise may decide nothing.
            max(share_of_band(name, closed_loop.EPOCHS, seed=seed, dtype=dtype) for seed in range(2)),
        )
        for name in optimizers
        for dtype in dtypes
        if name in OPTIMIZERS and closed_loop.epochs(name, dtype) < closed_loop.EPOCHS
    ]
