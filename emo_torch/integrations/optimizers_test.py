"""Optimizers of other packages inside `Emotional`: resume, learning rates, evaluation weights.

Each case runs against the real package, and is skipped with its name where that is not installed.
"""

import io
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import emo_torch
from emo_torch._wrappers.inner_check import manner_of

Make = Callable[[Any, list[Parameter]], Any]
LOSSES = (1.0, 1.3, 1.1, 1.2, 0.9, 1.0, 0.8, 0.85, 0.7, 0.9)


def by_name(name: str, **options: Any) -> Make:
    return lambda module, params: getattr(module, name)(params, **options)


def of_pytorch_optimizer(name: str, **options: Any) -> Make:
    return lambda module, params: module.load_optimizer(name)(params, **options)


def around(name: str, base: Any = torch.optim.AdamW, **options: Any) -> Make:
    return lambda module, params: getattr(module, name)(base(params, lr=1e-2), **options)


LINEAR: dict[str, tuple[str, Make]] = {
    "lion": ("lion_pytorch", by_name("Lion", lr=1e-2)),
    **{
        f"torchao {name}": ("torchao.optim", by_name(name, lr=1e-2))
        for name in ("AdamW8bit", "Adam8bit", "AdamW4bit")
    },
    **{
        f"bitsandbytes {name}": ("bitsandbytes.optim", by_name(name, lr=1e-2))
        for name in (
            "Adam8bit",
            "AdamW8bit",
            "Lion8bit",
            "RMSprop8bit",
            "Adagrad8bit",
            "AdEMAMix8bit",
            "LAMB8bit",
        )
    },
    **{
        f"heavyball {name}": ("heavyball", by_name(name, lr=1e-2))
        for name in ("AdamW", "NAdam", "Muon", "SOAP", "LaProp", "ADOPT")
    },
    **{
        f"pytorch_optimizer {name}": ("pytorch_optimizer", of_pytorch_optimizer(name))
        for name in (
            *(
                "adabelief",
                "adan",
                "adopt",
                "ademamix",
                "apollo",
                "came",
                "grams",
                "kate",
                "kron",
                "lamb",
                "lars",
            ),
            *(
                "lion",
                "mars",
                "novograd",
                "racs",
                "shampoo",
                "sm3",
                "stableadamw",
                "tiger",
                "stablespam",
                "yogi",
            ),
        )
    },
    "pytorch_optimizer OrthoGrad": ("pytorch_optimizer", around("OrthoGrad")),
}
ESTIMATES: dict[str, tuple[str, Make]] = {
    "prodigy": ("prodigyopt", by_name("Prodigy")),
    "prodigy, safeguard_warmup": ("prodigyopt", by_name("Prodigy", safeguard_warmup=True)),
    **{
        f"dadaptation {name}": ("dadaptation", by_name(name))
        for name in ("DAdaptAdam", "DAdaptSGD", "DAdaptAdaGrad", "DAdaptLion", "DAdaptAdan")
    },
    **{
        f"pytorch_optimizer {name}": ("pytorch_optimizer", of_pytorch_optimizer(name))
        for name in ("prodigy", "dadaptadam", "dadaptlion")
    },
}
FOLLOWS: dict[str, tuple[str, Make]] = {
    **{
        f"schedulefree {name}": ("schedulefree", by_name(name, lr=1e-2))
        for name in ("AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree")
    },
    "heavyball SFAdamW": ("heavyball", by_name("SFAdamW", lr=1e-2)),
    **{
        f"pytorch_optimizer {name}": ("pytorch_optimizer", of_pytorch_optimizer(name))
        for name in ("schedulefreeadamw", "madgrad", "ranger", "accsgd")
    },
    "pytorch_optimizer Lookahead": ("pytorch_optimizer", around("Lookahead")),
    "pytorch_optimizer ScheduleFreeWrapper": ("pytorch_optimizer", around("ScheduleFreeWrapper")),
}
OTHERS: dict[str, tuple[str, Make]] = {
    f"pytorch_optimizer {name}": ("pytorch_optimizer", of_pytorch_optimizer(name))
    for name in ("adafactor", "amos", "laprop", "soap", "spam", "splus", "gravity", "fromage")
}
EVERY = {**LINEAR, **FOLLOWS, **ESTIMATES, **OTHERS}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Lets other packages warn and draw, and has them step without compiling."""
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("ignore")
        yield


def cases(some: dict[str, tuple[str, Make]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", some.values(), ids=some.keys())


def made(case: tuple[str, Make]) -> tuple[list[Parameter], Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip(
            case[0],
            reason=f"{case[0]} is not installed: pip install 'emo-optimizers[trainers]'",
            exc_type=ImportError,
        )
    torch.manual_seed(0)
    # Large enough for states of 8 bits.
    params = [Parameter(torch.randn(64, 80)), Parameter(torch.randn(12, 5)), Parameter(torch.randn(7))]
    inner = case[1](module, params)
    if hasattr(inner, "train"):
        inner.train()
    return params, inner


def emotional(inner: Any, **options: Any) -> emo_torch.Emotional:
    """Makes an optimizer emotional, also one that is refused unless the way is chosen by hand."""
    through_lr = True if manner_of(inner).estimates else None
    return emo_torch.Emotional(inner, through_lr=through_lr, **options)


def train(optimizer: Any, params: list[Parameter], first: int, end: int) -> None:
    for step in range(first, end):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        torch.manual_seed(step)
        random.seed(step)
        optimizer.step(**({"loss": LOSSES[step]} if isinstance(optimizer, emo_torch.Emotional) else {}))


def places(params: list[Parameter]) -> list[Tensor]:
    return [param.detach().clone() for param in params]


def resume(case: tuple[str, Make], wrap: Callable[[Any], Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns where a run and a resumed one end; a resumed one goes through a file."""
    whole, inner = made(case)
    train(wrap(inner), whole, 0, 10)
    params, inner = made(case)
    optimizer = wrap(inner)
    train(optimizer, params, 0, 6)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others, inner = made(case)
    with torch.no_grad():
        for other, param in zip(others, params, strict=True):
            other.copy_(param)
    resumed = wrap(inner)
    resumed.load_state_dict(torch.load(file, weights_only=False))
    if hasattr(resumed, "train"):
        resumed.train()
    train(resumed, others, 6, 10)
    return places(whole), places(others)


