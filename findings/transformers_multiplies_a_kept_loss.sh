#!/bin/sh
# transformers 5.24.0, torch 2.13.0, accelerate 1.15.0: in two processes the Trainer multiplies the loss of the model in place.
#
# A forward hook that keeps `output.loss` of the model, to log or to read it after the step, shares memory with the tensor on which the
# Trainer calls backward. With several processes and the labels counted over all of them (the default, average_tokens_across_devices),
# the Trainer multiplies this tensor by the number of processes in place. Whether the kept loss changes too depends on an option of
# DistributedDataParallel: with ddp_find_unused_parameters=True its graph copies the outputs, with False it does not. The Trainer
# chooses True for most models by itself, and False with gradient checkpointing.
# Guess before the first run of this script: 1 with True and 2 with False, because a training with False had read a doubled loss.
# Seen: "ddp_find_unused_parameters=True: kept loss is 1 times the loss of the model", and 2 times with False.
# The remedy: keep output.loss.detach().clone().
set -eu

PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"$PYTHON" -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check \
    "torch==2.13.0" "transformers==5.24.0" "accelerate==1.15.0" "numpy==2.4.6"
cat > seen.py <<'CODE'
import os
import sys

import torch
import transformers

transformers.logging.set_verbosity_error()


def ratio(find_unused):
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **tokens, **dropouts))
    kept = []

    def keep(module, args, output):
        kept.append((output.loss.detach(), output.loss.item()))

    model.register_forward_hook(keep)
    row = {"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}
    options = transformers.TrainingArguments(
        output_dir="run",
        max_steps=1,
        per_device_train_batch_size=1,
        use_cpu=True,
        ddp_backend="gloo",
        ddp_find_unused_parameters=find_unused,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
    )
    transformers.Trainer(model, options, train_dataset=[row] * 4).train()
    later, then = kept[0]
    return round(later.item() / then, 3)


found = {find_unused: ratio(find_unused) for find_unused in (True, False)}
if torch.distributed.get_rank() == 0:
    with open("seen.txt", "w") as file:
        for find_unused, factor in found.items():
            print(f"ddp_find_unused_parameters={find_unused}: kept loss is {factor:g} times the loss of the model", file=file)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)
CODE
env/bin/python -m torch.distributed.run --standalone --nproc_per_node 2 seen.py > log.txt 2>&1 || { cat log.txt; exit 1; }
cat seen.txt
cat > wanted.txt <<'TEXT'
ddp_find_unused_parameters=True: kept loss is 1 times the loss of the model
ddp_find_unused_parameters=False: kept loss is 2 times the loss of the model
TEXT
diff wanted.txt seen.txt
