"""How many bytes an optimizer keeps for every parameter, counted after a step."""

import jax
import torch
from torch import Tensor, nn

from examples.yardstick.optimizers import Contender, OptaxOptimizer, TorchRun
from examples.yardstick.tasks import Transformer, add_adapters, loss_of, texts

WIDTH = 128
"""Wider than in the task, so that state kept once for all parameters has only a small share."""


def bytes_per_parameter(contender: Contender) -> dict[str, float]:
    """Returns the bytes of state for each trained parameter, float32.

    Args:
        contender: the optimizer.

    Returns:
        The bytes on a `transformer` (0.2 million parameters) and on `adapters` of rank 4 on its layers.
    """
    torch.manual_seed(0)
    networks = {
        "transformer": Transformer(texts().kinds, WIDTH),
        "adapters": add_adapters(Transformer(texts().kinds, WIDTH)),
    }
    return {name: _count(contender, network) for name, network in networks.items()}


def _count(contender: Contender, network: nn.Module) -> float:
    params = [param for param in network.parameters() if param.requires_grad]
    run = TorchRun(contender, params, contender.default, steps=10)
    text = texts().first[None, :33]
    loss = loss_of(network, (text[:, :-1], text[:, 1:]))
    loss.backward()
    run.step(loss.detach())
    return round(state_bytes(run.optimizer) / sum(param.numel() for param in params), 3)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Returns the bytes of all tensors that an optimizer keeps, also of the tensors in its groups."""
    if isinstance(optimizer, OptaxOptimizer):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer.inner_state))
    kept = [value for state in optimizer.state.values() for value in state.values()]
    kept += [value for group in optimizer.param_groups for value in group.values()]
    tensors = {id(value): value for value in kept if isinstance(value, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
