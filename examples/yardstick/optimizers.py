"""Who is measured: the family, by the names it lists itself, and baselines from Optax and PyTorch.

Each contender exists twice. On the surfaces it runs in Optax, where thousands of runs are one compiled
function; on the real tasks it runs in PyTorch. Where the two frameworks have other defaults for the same
baseline, PyTorch's are given to Optax. Lion and AdaBelief, which PyTorch lacks, are driven through
`OptaxOptimizer`.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import Tensor
from torch.optim import lr_scheduler

import emo_optax
import emo_torch

REFERENCE = "adamw"
"""Who is always there, because the others are measured against it."""
LENGTH = "ref_max_steps"
"""The option by which a member is told how many steps the run has."""

Params = Iterable[Tensor]
Schedule = Callable[[Any], Any]


class OptaxOptimizer(torch.optim.Optimizer):
    """Drives an elementwise Optax optimizer on PyTorch's parameters, all of them as one vector.

    Args:
        params: the parameters, of one dtype, on the CPU.
        lr: the learning rate; schedulers may write it.
        make: from a learning rate to the transformation.
    """

    def __init__(
        self, params: Params, lr: float, make: Callable[[Any], optax.GradientTransformation]
    ) -> None:
        super().__init__(params, {"lr": lr})
        flat = jnp.asarray(self._flat().numpy())
        inner = optax.inject_hyperparams(make)(lr)
        self.inner_state = inner.init(flat)
        self._update = jax.jit(inner.update)

    def _flat(self) -> Tensor:
        params = [param for group in self.param_groups for param in group["params"]]
        return torch.cat([param.detach().reshape(-1) for param in params])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Takes one step with the gradients that the parameters have; takes no closure."""
        if closure is not None:
            raise TypeError("OptaxOptimizer takes no closure: call backward() yourself before step()")
        params = [param for group in self.param_groups for param in group["params"]]
        grads = torch.cat(
            [
                (torch.zeros_like(param) if param.grad is None else param.grad).reshape(-1)
                for param in params
            ]
        )
        rate = self.param_groups[0]["lr"]
        self.inner_state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
        updates, self.inner_state = self._update(
            jnp.asarray(grads.numpy()), self.inner_state, jnp.asarray(self._flat().numpy())
        )
        pieces = torch.from_numpy(np.array(updates)).split([param.numel() for param in params])
        for param, piece in zip(params, pieces, strict=True):
            param.add_(piece.view_as(param))


class Contender(NamedTuple):
    """An optimizer to be measured.

    Attributes:
        name: the name of the results in the store.
        title: its name in tables and pictures.
        is_family: whether it is one of ours.
        default: its default learning rate, where it has one; else the customary one.
        middle: the learning rate that the search on the real tasks goes out from.
        in_optax: from a learning rate, or a schedule, to the transformation, without weight decay.
        in_torch: from parameters and a learning rate to the optimizer.
        shape: how the learning rate goes with the steps: a name in `SHAPES`.
        takes_length: whether both take the number of steps, too, as the option `LENGTH`.
    """

    name: str
    title: str
    is_family: bool
    default: float
    middle: float
    in_optax: Callable[..., optax.GradientTransformation]
    in_torch: Callable[..., torch.optim.Optimizer]
    shape: str = "constant"
    takes_length: bool = False

    def length(self, steps: int) -> dict[str, int]:
        """Returns the option that says the number of steps, where there is one."""
        return {LENGTH: steps} if self.takes_length else {}