@cases(EVERY)
def test_a_resumed_run_is_an_uninterrupted_one_if_it_is_one_without_emotion(case: tuple[str, Make]) -> None:
    whole, others = resume(case, lambda inner: inner)
    is_exact_alone = all(torch.equal(one, other) for one, other in zip(whole, others, strict=True))
    if not is_exact_alone:
        pytest.skip("does not resume exactly alone")
    whole, others = resume(case, emotional)
    for one, other in zip(whole, others, strict=True):
        assert torch.equal(one, other)


@cases(EVERY)
def test_without_emotion_it_is_the_optimizer_to_the_last_bit(case: tuple[str, Make]) -> None:
    params, inner = made(case)
    train(inner, params, 0, 10)
    others, inner = made(case)
    train(emotional(inner, gain=0.0, theta=0.0), others, 0, 10)
    for one, other in zip(params, others, strict=True):
        assert torch.equal(one, other)


@cases(LINEAR)
def test_scaling_the_rate_is_scaling_the_change(case: tuple[str, Make]) -> None:
    params, inner = made(case)
    assert manner_of(inner).is_linear
    start = places(params)
    train(emo_torch.Emotional(inner), params, 0, 10)
    others, inner = made(case)
    train(emo_torch.Emotional(inner, through_lr=False), others, 0, 10)
    for one, other, before in zip(params, others, start, strict=True):
        moved = float((one - before).abs().max())
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-3 * moved + 1e-6)
        assert moved > 0.0


@cases({**FOLLOWS, **ESTIMATES})
def test_what_keeps_track_steps_by_its_own_rate(case: tuple[str, Make]) -> None:
    params, inner = made(case)
    assert manner_of(inner).follows
    assert bool(manner_of(inner).estimates) == (case in ESTIMATES.values())
    train(emotional(inner), params, 0, 10)
    others, inner = made(case)
    emotion = emo_torch.init_emotion(torch.float32)
    rates = [group["lr"] for group in inner.param_groups]
    for step in range(10):
        emotion = emo_torch.feel(emotion, torch.tensor(LOSSES[step]))
        for group, rate in zip(inner.param_groups, rates, strict=True):
            group["lr"] = rate * float(1.0 - emotion.scalar.abs())
        train(inner, others, step, step + 1)
    for one, other in zip(params, others, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="Pass use_shadow=False"):
        emotional(inner, use_shadow=True)


