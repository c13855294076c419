"""The optimizers of PyTorch and of `emo_torch`, ready to be stepped."""

import time
from typing import Any

import torch

import emo_torch
from benchmarks.step_time.memory import peak_growth
from benchmarks.step_time.plan import LEARNING_RATE, Variant
from benchmarks.step_time.problems import Problem, gradients, parameters
from benchmarks.step_time.rounds import FIRST_LOSS, check_emotion, loss_for

REPEATS = 2
"""How often temporaries are measured; the least counts, as pages come from elsewhere, too."""


class TorchSide:
    """Parameters and gradients in PyTorch.

    Args:
        problem: the shapes.
        device: "cpu" or "cuda".
        threads: the number of threads.
    """

    def __init__(self, problem: Problem, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.parameter_arrays = parameters(problem)
        self.gradient_arrays = gradients(problem)
        self._grads = [torch.from_numpy(array).to(self.device) for array in self.gradient_arrays]

    def runner(self, variant: Variant) -> "TorchRunner":
        """Returns an optimizer on parameters of its own and on the gradients of all."""
        params = []
        for array, grad in zip(self.parameter_arrays, self._grads, strict=True):
            param = torch.nn.Parameter(torch.tensor(array, device=self.device))
            param.grad = grad
            params.append(param)
        return TorchRunner(variant, params)

    def close(self) -> None:
        """Forgets the arrays."""
        self.parameter_arrays, self.gradient_arrays, self._grads = [], [], []


class TorchRunner:
    """One optimizer of PyTorch or of the family.

    Args:
        variant: which one.
        params: its parameters, with gradients.
    """

    def __init__(self, variant: Variant, params: list[torch.nn.Parameter]) -> None:
        self._variant = variant
        self._params = params
        self._device = params[0].device
        self.optimizer = make(variant, params)
        self._arguments: dict[str, Any] = {}

    def prepare(self, size: float | None) -> None:
        """Chooses the loss that gives the wanted emotion scalar."""
        if not self._variant.is_family:
            return
        loss = FIRST_LOSS
        if size is not None:
            emotion = self._emotion()
            loss = loss_for(float(emotion.short), float(emotion.long), size)
        self._arguments = {"loss": torch.tensor(loss, device=self._device)}
        self._wait()

    def run(self) -> None:
        """Takes one step."""
        self.optimizer.step(**self._arguments)
        self._wait()

    def check(self, size: float | None) -> None:
        """Raises a `RuntimeError` if the scalar or the shadow differs from the wanted one."""
        if size is not None:
            emotion = self._emotion()
            scalar, ratio = float(emotion.scalar), float(emotion.shadow_ratio)
            check_emotion(self._variant.name, scalar, ratio, size, shadow=self._variant.shadow)

    def move(self) -> None:
        """Does nothing: a step takes as long wherever its tensors lie."""

    def costs(self) -> dict[str, Any]:
        """Returns the bytes that a step takes beyond the state, or `None` where that cannot be known."""
        found = [self._temporaries(size) for size in self._variant.sizes]
        known = [growth for growth in found if growth is not None]
        return {"temporaries": max(known) if len(known) == len(found) else None}

    def _temporaries(self, size: float | None) -> int | None:
        found: list[int | None] = []
        for _ in range(REPEATS):
            self.prepare(size)
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                self.run()
                found.append(torch.cuda.max_memory_allocated() - before)
            else:
                found.append(peak_growth(self.run))
        return min((growth for growth in found if growth is not None), default=None)

    def _emotion(self) -> emo_torch.Emotion:
        assert isinstance(self.optimizer, emo_torch.EmoOptimizer)
        return self.optimizer.emotion

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def make(variant: Variant, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Makes an optimizer, of the family by default as a user gets it."""
    options = {"lr": LEARNING_RATE, **variant.options}
    if variant.is_family:
        return emo_torch.create_optimizer(variant.make, params, **options)
    theirs: torch.optim.Optimizer = getattr(torch.optim, variant.make)(params, **options)
    return theirs


def count_graphs(name: str, problem: Problem, steps: int = 6) -> dict[str, Any]:
    """Compiles the step of a member and counts graphs while learning rate, loss and step change.

    Args:
        name: the member's name.
        problem: the shapes.
        steps: how many steps.

    Returns:
        The seconds until the first compiled step was done, the graphs then, and those at the end.
    """
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    rate = torch.tensor(LEARNING_RATE)
    params = [torch.nn.Parameter(torch.tensor(array)) for array in parameters(problem)]
    for param, grad in zip(params, gradients(problem), strict=True):
        param.grad = torch.tensor(grad)
    optimizer = emo_torch.create_optimizer(name, params, lr=rate)
    optimizer.step(loss=torch.tensor(FIRST_LOSS))

    @torch.compile
    def step(loss: torch.Tensor) -> None:
        optimizer.step(loss=loss)

    start = time.perf_counter()
    step(torch.tensor(FIRST_LOSS))
    seconds = time.perf_counter() - start
    first = counters["stats"]["unique_graphs"]
    for index in range(steps):
        rate.mul_(0.9)
        step(torch.tensor(FIRST_LOSS - 0.1 * index))
    return {"seconds": seconds, "first": first, "last": counters["stats"]["unique_graphs"]}
