"""Hugging Face's Trainer, with the real library: the optimizer feels the loss that the Trainer logs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._testing import Listening, same_state

pytest.importorskip("transformers", reason="Transformers is not installed: pip install transformers")
pytest.importorskip("accelerate", reason="Accelerate, which the Trainer needs, is not installed")

import transformers

from emo_torch.integrations.transformers import LossAwareCallback, LossAwareTrainerMixin

STEPS = 4
TOKENS = 32


class LossAwareTrainer(LossAwareTrainerMixin, transformers.Trainer):
    """The Trainer with the mixin, as a user makes it."""


WAYS = {"mixin": (LossAwareTrainer, []), "callback": (transformers.Trainer, [LossAwareCallback])}
"""The Trainer, and the callbacks, that bring the loss."""


def small_gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def sentences(count: int = 32) -> list[Tensor]:
    """Random sentences of several lengths."""
    generators = [torch.Generator().manual_seed(index) for index in range(count)]
    return [
        torch.randint(1, TOKENS, (5 + index % 4,), generator=generator)
        for index, generator in enumerate(generators)
    ]


def collate(rows: list[Tensor]) -> dict[str, Tensor]:
    """Pads sentences; padding has no loss, so that micro-batches weigh differently."""
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    attended = (ids > 0).long()
    return {"input_ids": ids, "attention_mask": attended, "labels": ids.masked_fill(ids == 0, -100)}


def trainer_of(
    way: str, folder: Path, model: Any, optimizer: Any = None, *, given: Any = None, **options: Any
) -> Any:
    """A Trainer of a few steps on a CPU that logs each of them and says nothing."""
    cls, callbacks = WAYS[way]
    arguments: dict[str, Any] = {
        "use_cpu": True,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "learning_rate": 1e-2,
        **options,
    }
    trainer = cls(
        model=model,
        args=transformers.TrainingArguments(str(folder), **arguments),
        train_dataset=sentences(),
        eval_dataset=sentences(4),
        data_collator=collate,
        optimizers=(optimizer, None),
        callbacks=[callback() for callback in callbacks],
        **({} if given is None else {"optimizer_cls_and_kwargs": given}),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def logged(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def inside(trainer: Any) -> Listening:
    optimizer = emo_torch.unwrap(trainer.optimizer)
    assert isinstance(optimizer, Listening)
    return optimizer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accumulation", [1, 3, 4])
def test_the_losses_felt_are_those_that_the_trainer_logs(
    way: str, accumulation: int, tmp_path: Path
) -> None:
    model = small_gpt2()
    optimizer = Listening(model.parameters(), lr=1e-2)
    # With 3, the last of the 6 steps has one micro-batch alone.
    trainer = trainer_of(
        way, tmp_path, model, optimizer, gradient_accumulation_steps=accumulation, max_steps=6
    )
    trainer.train()
    assert len(optimizer.heard) == 6
    assert optimizer.heard == logged(trainer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_model_that_is_not_told_the_number_of_items_has_its_losses_averaged(
    way: str, accumulation: int, tmp_path: Path
) -> None:
    model = small_gpt2()
    model.accepts_loss_kwargs = False
    optimizer = Listening(model.parameters(), lr=1e-2)
    trainer = trainer_of(way, tmp_path, model, optimizer, gradient_accumulation_steps=accumulation)
    trainer.train()
    assert optimizer.heard == pytest.approx(logged(trainer), rel=1e-6)


def test_a_loss_computed_elsewhere_is_heard_by_the_mixin_and_missed_by_the_callback(
    tmp_path: Path,
) -> None:
    def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
        loss = torch.nn.functional.cross_entropy(
            outputs.logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        share: Tensor = loss / num_items_in_batch
        return share

    for way in WAYS:
        model = small_gpt2()
        optimizer = Listening(model.parameters(), lr=1e-2)
        trainer = trainer_of(way, tmp_path, model, optimizer, gradient_accumulation_steps=2)
        trainer.compute_loss_func = loss_of
        if way == "mixin":
            trainer.train()
            assert optimizer.heard == logged(trainer)
        else:
            with pytest.raises(emo_torch.LossMissingError):
                trainer.train()


def test_a_loss_that_ignores_the_number_of_items_is_felt_as_it_is_logged(tmp_path: Path) -> None:
    class OwnLoss(LossAwareTrainer):
        def compute_loss(self, model: Any, inputs: Any, *given: Any, **options: Any) -> Tensor:
            del given, options
            loss: Tensor = model(**inputs).loss
            return loss

    model = small_gpt2()
    optimizer = Listening(model.parameters(), lr=1e-2)
    trainer = trainer_of("mixin", tmp_path, model, optimizer, gradient_accumulation_steps=4)
    trainer.__class__ = OwnLoss
    trainer.train()
    assert optimizer.heard == logged(trainer)
    assert optimizer.heard[0] > 3 * torch.tensor(float(TOKENS)).log()


def test_bfloat16_autocast_changes_nothing_about_it(tmp_path: Path) -> None:
    model = small_gpt2()
    optimizer = Listening(model.parameters(), lr=1e-2)
    trainer = trainer_of("mixin", tmp_path, model, optimizer, bf16=True, gradient_accumulation_steps=2)
    trainer.train()
    assert optimizer.heard == logged(trainer)


@pytest.mark.parametrize("way", WAYS)
def test_the_trainer_may_make_the_optimizer_itself(way: str, tmp_path: Path) -> None:
    trainer = trainer_of(way, tmp_path, small_gpt2(), given=(Listening, {"lr": 1e-2}))
    trainer.train()
    optimizer = inside(trainer)
    assert len(optimizer.param_groups) == 2  # With and without weight decay.
    assert optimizer.heard == logged(trainer)


def test_without_either_the_trainer_is_told_what_to_do(tmp_path: Path) -> None:
    model = small_gpt2()
    trainer = trainer_of("callback", tmp_path, model, emo_torch.EmoSens(model.parameters()))
    trainer.remove_callback(LossAwareCallback)
    with pytest.raises(emo_torch.LossMissingError, match="watch"):
        trainer.train()


@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_is_skipped_leaves_no_loss_behind(way: str, tmp_path: Path) -> None:
    class SkipOne(transformers.TrainerCallback):
        """Skips the second step, as a gradient scaler does after an overflow."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, control
            self.step = kwargs["optimizer"].step
            if state.global_step == 1:
                kwargs["optimizer"].step = lambda: None

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, state, control
            kwargs["optimizer"].step = self.step

    model = small_gpt2()
    optimizer = Listening(model.parameters(), lr=1e-2)
    optimizer.observe(100.0)  # Of another training, which was broken off.
    trainer = trainer_of(way, tmp_path, model, optimizer, gradient_accumulation_steps=2)
    trainer.add_callback(SkipOne())
    trainer.train()
    losses = logged(trainer)
    assert optimizer.heard == [losses[0], *losses[2:]]


