"""The optimizers under their names in the registry of timm, for `create_optimizer_v2` and `--opt`."""

import inspect
from typing import Any

from emo_torch._members.by_name import MEMBERS


def register_optimizers(registry: Any = None) -> list[str]:
    """Adds every optimizer of the family to a registry of timm.

    timm splits names at underscores, so the names have none: "emosens" stands for `EmoSens`. An option
    that timm passes to every optimizer (`eps`, `betas`) reaches the optimizers that have this option.
    timm's default for `weight_decay` is 0.

    Args:
        registry: an `OptimizerRegistry` of timm; by default the registry of `create_optimizer_v2`.

    Returns:
        The names that were added. A name that the registry has already is left as it is.

    Example:
        >>> import emo_torch.integrations.timm as emo_timm  # doctest: +SKIP
        >>> emo_timm.register_optimizers()  # doctest: +SKIP
        >>> optimizer = timm.optim.create_optimizer_v2(model, opt="emosens", lr=1e-3)  # doctest: +SKIP

    Source:
        https://github.com/huggingface/pytorch-image-models/blob/main/timm/optim/_optim_factory.py
    """
    from timm.optim import OptimInfo
    from timm.optim._optim_factory import default_registry

    registry = default_registry if registry is None else registry
    known = set(registry.list_optimizers())
    added = []
    for member in MEMBERS.values():
        name = member.name.replace("_", "")
        options = inspect.signature(member.make).parameters
        if name not in known:
            registry.register(
                OptimInfo(
                    name=name,
                    opt_class=member.make,
                    description=f"{member.make.__name__} of emo_torch, which reads the loss of every step",
                    has_eps="eps" in options,
                    has_betas="betas" in options,
                )
            )
            added.append(name)
    return added
