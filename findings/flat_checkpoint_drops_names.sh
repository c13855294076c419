#!/bin/sh
# torch 2.13.0: with StateDictOptions(flatten_optimizer_state_dict=True), a distributed checkpoint contains entries of an
# optimizer's state that loading drops without a message. The nested layout keeps them.
#
# `register_state_dict_post_hook` may add an entry to the state of each parameter: PyTorch's documented way to save more than
# `optimizer.state` has. `get_optimizer_state_dict` returns the entry in both layouts, so it is in the file. Before the optimizer
# gets a flat state, PyTorch makes it nested again, and takes only the names that `optimizer.state` of the new optimizer has at
# this moment. The entry of the hook is not among them. So a hook that reads the entry back at loading finds it in one layout
# and not in the other.
# Guess: both layouts give the optimizer every entry that was saved, or an error.
# Seen: "nested: saved momentum_buffer note, loaded momentum_buffer note", "flat: saved momentum_buffer note, loaded
# momentum_buffer", and no warning. The guess was wrong.
set -eu

PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"$PYTHON" -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > seen.py <<'CODE'
import warnings

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

warnings.simplefilter("error", UserWarning)


def make():
    """Returns a model that was trained for one step, its optimizer, and the names that loading gives it."""
    model, loaded = torch.nn.Linear(3, 2), set()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def add(_, state_dict):
        state = {key: {**own, "note": torch.full((), 7.0)} for key, own in state_dict["state"].items()}
        return {**state_dict, "state": state}

    def look(_, state_dict):
        loaded.update(name for own in state_dict["state"].values() for name in own)

    optimizer.register_state_dict_post_hook(add)
    optimizer.register_load_state_dict_pre_hook(look)
    model(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()
    return model, optimizer, loaded


for layout in ("nested", "flat"):
    options = StateDictOptions(flatten_optimizer_state_dict=layout == "flat")
    model, optimizer, _ = make()
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    names = ("momentum_buffer", "note")
    text = " ".join(saved) if layout == "flat" else " ".join(saved["state"]["weight"])
    model, optimizer, loaded = make()
    set_optimizer_state_dict(model, optimizer, saved, options=options)
    found = " ".join(name for name in names if name in text)
    print(f"{layout}: saved {found}, loaded {' '.join(sorted(loaded))}")
CODE
env/bin/python seen.py > output.txt
cat output.txt
test "$(cat output.txt)" = "nested: saved momentum_buffer note, loaded momentum_buffer note
flat: saved momentum_buffer note, loaded momentum_buffer"
