"""Continues runs of the published files, and of pytorch_optimizer, in this package."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emo_shared.published import Published, read_published
from emo_shared.published_form import check_new
from emo_torch._members.by_name import MEMBERS
from emo_torch._state.bridge import from_arrays, to_arrays
from emo_torch._step.loss_optimizer import LossOptimizer


def load_published_state(optimizer: LossOptimizer, state_dict: Mapping[str, Any]) -> tuple[str, ...]:
    """Loads the state of a published optimizer, so that its run continues here.

    EmoNavi, EmoFact, EmoLynx, EmoSens, EmoAiry and EmoCats take states of v2.0. EmoNavi36, EmoFact36 and
    EmoLynx36 take states of v3.6.1, and of the classes EmoNavi, EmoFact and EmoLynx of pytorch_optimizer
    from 3.10 on. EmoSens3, EmoAiry3, EmoCats3, EmoTion and EmoVoid take states of v3.9.1.

    The options `lr`, `betas`, `eps`, `weight_decay` and `stopcoef` take the values of the state. In v3.9.1
    `lr` is the scope ('emoScope'), not the last pulse, which the published files write into `lr`.

    Args:
        optimizer: a new optimizer over the same parameters, in the same groups and in the same order.
        state_dict: the published `state_dict()`; it is not changed. A file of v3.6.1 has a `deque`, which
            `torch.load` refuses: docs/from_published.md says how to read such a file.

    Returns:
        One sentence for each part of the state that could not be carried over.

    Raises:
        TypeError: for anything but a mapping.
        ValueError: for a state of another optimizer or version, and for a part that is missing, has another
            shape, or is damaged; for an optimizer that has taken steps; all before anything is changed.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> state = {"exp_avg": torch.full((2,), 0.5), "ema": {"short": 1.0, "long": 2.0}}
        >>> group = {"params": [0], "lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
        >>> published = {"state": {0: state, "scalar_hist": [0.0]}, "param_groups": [group]}
        >>> optimizer = emo_torch.EmoCats([weight])
        >>> emo_torch.load_published_state(optimizer, published)
        ()
        >>> print(optimizer.state[weight]["exp_avg"], optimizer.emotion.long.item())
        tensor([0.5000, 0.5000]) 2.0

    Source: the files of EmoSens and EmoNavi by muooon, v2.0, v3.6.1 and v3.9.1, for the names of the state.
    """
    member = next((name for name, each in MEMBERS.items() if each.make is type(optimizer)), "")
    named = [
        (f"parameter {index}", param)
        for index, param in enumerate(
            param for group in optimizer.param_groups for param in group["params"]
        )
    ]
    own = to_arrays(optimizer, named)
    read = read_published(
        _plain(state_dict),
        member or type(optimizer).__name__,
        own,
        [name for name, _ in named],
        {name: _plain(param) for name, param in named},
        is_whole=len(optimizer.param_groups) == 1 and all(param.requires_grad for _, param in named),
    )
    _check_groups(optimizer, state_dict["param_groups"], read)
    check_new(own)
    from_arrays(read.arrays, optimizer, named)
    for group, options in zip(optimizer.param_groups, read.options, strict=True):
        _put_options(group, options)
    return (*read.notes, *_notes_on_options(optimizer, read))


def _plain(value: Any) -> Any:
    """Returns a value with NumPy arrays in the place of tensors; dtypes that NumPy lacks become float64."""
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided:
            raise ValueError("The state is damaged: a tensor in it has no values, or is sparse")
        tensor = value.detach().cpu()
        is_narrow = tensor.is_floating_point() and tensor.element_size() < 4
        return (tensor.float() if is_narrow else tensor).numpy()
    if isinstance(value, Mapping):
        return {key: _plain(nested) for key, nested in value.items()}
    return value


def _check_groups(optimizer: LossOptimizer, groups: Sequence[Mapping[str, Any]], read: Published) -> None:
    """Raises a `ValueError` for other groups, and for options out of their range."""
    ours = [len(group["params"]) for group in optimizer.param_groups]
    theirs = [len(group["params"]) for group in groups]
    if ours != theirs:
        raise ValueError(f"The state has groups of {theirs} parameters, and this optimizer has {ours}")
    for group, options in zip(optimizer.param_groups, read.options, strict=True):
        optimizer.check_options({**group, **{name: options[name] for name in options if name in group}})


def _put_options(group: dict[str, Any], options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name == "weight_decay_mode" or name not in group:
            continue
        if name == "lr" and isinstance(group["lr"], Tensor):
            with torch.no_grad():
                group["lr"].fill_(float(np.asarray(value).reshape(())))
        else:
            group[name] = float(value) if name == "lr" else value


def _notes_on_options(optimizer: LossOptimizer, read: Published) -> list[str]:
    """Returns notes on options that the file lacks, or that differ."""
    notes = []
    for group, options in zip(optimizer.param_groups, read.options, strict=True):
        mode = options.get("weight_decay_mode", group["weight_decay_mode"])
        if mode != group["weight_decay_mode"]:
            notes.append(
                f"The weight decay of the state is that of weight_decay_mode={mode!r}: pass this option."
            )
    if optimizer.param_groups[0].get("loss_unit") == "first":
        notes.append(
            "The state does not have the first loss: loss_unit='first' takes the next loss as the unit."
        )
    return list(dict.fromkeys(notes))
