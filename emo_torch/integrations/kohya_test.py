"""kohya's sd-scripts, imitated: how they make an optimizer from a command line, and how they step."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch import _public
from emo_torch._testing import Listening, mean_squared_error, small_model

pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from emo_torch.integrations.accelerate import losses_from_backward

OTHER_BRANCHES = ("8bit", "schedulefree")
"""Endings of lower-cased names for which sd-scripts take an optimizer of another library."""
PUBLIC = [
    name
    for name, cls in vars(_public).items()
    if inspect.isclass(cls)
    and issubclass(cls, emo_torch.LossOptimizer)
    and "lr" in inspect.signature(cls).parameters
]


def made_as_there(optimizer_type: str, params: Any, lr: float, arguments: list[str]) -> Any:
    """The result of `--optimizer_type` and `--optimizer_args`: a class by its path, literals by name."""
    options = {}
    for argument in arguments:
        name, value = argument.split("=")
        options[name] = ast.literal_eval(value)
    assert not optimizer_type.lower().endswith(OTHER_BRANCHES)
    assert not optimizer_type.lower().startswith("dadapt")
    module, _, name = optimizer_type.rpartition(".")
    return getattr(importlib.import_module(module), name)(params, lr=lr, **options)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process: each test starts without."""

    def forget() -> None:
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()

    forget()
    yield
    forget()


@pytest.mark.parametrize("name", ["EmoSens3", "EmoAiry3", "EmoCats3", "EmoTion", "EmoVoid"])
def test_the_arguments_of_the_third_generation_work_as_they_stand(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    arguments = ["stopcoef=0.07", "use_shadow=True", "notify=True", "betas=(0.9, 0.995)"]
    optimizer = made_as_there(f"emo_torch.{name}", [weight], 1.0, arguments)
    assert optimizer.param_groups[0]["stopcoef"] == 0.07
    weight.grad = torch.ones(3)
    optimizer.step(loss=1.0)
    assert float(optimizer.pulse.pulse) == pytest.approx(1e-4)
    assert float(weight.detach().max()) < 1.0


def test_the_name_on_the_command_line_is_enough() -> None:
    model: Any = small_model()
    groups = [
        {"params": list(model[0].parameters()), "lr": 5e-5},
        {"params": list(model[2].parameters())},
    ]
    arguments = [
        "weight_decay=1e-3",
        "betas=(0.9,0.99)",
        "use_shadow=True",
        'shadow_ratio="v1.0"',
        "theta=0",
    ]
    optimizer = made_as_there("emo_torch.EmoSens", groups, 1e-4, arguments)
    assert type(optimizer) is emo_torch.EmoSens
    assert [group["lr"] for group in optimizer.param_groups] == [5e-5, 1e-4]
    group = optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"], group["use_shadow"]) == (1e-3, (0.9, 0.99), True)
    assert (group["shadow_ratio"], group["theta"]) == ("v1.0", 0)
    assert not hasattr(optimizer, "train")
    assert not hasattr(optimizer, "eval")


@pytest.mark.parametrize("name", PUBLIC)
def test_every_option_of_every_member_has_a_literal(name: str) -> None:
    parameters = inspect.signature(getattr(emo_torch, name)).parameters
    arguments = [
        f"{option}={parameter.default!r}"
        for option, parameter in parameters.items()
        if option not in ("params", "lr")
    ]
    assert len(arguments) > 5
    path = f"emo_torch.{name}"
    if path.lower().endswith(OTHER_BRANCHES):
        path = "emo_torch.integrations.kohya.RefAdamWMini"
    optimizer = made_as_there(path, [torch.nn.Parameter(torch.ones(2))], 1e-4, arguments)
    assert type(optimizer) is getattr(emo_torch, name)


def test_one_name_alone_would_be_taken_for_another_library() -> None:
    taken = [name for name in PUBLIC if name.lower().endswith(OTHER_BRANCHES)]
    assert taken == ["RefAdamWMiniScheduleFree"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_their_loop_needs_no_edit(accumulation: int) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model = small_model()
    inside = Listening(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(inside, lambda step: 0.9**step)
    model, optimizer, schedule = accelerator.prepare(model, inside, schedule)
    losses = []
    with losses_from_backward():  # As in the launcher.
        for step in range(4 * accumulation):
            with accelerator.accumulate(model):
                loss = mean_squared_error(model, step)
                losses.append(float(loss.detach()))
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(list(model.parameters()), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
    steps = torch.tensor(losses).reshape(-1, accumulation)
    assert inside.heard == pytest.approx(steps.mean(dim=1).tolist(), rel=1e-6)
    assert inside.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.9**4)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_groups_that_step_inside_backward_hear_the_loss(accumulation: int) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model = accelerator.prepare(small_model())
    groups = [list(model[0].parameters()), list(model[2].parameters())]
    insides = [Listening(group, lr=1e-2) for group in groups]
    optimizers = [accelerator.prepare(inside) for inside in insides]
    ready = [0] * len(groups)

    def hook_of(index: int) -> Any:
        def hook(param: torch.Tensor) -> None:
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(param, 1.0)
            ready[index] += 1
            if ready[index] == len(groups[index]):
                optimizers[index].step()
                optimizers[index].zero_grad(set_to_none=True)

        return hook

    for index, group in enumerate(groups):
        for param in group:
            param.register_post_accumulate_grad_hook(hook_of(index))
    losses = []
    before = [param.detach().clone() for param in model.parameters()]
    with losses_from_backward():
        for step in range(4 * accumulation):
            with accelerator.accumulate(model):
                ready[:] = [0] * len(groups)
                loss = mean_squared_error(model, step)
                losses.append(float(loss.detach()))
                accelerator.backward(loss)
    steps = torch.tensor(losses).reshape(-1, accumulation)
    for inside in insides:
        assert inside.heard == pytest.approx(steps.mean(dim=1).tolist(), rel=1e-6)
    assert not any(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("stopcoef=0.07", "EmoSens3"),
        ("notify=False", "EmoSens3"),
        ("fftmode=True", "a tenth of `lr`"),
        ("shadow_weight=0.1", "`shadow_rate`"),
        ("weight_decouple=True", "`weight_decay_mode`"),
        ("boost=10.0", "EmoPulse"),
        ("weight_deacy=0.01", "Did you mean 'weight_decay'"),
    ],
)
def test_an_argument_of_another_version_is_explained(argument: str, hint: str) -> None:
    with pytest.raises(TypeError) as caught:
        made_as_there("emo_torch.EmoSens", small_model().parameters(), 1e-4, [argument])
    assert hint in str(caught.value)
