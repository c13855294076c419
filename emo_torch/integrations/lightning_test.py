"""Lightning, with the real library: the optimizer feels what `training_step` returned."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import emo_torch
from emo_torch._testing import Listening, batch, same_state, small_model

pytest.importorskip("lightning", reason="Lightning is not installed: pip install lightning")

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import MixedPrecision

from emo_torch.integrations.lightning import LossAwareCallback

# Lightning's own way to look into nested batches.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
BATCHES = 4


class Module(pl.LightningModule):
    """A small model that writes its losses down."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_model()
        self.losses: list[float] = []

    def loss_of(self, given: tuple[Tensor, Tensor]) -> Tensor:
        x, y = given
        loss: Tensor = (self.net(x).float() - y).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def training_step(self, given: tuple[Tensor, Tensor], index: int) -> Tensor | None:
        del index
        return self.loss_of(given)

    def configure_optimizers(self) -> Any:
        self.inside = Listening(self.net.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(self.inside, 2, 0.5)
        return {"optimizer": self.inside, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Manual(Module):
    """The same with a loop of its own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.way = way

    def training_step(self, given: tuple[Tensor, Tensor], index: int) -> None:
        del index
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss_of(given)
        if self.way == "watch":
            emo_torch.unwrap(optimizer).watch(loss)
        self.manual_backward(loss)
        if self.way == "loss":
            optimizer.step(loss=loss)
        elif self.way == "closure":
            optimizer.step(closure=lambda: loss.detach())
        else:
            optimizer.step()


class TwoOptimizers(Module):
    """Two models that train in turn, as in a GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.nets = torch.nn.ModuleList([small_model(1), small_model(2)])
        self.own: list[list[float]] = [[], []]

    def training_step(self, given: tuple[Tensor, Tensor], index: int) -> None:
        del index
        x, y = given
        for net, optimizer, own in zip(self.nets, self.optimizers(), self.own, strict=True):
            self.toggle_optimizer(optimizer)
            loss = (net(x) - y).square().mean()
            own.append(float(loss.detach()))
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        self.insides = [Listening(net.parameters(), lr=1e-2) for net in self.nets]
        return self.insides


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Lightning reports hardware and tips through logging."""
    import logging

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def trainer_of(callbacks: Any, precision: str = "32-true", scale: float = 1024.0, **options: Any) -> Any:
    """A trainer of a few batches on a CPU that writes nothing."""
    if precision == "16-mixed":
        # By its name alone, Lightning takes bfloat16 on a CPU.
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler)]
    else:
        options["precision"] = precision
    return pl.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "enable_checkpointing": False, **options},
    )


def data(batches: int = BATCHES) -> Any:
    """Batches of four examples, in order."""
    return DataLoader([batch(step) for step in range(batches)], batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_losses_felt_are_those_of_the_training_steps(precision: str, accumulation: int) -> None:
    module = Module()
    trainer = trainer_of([LossAwareCallback()], precision, accumulate_grad_batches=accumulation)
    trainer.fit(module, data())
    steps = torch.tensor(module.losses).reshape(-1, accumulation)
    assert module.inside.heard == pytest.approx(steps.mean(dim=1).tolist(), rel=1e-6)


def test_without_the_callback_whole_batches_come_by_the_closure() -> None:
    module = Module()
    trainer_of([]).fit(module, data())
    assert module.inside.heard == module.losses


def test_without_the_callback_accumulated_losses_are_wrong() -> None:
    module = Module()
    trainer_of([], accumulate_grad_batches=2).fit(module, data())
    assert module.inside.heard == [module.losses[1] / 2, module.losses[3] / 2]


def test_without_the_callback_a_scaled_step_says_what_is_missing() -> None:
    with pytest.raises(emo_torch.LossMissingError, match="watch"):
        trainer_of([], "16-mixed").fit(Module(), data())


def test_a_watched_loss_needs_no_callback() -> None:
    class Watching(Module):
        def training_step(self, given: tuple[Tensor, Tensor], index: int) -> Tensor:
            del index
            return emo_torch.unwrap(self.optimizers()).watch(self.loss_of(given))

    for precision in ("32-true", "16-mixed"):
        module = Watching()
        trainer_of([], precision, accumulate_grad_batches=2).fit(module, data())
        steps = torch.tensor(module.losses).reshape(-1, 2)
        assert module.inside.heard == pytest.approx(steps.mean(dim=1).tolist(), rel=1e-6)


# Lightning steps the schedule, too, when a gradient scaler skips the first step.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_step_that_overflows_leaves_no_loss_behind() -> None:
    module = Module()
    trainer = trainer_of([LossAwareCallback()], "16-mixed", scale=2.0**24)
    trainer.fit(module, data(12))
    skipped = 12 - len(module.inside.heard)
    assert 0 < skipped < 12
    assert module.inside.heard == module.losses[skipped:]


def test_the_last_step_of_an_epoch_may_have_fewer_batches() -> None:
    module = Module()
    trainer_of([LossAwareCallback()], accumulate_grad_batches=2).fit(module, data(3))
    means = [sum(module.losses[:2]) / 2, module.losses[2]]
    assert module.inside.heard == pytest.approx(means, rel=1e-6)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.parametrize("way", ["loss", "closure", "watch", "callback"])
def test_manual_optimization_takes_every_way(way: str, precision: str) -> None:
    if (way, precision) == ("closure", "16-mixed"):
        # Lightning calls the closure itself here, and hands on nothing.
        with pytest.raises(emo_torch.LossMissingError):
            trainer_of([], precision).fit(Manual(way), data())
        return
    module = Manual(way)
    trainer_of([LossAwareCallback()] if way == "callback" else [], precision).fit(module, data())
    assert module.inside.heard == module.losses


def test_optimizers_that_train_in_turn_hear_their_own_losses() -> None:
    module = TwoOptimizers()
    trainer_of([LossAwareCallback()]).fit(module, data())
    assert [inside.heard for inside in module.insides] == module.own


def test_an_optimizer_is_unwrapped_to_the_end() -> None:
    from lightning.pytorch.core.optimizer import LightningOptimizer

    optimizer = emo_torch.EmoSens(small_model().parameters())
    wrapped = LightningOptimizer(optimizer)
    assert isinstance(wrapped, emo_torch.EmoSens)
    assert emo_torch.unwrap(wrapped) is optimizer


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_training_goes_on_from_a_checkpoint_to_the_last_bit(precision: str, tmp_path: Path) -> None:
    def run(epochs: int, resume: Path | None) -> Module:
        module = Module()
        trainer = trainer_of([LossAwareCallback()], precision, max_epochs=epochs)
        # weights_only: the file has nothing but tensors and plain values.
        trainer.fit(module, data(), ckpt_path=resume, weights_only=True if resume else None)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    whole = run(2, None)
    run(1, None)
    resumed = run(2, tmp_path / "1.ckpt")
    assert resumed.inside.heard == whole.inside.heard[BATCHES:]
    assert same_state(resumed.inside.state_dict(), whole.inside.state_dict())
    assert same_state(resumed.state_dict(), whole.state_dict())
