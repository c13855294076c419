"""Lightning, with the real library: the optimizer feels the losses that `training_step` returned."""

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


# Batches that are skipped.


class Skipping(Module):
    """The same, without a loss for some batches."""

    def __init__(self, skipped: tuple[int, ...], set_to_none: bool = True) -> None:
        super().__init__()
        self.skipped, self.set_to_none = skipped, set_to_none
        self.moved: list[bool] = []
        self.before: list[Tensor] = []

    def training_step(self, given: tuple[Tensor, Tensor], index: int) -> Tensor | None:
        return None if index in self.skipped else super().training_step(given, index)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        del epoch, batch_idx
        optimizer.zero_grad(set_to_none=self.set_to_none)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        del batch, batch_idx
        self.before = [param.detach().clone() for param in self.net.parameters()]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        del outputs, batch, batch_idx
        self.moved.append(not all(map(torch.equal, self.before, self.net.parameters())))


# Lightning says that a batch was skipped, and steps the schedule, too, when the first one was.
skipping = pytest.mark.filterwarnings(
    "ignore:`training_step` returned `None`", "ignore:Detected call of `lr_scheduler.step"
)


@skipping
@pytest.mark.parametrize("skipped", [(0,), (1,), (BATCHES - 1,), (1, 2), tuple(range(BATCHES))])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("has_callback", [False, True])
def test_a_batch_without_a_loss_is_skipped(
    has_callback: bool, precision: str, skipped: tuple[int, ...]
) -> None:
    if precision == "16-mixed" and not has_callback and len(skipped) < BATCHES:
        with pytest.raises(emo_torch.LossMissingError):  # No loss reaches a scaled step.
            trainer_of([], precision).fit(Skipping(skipped), data())
        return
    module = Skipping(skipped)
    trainer_of([LossAwareCallback()] if has_callback else [], precision).fit(module, data())
    assert module.moved == [index not in skipped for index in range(BATCHES)]
    assert module.inside.heard == pytest.approx(module.losses, rel=1e-6)


@skipping
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_skipped_batch_leaves_no_step_of_gradients_that_are_0(precision: str) -> None:
    module = Skipping((1, 2), set_to_none=False)
    trainer_of([LossAwareCallback()], precision).fit(module, data())
    assert module.moved == [True, False, False, True]
    assert module.inside.heard == pytest.approx(module.losses, rel=1e-6)


@skipping
@pytest.mark.parametrize("set_to_none", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_of_accumulated_batches_those_with_a_loss_count(precision: str, set_to_none: bool) -> None:
    # Steps of (0, 1), (2, 3), (4, 5), (6, 7): whole, without its first, without any, whole.
    module = Skipping((2, 4, 5), set_to_none)
    trainer_of([LossAwareCallback()], precision, accumulate_grad_batches=2).fit(module, data(8))
    of_steps = [sum(module.losses[:2]) / 2, module.losses[2], sum(module.losses[3:]) / 2]
    assert module.inside.heard == pytest.approx(of_steps, rel=1e-6)
    assert module.moved == [False, True, False, True, False, False, False, True]


@skipping
def test_a_step_whose_last_batch_is_skipped_feels_the_losses_of_the_others() -> None:
    module = Skipping((1,))
    trainer_of([LossAwareCallback()], accumulate_grad_batches=2).fit(module, data())
    assert module.inside.heard == pytest.approx([module.losses[0], sum(module.losses[1:]) / 2], rel=1e-6)


@skipping
def test_gradients_whose_loss_did_not_arrive_are_no_skipped_batch() -> None:
    with pytest.raises(emo_torch.LossMissingError, match=r"emo_torch\.integrations"):
        trainer_of([], accumulate_grad_batches=2).fit(Skipping((1,)), data())


@skipping
def test_the_same_callback_serves_another_training_after_one_that_failed() -> None:
    class Failing(Module):
        def on_after_backward(self) -> None:
            raise RuntimeError("on purpose")

    callback = LossAwareCallback()
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer_of([callback]).fit(Failing(), data())
    module = Skipping((0,), set_to_none=False)
    trainer_of([callback]).fit(module, data())
    assert module.moved == [False, True, True, True]


@pytest.mark.parametrize("has_callback", [False, True])
def test_in_manual_optimization_a_batch_may_be_left_out_and_a_loss_may_not(has_callback: bool) -> None:
    class Choosing(TwoOptimizers):
        def training_step(self, given: tuple[Tensor, Tensor], index: int) -> None:
            if index != 1:
                super().training_step(given, index)

    class Forgetting(Manual):
        def training_step(self, given: tuple[Tensor, Tensor], index: int) -> None:
            del index
            self.loss_of(given).backward()  # Lightning's own hook does not see it.
            self.optimizers().step()  # type: ignore[union-attr]

    callbacks = [LossAwareCallback()] if has_callback else []
    if has_callback:
        module = Choosing()
        trainer_of(callbacks).fit(module, data())
        assert [inside.heard for inside in module.insides] == module.own
        assert [len(own) for own in module.own] == [BATCHES - 1] * 2
    with pytest.raises(emo_torch.LossMissingError):
        trainer_of(callbacks).fit(Forgetting("none"), data())