def test_the_callback_stops_watching_when_training_ends(tmp_path: Path) -> None:
    model = small_gpt2()
    optimizer = Listening(model.parameters(), lr=1e-2)
    trainer = trainer_of("callback", tmp_path, model, optimizer, max_steps=1)
    trainer.train()
    assert not model._forward_hooks
    trainer.train()
    assert len(optimizer.heard) == 2


@pytest.mark.parametrize("way", WAYS)
def test_training_goes_on_from_a_checkpoint_to_the_last_bit(way: str, tmp_path: Path) -> None:
    def run(resume: str | None) -> tuple[Any, Listening]:
        model = small_gpt2()
        optimizer = Listening(model.parameters(), lr=1e-2, use_shadow=True)
        options = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
        trainer = trainer_of(way, tmp_path, model, optimizer, **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model, optimizer

    whole, first = run(None)
    checkpoint = tmp_path / "checkpoint-2"
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert float(saved["param_groups"][0]["emotion_felt"]) == 2
    resumed, second = run(str(checkpoint))
    assert second.heard == first.heard[2:]
    assert same_state(second.state_dict(), first.state_dict())
    assert same_state(resumed.state_dict(), whole.state_dict())


# PEFT asks Transformers by an older name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("way", WAYS)
def test_emo_pilot_is_evaluated_with_its_averaged_weights_and_trains_on(way: str, tmp_path: Path) -> None:
    def run(**options: Any) -> tuple[Any, Any, list[Any]]:
        model = small_gpt2()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # An evaluation draws random numbers too.
        optimizer = emo_torch.EmoPilot(model.parameters(), lr=1e-2, max_courage=1.0)
        weight, seen = next(model.parameters()), []

        class Look(transformers.TrainerCallback):
            def on_prediction_step(self, *_: Any, **__: Any) -> None:
                seen.append((weight.detach().clone(), optimizer.param_groups[0]["train_mode"]))

        options = {"gradient_accumulation_steps": 2, "max_steps": 6, **options}
        trainer = trainer_of(way, tmp_path, model, optimizer, **options)
        trainer.add_callback(Look())
        trainer.train()
        optimizer.train()
        return optimizer, weight, seen

    plain, weight, unseen = run()
    optimizer, other, seen = run(eval_strategy="steps", eval_steps=3)
    assert not unseen
    assert seen
    assert not any(is_training for _, is_training in seen)
    # The last evaluation, after the last step, saw the average of that step.
    assert torch.equal(seen[-1][0], optimizer.state[other]["average"])
    assert not torch.equal(seen[-1][0], other)
    # Evaluations change nothing: the run ends as the one without them.
    assert torch.equal(weight, other)
    assert same_state(plain.state_dict(), optimizer.state_dict())
    assert float(optimizer.pilot.learning_rate) <= 1e-2


@pytest.mark.parametrize("way", WAYS)
def test_lora_adapters_train_likewise(way: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    base = transformers.LlamaForCausalLM(config)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    trainable = [param for param in model.parameters() if param.requires_grad]
    optimizer = Listening(trainable, lr=1e-2)
    trainer = trainer_of(way, tmp_path, model, optimizer, gradient_accumulation_steps=2)
    trainer.train()
    assert optimizer.heard == logged(trainer)
    moved = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
    assert moved == {name for name in before if "lora_" in name}


REPLICA = """\
import json, os, sys
import torch
from emo_torch._testing import Listening
from emo_torch.integrations.transformers_test import WAYS, logged, small_gpt2, trainer_of


def train(way, **options):
    model = small_gpt2()
    optimizer = Listening(model.parameters(), lr=1e-2)
    options = {"gradient_accumulation_steps": 2, "ddp_backend": "gloo", **options}
    trainer = trainer_of(way, folder, model, optimizer, **options)
    trainer.train()
    assert torch.distributed.get_world_size() == 2
    weights = [float(param.detach().double().sum()) for param in model.parameters()]
    return {"heard": optimizer.heard, "logged": logged(trainer), "weights": weights}


folder = sys.argv[1]
# Then the Trainer multiplies the loss of the model in place.
options = {"ddp_find_unused_parameters": False}
found = [train(way, **more) for more in ({}, options) for way in WAYS]
with open(f"{folder}/{torch.distributed.get_rank()}.json", "w") as file:
    json.dump(found, file)
torch.distributed.destroy_process_group()
# Threads of gloo may still run. The end of the interpreter was seen to abort beside them.
sys.stdout.flush()
os._exit(0)
"""


def test_two_processes_feel_one_loss_and_stay_equal(tmp_path: Path) -> None:
    script = tmp_path / "replica.py"
    script.write_text(REPLICA)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, str(script), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    by_process = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for first, second in zip(*by_process, strict=True):  # Twice the mixin, then the callback.
        assert first["heard"] == second["heard"]
        assert first["weights"] == second["weights"]
        # The Trainer logs in the first process alone.
        assert first["heard"] == pytest.approx(first["logged"], rel=1e-6)


SCHEDULES: dict[str, dict[str, Any]] = {
    "warmup_stable_decay": {"num_decay_steps": 3},
    "cosine_with_min_lr": {"min_lr": 1e-4},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
    "reduce_lr_on_plateau": {"patience": 1},
    "greedy": {"patience": 1, "factor": 0.5},
}
"""The arguments that some of Transformers' schedules need."""


@pytest.mark.parametrize("name", [kind.value for kind in transformers.SchedulerType])
def test_its_schedules_give_the_learning_rates_that_adamw_gets(name: str) -> None:
    rates = []
    classes: list[Any] = [emo_torch.EmoSens, torch.optim.AdamW]
    for cls in classes:
        weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        optimizer = cls([{"params": [weights[0]]}, {"params": [weights[1]], "lr": 0.3}], lr=0.1)
        schedule = transformers.get_scheduler(
            name,
            optimizer,
            num_warmup_steps=2,
            num_training_steps=8,
            scheduler_specific_kwargs=SCHEDULES.get(name),
        )
        seen = []
        for step in range(8):
            seen.append([float(group["lr"]) for group in optimizer.param_groups])
            loss = torch.stack([weight.sum() for weight in weights]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss.detach)
            schedule.step(*([1.0 + step] if name in ("reduce_lr_on_plateau", "greedy") else []))
        rates.append(seen)
    assert rates[0] == rates[1]
