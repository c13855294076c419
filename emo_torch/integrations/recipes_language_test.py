"""The pages about trainers for language models, with the libraries themselves and models made in place."""

from pathlib import Path
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._testing import Listening, import_trainer, run_page

pytestmark = pytest.mark.filterwarnings("ignore")  # The advice of libraries.
WORDS = ["[PAD]", "[UNK]", "[EOS]", *(f"w{index}" for index in range(29))]


@pytest.fixture(autouse=True)
def _listening(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The optimizer of the pages writes down the losses that it felt."""
    monkeypatch.setattr(emo_torch, "EmoSens", Listening)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def small_tokenizer() -> Any:
    transformers, tokenizers = import_trainer("transformers"), import_trainer("tokenizers")
    words = tokenizers.models.WordLevel(
        {word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"
    )
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )


def small_gpt2() -> Any:
    transformers = import_trainer("transformers")
    shape = {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ids = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=len(WORDS), **shape, **no_dropout, **ids)
    )


def sentences(count: int = 16) -> list[str]:
    return [" ".join(f"w{(step * index) % 29}" for index in range(1, 8)) for step in range(1, count + 1)]


def logged(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trl_feels_the_losses_that_it_logs() -> None:
    import_trainer("trl")
    datasets = import_trainer("datasets")
    data = datasets.Dataset.from_dict({"text": sentences()})
    trainer = run_page("trl", model=small_gpt2(), tokenizer=small_tokenizer(), dataset=data)["trainer"]
    optimizer: Any = emo_torch.unwrap(trainer.optimizer)
    assert len(optimizer.heard) == 2
    assert optimizer.heard == logged(trainer)


def test_peft_makes_groups_with_one_emotion() -> None:
    peft = import_trainer("peft")
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(small_gpt2(), settings)
    ids = torch.arange(16).reshape(2, 8)

    def step(optimizer: Any) -> float:
        loss = model(ids, labels=ids).loss
        optimizer.watch(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    fa = run_page("peft", model=model)["optimizer"]
    before = {name: value.clone() for name, value in model.named_parameters()}
    first = step(fa)
    assert float(fa.emotion.long) == first
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_B" in name}
    for param in (param for name, param in model.named_parameters() if "lora_A" in name):
        param.requires_grad_(True)  # LoRA-FA has frozen them.
    plus = peft.optimizers.create_loraplus_optimizer(
        model, optimizer_cls=emo_torch.EmoSens, lr=1e-3, loraplus_lr_ratio=16.0
    )
    filled = [group for group in plus.param_groups if group["params"]]
    assert sorted(group["lr"] for group in filled) == [1e-3, 16e-3]
    assert len(plus.param_groups) == 4
    losses = [step(plus) for _ in range(2)]
    assert plus.heard == losses
    assert len({float(group["emotion_long"]) for group in plus.param_groups}) == 1


def test_sentence_transformers_feel_the_losses_that_it_logs() -> None:
    library = import_trainer("sentence_transformers")
    transformers, datasets = import_trainer("transformers"), import_trainer("datasets")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=len(WORDS), **shape, **no_dropout))
    bert.save_pretrained("bert")
    small_tokenizer().save_pretrained("bert")
    parts = import_trainer("sentence_transformers.sentence_transformer.modules")
    losses = import_trainer("sentence_transformers.sentence_transformer.losses")
    word = parts.Transformer("bert", max_seq_length=16)
    model = library.SentenceTransformer(modules=[word, parts.Pooling(8)], device="cpu")
    lines = sentences()
    data = datasets.Dataset.from_dict(
        {"sentence1": lines, "sentence2": lines[::-1], "score": [index / 16 for index in range(16)]}
    )
    loss = losses.CosineSimilarityLoss(model)
    trainer = run_page("sentence_transformers", model=model, dataset=data, loss=loss)["trainer"]
    optimizer: Any = emo_torch.unwrap(trainer.optimizer)
    assert len(optimizer.heard) == 2
    assert optimizer.heard == logged(trainer)