def _warm_up_steps(steps: int) -> int:
    return max(1, steps // 10)


def _drops(steps: int) -> tuple[int, int]:
    return max(1, steps // 2), max(2, steps * 3 // 4)


def _noam(steps: int) -> Schedule:
    warm_up = _warm_up_steps(steps)
    # The paper's formula, apart from a factor: the learning rate is the one at the peak.
    return lambda step: jnp.minimum((step + 1.0) / warm_up, jnp.sqrt(warm_up / (step + 1.0)))


def _noam_in_torch(steps: int) -> Callable[[int], float]:
    warm_up = _warm_up_steps(steps)
    return lambda step: min((step + 1.0) / warm_up, (warm_up / (step + 1.0)) ** 0.5)


SHAPES: dict[str, Callable[[int], Schedule]] = {
    "constant": lambda steps: optax.constant_schedule(1.0),  # noqa: ARG005
    "step decay": lambda steps: optax.piecewise_constant_schedule(1.0, dict.fromkeys(_drops(steps), 0.1)),
    "warm-up": lambda steps: optax.linear_schedule(
        1.0 / _warm_up_steps(steps), 1.0, max(1, _warm_up_steps(steps) - 1)
    ),
    "Noam": _noam,
}
"""From the number of steps to a schedule around 1, in Optax."""


def make_in_optax(contender: Contender, rate: Any, steps: int) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer for a run of so many steps; the learning rate may be traced."""
    shape = SHAPES[contender.shape](steps)
    optimizer = contender.in_optax(lambda count: rate * shape(count), **contender.length(steps))
    return optax.with_extra_args_support(optimizer)


class TorchRun:
    """An optimizer in PyTorch together with its scheduler, where it has one.

    Attributes:
        optimizer: the optimizer.
    """

    def __init__(self, contender: Contender, params: Params, rate: float, steps: int) -> None:
        self.optimizer = contender.in_torch(params, rate, **contender.length(steps))
        self._scheduler: lr_scheduler.LRScheduler | None = None
        if contender.shape == "step decay":
            self._scheduler = lr_scheduler.MultiStepLR(self.optimizer, _drops(steps), gamma=0.1)
        elif contender.shape == "warm-up":
            warm_up = _warm_up_steps(steps)
            self._scheduler = lr_scheduler.LinearLR(self.optimizer, 1.0 / warm_up, 1.0, max(1, warm_up - 1))
        elif contender.shape == "Noam":
            self._scheduler = lr_scheduler.LambdaLR(self.optimizer, _noam_in_torch(steps))
        self._reads_the_loss = contender.is_family

    def step(self, loss: Tensor) -> None:
        """Takes one step; the family is told the loss at the parameters before it."""
        if self._reads_the_loss:
            self.optimizer.step(loss=loss)  # type: ignore[call-overload]
        else:
            self.optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()


def _member(name: str, title_suffix: str = "", **options: Any) -> Contender:
    probe = emo_torch.create_optimizer(name, [torch.nn.Parameter(torch.zeros(1))], **options)
    without_decay = {"weight_decay": 0.0} if "weight_decay" in probe.defaults else {}

    def in_optax(rate: Any, **length: int) -> optax.GradientTransformation:
        return emo_optax.create_optimizer(name, rate, **options, **without_decay, **length)

    def in_torch(params: Params, rate: float, **length: int) -> torch.optim.Optimizer:
        return emo_torch.create_optimizer(name, params, lr=rate, **options, **length)

    default = float(probe.defaults["lr"])
    title = type(probe).__name__ + title_suffix
    key = name + title_suffix.replace(", ", "_").replace(" ", "_")
    takes_length = LENGTH in inspect.signature(type(probe)).parameters
    return Contender(
        key, title, True, default, 3.0 * default, in_optax, in_torch, takes_length=takes_length
    )


def _baseline(
    title: str,
    default: float,
    middle: float,
    in_optax: Callable[..., optax.GradientTransformation],
    in_torch: Callable[..., torch.optim.Optimizer],
    shape: str = "constant",
) -> Contender:
    name = title.lower().replace(" ", "_").replace("-", "_").replace(",", "")
    return Contender(name, title, False, default, middle, in_optax, in_torch, shape)


def _baselines() -> list[Contender]:
    part = functools.partial
    momentum_in_optax, momentum = part(optax.sgd, momentum=0.9), part(torch.optim.SGD, momentum=0.9)
    return [
        _baseline("SGD", 1e-3, 1e-1, optax.sgd, torch.optim.SGD),
        _baseline("Momentum", 1e-3, 3e-2, momentum_in_optax, momentum),
        _baseline("SGD, step decay", 1e-3, 1e-1, optax.sgd, torch.optim.SGD, "step decay"),
        _baseline("Momentum, step decay", 1e-3, 3e-2, momentum_in_optax, momentum, "step decay"),
        _baseline(
            "AdaGrad",
            1e-2,
            3e-2,
            part(optax.adagrad, initial_accumulator_value=0.0, eps=1e-10),
            torch.optim.Adagrad,
        ),
        _baseline(
            "RMSprop", 1e-2, 3e-3, part(optax.rmsprop, decay=0.99, eps_in_sqrt=False), torch.optim.RMSprop
        ),
        _baseline("AdaDelta", 1.0, 1.0, optax.adadelta, torch.optim.Adadelta),
        _baseline("Adafactor", 1e-2, 3e-2, optax.adafactor, torch.optim.Adafactor),
        _baseline("Adam", 1e-3, 3e-3, optax.adam, torch.optim.Adam),
        _baseline("Adam, warm-up", 1e-3, 3e-3, optax.adam, torch.optim.Adam, "warm-up"),
        _baseline(
            "Noam",
            1e-3,
            3e-3,
            part(optax.adam, b2=0.98, eps=1e-9),
            part(torch.optim.Adam, betas=(0.9, 0.98), eps=1e-9),
            "Noam",
        ),
        _baseline("AdamW", 1e-3, 3e-3, part(optax.adamw, weight_decay=0.0), torch.optim.AdamW),
        _baseline("AMSGrad", 1e-3, 3e-3, optax.amsgrad, part(torch.optim.Adam, amsgrad=True)),
        _baseline("RAdam", 1e-3, 3e-3, optax.radam, torch.optim.RAdam),
        _baseline("AdaBelief", 1e-3, 3e-3, optax.adabelief, part(OptaxOptimizer, make=optax.adabelief)),
        _baseline(
            "Lion", 1e-4, 1e-3, part(optax.lion, weight_decay=0.0), part(OptaxOptimizer, make=optax.lion)
        ),
    ]


@functools.cache
def contenders() -> dict[str, Contender]:
    """Returns everyone who is measured, by name: the family first, then the baselines."""
    family = [_member(name) for name in emo_torch.list_optimizers()]
    variants = [
        _member("emo_sens", ", shadow", use_shadow=True),
        # The surfaces' heights go into the hundreds: with the usual gain the scale 1 - |s| is 0 there.
        _member("emo_sens", ", gain 0.05", gain=0.05),
    ]
    return {each.name: each for each in [*family, *variants, *_baselines()]}
