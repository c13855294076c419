"""Every member of the registry in Lightning and in Hugging Face's Trainer: each loss is felt once."""

from pathlib import Path
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._members.by_name import MEMBERS

pytest.importorskip("lightning", reason="Lightning is not installed: pip install lightning")
pytest.importorskip("transformers", reason="Transformers is not installed: pip install transformers")

from emo_torch.integrations import lightning, lightning_test, transformers_test

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
every_member = pytest.mark.parametrize("name", MEMBERS)


def options_of(name: str) -> dict[str, Any]:
    return {"lr": 20.0 if MEMBERS[name].generation == 3 else 2e-3}


@every_member
def test_lightning_steps_as_a_plain_loop(name: str) -> None:
    class Module(lightning_test.Module):
        def configure_optimizers(self) -> Any:
            return emo_torch.create_optimizer(name, self.net.parameters(), **options_of(name))

    module, plain = Module(), lightning_test.Module()
    trainer = lightning_test.trainer_of([lightning.LossAwareCallback()])
    trainer.fit(module, lightning_test.data())
    inside = emo_torch.unwrap(trainer.optimizers[0])
    expected = emo_torch.create_optimizer(name, plain.net.parameters(), **options_of(name))
    for given in lightning_test.data():
        expected.zero_grad()
        loss = plain.loss_of(given)
        loss.backward()
        expected.step(loss=loss)
    assert int(inside.step_count()) == lightning_test.BATCHES
    for key, value in inside.named_memory().items():
        torch.testing.assert_close(value, expected.named_memory()[key])
    for one, other in zip(module.net.parameters(), plain.net.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@every_member
def test_the_trainer_of_hugging_face_makes_and_steps_a_member(name: str, tmp_path: Path) -> None:
    given = (MEMBERS[name].make, options_of(name))
    trainer = transformers_test.trainer_of(
        "callback", tmp_path, transformers_test.small_gpt2(), given=given, max_steps=2
    )
    trainer.train()
    inside = emo_torch.unwrap(trainer.optimizer)
    assert type(inside) is MEMBERS[name].make
    assert int(inside.step_count()) == 2
    named = {
        key.split("/")[1]: float(value) for key, value in inside.named_memory().items() if not value.ndim
    }
    losses = transformers_test.logged(trainer)
    if MEMBERS[name].generation is not None:  # EmoPilot averages in another way.
        assert named["long"] == pytest.approx(losses[0] + 0.01 * (losses[1] - losses[0]), rel=1e-4)
    start = transformers_test.small_gpt2().state_dict()
    assert any(not value.equal(start[key]) for key, value in trainer.model.state_dict().items())
