"""Both packages make the same of losses and validation losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import emo_optax
import emo_torch


@pytest.mark.parametrize("length", [None, 300, 150_000])
@pytest.mark.parametrize("seed", range(2))
def test_both_remember_the_same(length: int | None, seed: int) -> None:
    random = np.random.default_rng(seed)
    losses = np.exp(0.4 * random.normal(size=400)).astype(np.float32)
    losses[::23], losses[5::41], losses[7::53] = np.nan, -1.0, 0.0
    # Falls for so long that a suppression ends, and rises before and behind.
    val_losses = np.concatenate([np.arange(1.0, 7.0), np.linspace(6.0, 1.0, 260), np.arange(1.0, 135.0)])
    val_losses = val_losses.astype(np.float32)
    val_losses[3::97] = np.inf
    update = jax.jit(lambda *args: emo_optax.update_divergence(*args, ref_max_steps=length))
    ours, theirs = emo_optax.init_divergence(jnp.float32), emo_torch.init_divergence(torch.float32)
    seen = set()
    for loss, val_loss in zip(losses, val_losses, strict=True):
        ours = update(ours, loss, val_loss)
        theirs = emo_torch.update_divergence(
            theirs, torch.tensor(loss), torch.tensor(val_loss), ref_max_steps=length
        )
        for one, other in zip(ours, theirs, strict=True):
            assert one == other.numpy()
        share = emo_optax.injection_strength(ours, 0.5, jnp.float32)
        assert share == emo_torch.injection_strength(theirs, 0.5, torch.float32).numpy()
        seen |= {int(ours.level), "suppressed" if ours.suppressed else "free"}
    assert seen == {0, 1, 2, 3, "suppressed", "free"}