@cases(ESTIMATES)
def test_an_optimizer_that_estimates_its_own_step_length_is_refused(case: tuple[str, Make]) -> None:
    params, inner = made(case)
    before = [{**group} for group in inner.param_groups]
    with pytest.raises(ValueError, match=r"estimates its own step length .* pass through_lr=True"):
        emo_torch.Emotional(inner)
    assert inner.param_groups == before
    assert not inner.state
    train(inner, params, 0, 1)


def test_an_optimizer_whose_memory_cannot_be_kept_right_is_refused() -> None:
    case = ("pytorch_optimizer", around("TRAC"))
    _, inner = made(case)
    with pytest.raises(ValueError, match=r"TRAC keeps track of where it moved .* pass through_lr=False"):
        emo_torch.Emotional(inner)
    _, inner = made(("schedulefree", around("ScheduleFreeWrapper", torch.optim.SGD)))
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer"):  # It is not one.
        emo_torch.Emotional(inner)


def test_sam_is_handed_the_closure() -> None:
    case: tuple[str, Make] = (
        "pytorch_optimizer",
        lambda module, params: module.SAM(params, torch.optim.SGD, lr=0.1),
    )
    runs = []
    for is_wrapped in (False, True):
        params, optimizer = made(case)
        if is_wrapped:
            optimizer = emo_torch.Emotional(optimizer, gain=0.0, theta=0.0)

        def closure(optimizer: Any = optimizer, params: Any = params) -> Tensor:
            optimizer.zero_grad()
            loss = torch.stack([param.square().sum() for param in params]).sum()
            loss.backward()
            return loss

        for _ in range(3):
            if not is_wrapped:
                closure()
            optimizer.step(closure)
        runs.append(places(params))
    for alone, wrapped in zip(*runs, strict=True):
        assert torch.equal(alone, wrapped)
    with pytest.raises(Exception, match="requires closure") as raised:
        optimizer.step(loss=1.0)
    assert "Call `optimizer.step(closure)` of the Emotional" in raised.value.__notes__[0]
    assert int(optimizer.emotion.felt) == 3


def test_evaluation_weights_under_accelerate() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Linear(4, 2)
    optimizer = emo_torch.Emotional(schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-1))
    model, optimizer = accelerator.prepare(model, optimizer)
    optimizer.train()
    for _ in range(20):
        optimizer.zero_grad()
        loss = emo_torch.unwrap(optimizer).watch((model(torch.ones(2, 4)) - 1).square().mean())
        accelerator.backward(loss)
        optimizer.step()
    before = model.weight.detach().clone()
    optimizer.eval()
    assert not torch.equal(before, model.weight)
    optimizer.train()
    torch.testing.assert_close(model.weight.detach(), before)


def test_evaluation_weights_under_the_trainer(tmp_path: Any) -> None:
    schedulefree = pytest.importorskip("schedulefree")
    transformers = pytest.importorskip("transformers")
    from emo_torch.integrations.transformers import LossAwareTrainerMixin

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, inputs: Any = None, labels: Any = None) -> dict[str, Tensor]:
            outputs = self.layer(inputs)
            return {"loss": (outputs - labels).square().mean(), "logits": outputs}

    trainer_class = type("Own", (LossAwareTrainerMixin, transformers.Trainer), {})
    model = Model()
    optimizer = emo_torch.Emotional(schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-2))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    data = [{"inputs": torch.ones(2), "labels": torch.ones(1)}] * 16
    trainer = trainer_class(
        model, arguments, train_dataset=data, eval_dataset=data, optimizers=(optimizer, None)
    )
    trainer.train()
    assert int(optimizer.emotion.felt) == 3
    trained = model.layer.weight.detach().clone()
    trainer.evaluate()
    assert not optimizer.inner.param_groups[0]["train_mode"]
    assert not torch.equal(model.layer.weight.detach(), trained) or not torch.equal(
        optimizer.state[model.layer.weight]["z"], trained
    )
