"""A training of one task with one optimizer, undisturbed or disturbed in one of several ways."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from examples.yardstick.optimizers import Contender, TorchRun
from examples.yardstick.tasks import Task, loss_of, score

SPIKE = 100.0
"""The factor of the gradient of one step in the middle, as the disturbance `spike`."""
NOISY_BATCHES = 20
"""How many batches from the middle on have random labels, as the disturbance `labels`."""
SCALES = (1e-3, 1e-2, 1e-1, 10.0, 100.0)
"""The factors of the loss, and so of every gradient, as the disturbances `loss x 0.001` and so on."""

DISTURBANCES = ("spike", "labels", *(f"loss x {scale:g}" for scale in SCALES))

Watch = Callable[[int, Tensor, tuple[Tensor, Tensor]], None]


def gradient_factor(disturbance: str, step: int, steps: int) -> float:
    """Returns the factor of a step's gradients, without the scale of the loss."""
    return SPIKE if disturbance == "spike" and step == steps // 2 else 1.0


def has_random_labels(disturbance: str, step: int, steps: int) -> bool:
    """Returns whether the labels of a step's batch are random."""
    return disturbance == "labels" and 0 <= step - steps // 2 < NOISY_BATCHES


def loss_factor(disturbance: str) -> float:
    """Returns the factor of the loss in every step."""
    prefix = "loss x "
    return float(disturbance.removeprefix(prefix)) if disturbance.startswith(prefix) else 1.0


def train(
    task: Task,
    contender: Contender,
    rate: float,
    seed: int,
    steps: int,
    disturbance: str = "",
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Trains once.

    Args:
        task: the task to learn.
        contender: the optimizer.
        rate: its learning rate, > 0.
        seed: of the first weights and of the batches.
        steps: how many steps to take, > 0.
        disturbance: one of `DISTURBANCES`, or `""` for none.
        watch: is told the number of every step, from 0, its loss and its batch, before the step is
            taken and with its gradients in place.

    Returns:
        `loss` and `accuracy` on the test data, and `forgotten`, by how much the loss on what the
        network knew before rose, where there is such. `loss` is `None` and `accuracy` 0 where the
        training diverged, which ends it.
    """
    network = task.network(seed)
    params = [param for param in network.parameters() if param.requires_grad]
    run = TorchRun(contender, params, rate, steps)
    batches = task.batches(seed)
    noise = torch.Generator().manual_seed(seed)
    known = None if task.known is None else task.known()
    before = None if known is None else score(network, known)[0]
    for step in range(steps):
        inputs, targets = next(batches)
        if has_random_labels(disturbance, step, steps):
            targets = torch.randint(task.kinds, targets.shape, generator=noise)
        loss = loss_of(network, (inputs, targets)) * loss_factor(disturbance)
        if not math.isfinite(loss.item()):
            return {"loss": None, "accuracy": 0.0}
        for param in params:
            param.grad = None
        loss.backward()
        factor = gradient_factor(disturbance, step, steps)
        for param in params:
            if param.grad is not None and factor != 1.0:
                param.grad.mul_(factor)
        if watch is not None:
            watch(step, loss.detach(), (inputs, targets))
        run.step(loss.detach())
    test_loss, accuracy = score(network, task.test())
    if not math.isfinite(test_loss):
        return {"loss": None, "accuracy": 0.0}
    result = {"loss": test_loss, "accuracy": accuracy}
    if known is not None and before is not None:
        result["forgotten"] = score(network, known)[0] - before
    return result
