"""What importing the package does to the rest of the world: nothing."""

import subprocess
import sys

import emo_torch

ALONE = """
import sys
for name in ("jax", "jaxlib", "optax", "flax", "emo_optax"):
    sys.modules[name] = None
import torch
backward, step = torch.Tensor.backward, torch.optim.Optimizer.step
threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
attributes = set(dir(torch.Tensor)), set(dir(torch.optim.Optimizer))
rng = torch.get_rng_state()
import emo_torch
weight = torch.nn.Parameter(torch.ones(3))
optimizer = emo_torch.EmoSens([weight])
weight.sum().backward()
optimizer.step(loss=1.0)
assert torch.Tensor.backward is backward
assert torch.optim.Optimizer.step is step
assert (set(dir(torch.Tensor)), set(dir(torch.optim.Optimizer))) == attributes
assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)
assert torch.equal(torch.get_rng_state(), rng)
assert not torch.cuda.is_initialized()
plain = torch.optim.SGD([weight], lr=0.1)
assert not hasattr(plain, "emotion")
plain.step()
"""


def test_it_needs_no_other_framework_patches_nothing_and_says_nothing() -> None:
    command = [sys.executable, "-W", "error", "-c", ALONE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_what_it_offers_says_how_to_use_it() -> None:
    public = [name for name in vars(emo_torch) if not name.startswith("_")]
    assert {"EmoSens", "EmoAiry", "EmoCats", "LossMissingError", "feel"} <= set(public)
    assert all(getattr(emo_torch, name).__doc__ for name in public)
