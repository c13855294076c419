"""Evaluations of Lightning with averaged weights: of a training, and of a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._testing import same_state

pytest.importorskip("lightning", reason="Lightning is not installed: pip install lightning")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from emo_torch.integrations.lightning import AveragedWeightsCallback, LossAwareCallback
from emo_torch.integrations.lightning_test import Module, data, trainer_of

# Lightning's own way to look into nested batches.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    # A new trainer evaluates a checkpoint without saving others.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Validating(Module):
    """A model that EmoPilot trains, which writes down the weights of each validation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def validation_step(self, given: tuple[Tensor, Tensor], index: int) -> None:
        del given, index
        self.seen.append(next(self.net.parameters()).detach().clone())

    def configure_optimizers(self) -> Any:
        self.pilot = emo_torch.EmoPilot(self.net.parameters())
        return self.pilot


def test_validation_sees_the_averaged_weights_and_training_the_others() -> None:
    module, plain = Validating(), Validating()
    options = {"max_epochs": 3, "num_sanity_val_steps": 1}
    callbacks = [LossAwareCallback(), AveragedWeightsCallback()]
    trainer_of(callbacks, **options).fit(module, data(), data(1))  # type: ignore[arg-type]
    trainer_of([LossAwareCallback()], **options).fit(plain, data(), data(1))  # type: ignore[arg-type]
    ours, theirs = (list(each.net.parameters()) for each in (module, plain))
    assert all(map(torch.equal, ours, theirs))
    assert same_state(module.pilot.state_dict(), plain.pilot.state_dict())
    assert torch.equal(module.seen[-1], module.pilot.state[ours[0]]["average"])
    assert not torch.equal(module.seen[-1], plain.seen[-1])


class Evaluating(Validating):
    """A model whose checkpoints are of epochs that a test can tell apart, steered in two ways."""

    def __init__(self, is_wrapped: bool = False) -> None:
        super().__init__()
        self.is_wrapped = is_wrapped

    def validation_step(self, given: tuple[Tensor, Tensor], index: int) -> None:
        super().validation_step(given, index)
        self.log("epoch", float(self.current_epoch))

    test_step = Validating.validation_step

    def predict_step(self, given: tuple[Tensor, Tensor], index: int) -> Tensor:
        super().validation_step(given, index)
        return self.seen[-1]

    def configure_optimizers(self) -> Any:
        if self.is_wrapped:
            return emo_torch.Autopilot(torch.optim.SGD(self.net.parameters(), lr=1e-2))
        return super().configure_optimizers()


def trained(tmp_path: Path, is_wrapped: bool) -> tuple[Evaluating, pl.Trainer, list[str]]:
    """Returns a trained model, its trainer, and the checkpoints of its three epochs."""
    module = Evaluating(is_wrapped)
    keep = ModelCheckpoint(tmp_path, "{epoch}", monitor="epoch", mode="min", save_top_k=3)
    callbacks: list[pl.Callback] = [LossAwareCallback(), AveragedWeightsCallback(), keep]
    trainer = trainer_of(callbacks, max_epochs=3, enable_checkpointing=True)
    trainer.fit(module, data(), data(1))
    return module, trainer, sorted(keep.best_k_models)


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize("is_fresh", [False, True])
def test_a_checkpoint_is_evaluated_with_its_own_averages(
    tmp_path: Path, is_wrapped: bool, is_fresh: bool
) -> None:
    module, trainer, paths = trained(tmp_path, is_wrapped)
    wanted, weights = module.seen[-3:], torch.load(paths[0], weights_only=True)["state_dict"]
    assert not torch.equal(wanted[0], wanted[2])
    if is_fresh:
        module = Evaluating(is_wrapped)
        trainer = trainer_of([AveragedWeightsCallback()])
    evaluate: Any = (trainer.validate, trainer.test, trainer.predict)
    for way, path, average in zip(evaluate, paths, wanted, strict=True):
        way(module, data(1), ckpt_path=path)
        assert torch.equal(module.seen[-1], average)
    trainer.test(module, data(1), ckpt_path=paths[0])
    assert torch.equal(module.seen[-1], wanted[0])
    # The loaded weights are in the model, before and after another evaluation without a path.
    for _ in range(2):
        assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
        trainer.test(module, data(1))
        assert torch.equal(module.seen[-1], wanted[0])


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")  # The trainer fits once more.
def test_a_checkpoint_without_averages_is_evaluated_as_it_is(tmp_path: Path) -> None:
    module, trainer, paths = trained(tmp_path, is_wrapped=False)
    trainer.save_checkpoint(tmp_path / "alone.ckpt", weights_only=True)
    final, average = next(module.net.parameters()).detach().clone(), module.seen[-1]
    trainer.test(module, data(1))
    assert torch.equal(module.seen[-1], average)
    trainer.test(module, data(1), ckpt_path=paths[0])
    trainer.test(module, data(1), ckpt_path=tmp_path / "alone.ckpt")
    assert torch.equal(module.seen[-1], final)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, data(), data(1))
    assert torch.equal(module.seen[-1], module.pilot.state[next(module.net.parameters())]["average"])
