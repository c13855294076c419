"""Checkpoints: a whole run in one file, written so that nothing can be lost, read without running code."""

import json
import math
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emo_shared.arrays import ARRAYS_FORMAT
from emo_shared.choices import check_path
from emo_shared.errors import CheckpointError
from emo_shared.files import check_digest, read_file, write_file
from emo_shared.header import CODES, Part
from emo_shared.version import __version__

CHECKPOINT_VERSION = 1
"""The version of a checkpoint's layout."""
FORMAT = "emo_torch checkpoint"

_KEYS = (bool, int, float, str, type(None))
# Python's own limits are not lower, so that every saved tree can be loaded from any depth of calls.
_MOST_LEVELS = 100
_MOST_BITS = 14_000


def save_checkpoint(path: str | Path, tree: Any) -> None:
    """Writes the state of a run to a file, completely or not at all.

    The file is written under a temporary name and renamed when it is on the disk, with a SHA-256 of its
    contents. A run that is killed at any moment leaves the old or the new checkpoint, and `load_checkpoint`
    refuses a file that was cut off or altered. It has the safetensors format: the tensors under their
    names, and the structure as JSON; no code.

    Args:
        path: the path of the file; usually the same path for the whole run.
        tree: tensors of any shapes, devices and dtypes, numbers, strings and None, in dicts, lists and
            tuples: the `state_dict()` of models, optimizers, schedulers and gradient scalers, the state of
            a generator of random numbers, a count of steps. A tensor that occurs twice is one tensor
            again after loading.

    Raises:
        TypeError: for anything else, by its name.
        ValueError: for tensors that are not dense, or not whole on this machine; for a tree of more than
            100 levels, an integer of more than 4,000 digits, and a tensor under a key without UTF-8; for
            more than 100 MB of keys, numbers and strings, which the format cannot hold: make a long list
            of numbers a tensor.
        OSError: where the file cannot be written.
            All of these are raised before an older file is replaced.

    Example:
        >>> import pathlib, tempfile
        >>> import torch
        >>> import emo_torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = emo_torch.EmoSens(model.parameters())
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.safetensors"
        >>> run = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}
        >>> emo_torch.save_checkpoint(path, run)
        >>> loaded = emo_torch.load_checkpoint(path)
        >>> _ = model.load_state_dict(loaded["model"])
        >>> optimizer.load_state_dict(loaded["optimizer"])
        >>> print(loaded["step"])
        7
    """
    check_path(path)
    tensors = _Tensors()
    text = json.dumps(_to_json(tree, "", tensors))
    metadata = {
        "format": FORMAT,
        "version": str(CHECKPOINT_VERSION),
        "release": __version__,
        "tree": text,
    }
    write_file(path, metadata, _parts(tensors.by_name))


def load_checkpoint(path: str | Path) -> Any:
    """Reads a file of `save_checkpoint`; no code in the file is run, and a damaged file is refused.

    Args:
        path: the path of the file.

    Returns:
        The tree as it was, to the last bit, with its tensors on the CPU: `load_state_dict` of models
        and optimizers brings them to where the parameters are.

    Raises:
        CheckpointError: for a file that was cut off or altered, that is no checkpoint of this package,
            or has another layout.
        OSError: if there is no file, or no permission to read it.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import emo_torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     emo_torch.save_checkpoint(f"{folder}/run", {"weight": torch.ones(2), "epoch": 3})
        ...     print(emo_torch.load_checkpoint(f"{folder}/run"))
        {'weight': tensor([1., 1.]), 'epoch': 3}
    """
    metadata, parts = read_file(path)
    check_layout(path, metadata)
    check_digest(path, metadata, parts.values())
    # Removed one by one, so that memory never holds a second copy of all tensors.
    tensors = {name: _to_tensor(parts.pop(name)) for name in list(parts)}
    return _from_json(json.loads(metadata["tree"]), tensors)


def check_layout(path: str | Path, metadata: Mapping[str, str]) -> None:
    """Raises a `CheckpointError` unless a file is a checkpoint of this package and layout."""
    kind, version = metadata.get("format"), metadata.get("version")
    if kind == ARRAYS_FORMAT:
        raise CheckpointError(f"{path} holds the arrays of an optimizer: read it with load_arrays")
    if kind != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of emo_torch; its format is {kind or 'unknown'}. To move a run "
            "between the packages, use to_arrays and from_arrays"
        )
    if version != str(CHECKPOINT_VERSION):
        raise CheckpointError(
            f"{path} has the layout {version}, written by emo_torch {metadata.get('release')}; this "
            f"release reads the layout {CHECKPOINT_VERSION}. Load it with that release, save_arrays of "
            "to_arrays(...) there, and from_arrays of load_arrays(...) here"
        )


class _Tensors:
    """The tensors of a tree by their names, each tensor once."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._kept: list[Tensor] = []  # Kept alive, so that no other tensor gets the same address.

    def add(self, tensor: Tensor, name: str) -> str:
        """Takes a tensor in, and returns the name that it has now, or had already."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        if hasattr(tensor, "full_tensor"):
            raise ValueError(
                f"{name!r} is a DTensor, and this process holds only a part of it. Save its "
                "full_tensor(), or save the run with torch.distributed.checkpoint"
            )
        if tensor.layout is not torch.strided or tensor.device.type == "meta" or dtype not in CODES:
            raise ValueError(
                f"A checkpoint holds dense tensors with data, of the dtypes {', '.join(CODES)}; {name!r} "
                f"has the dtype {dtype}, the layout {tensor.layout} and the device {tensor.device}"
            )
        self._kept.append(tensor)
        flags = (tensor.is_conj(), tensor.is_neg(), tensor.device)
        place = (tensor.data_ptr(), *tensor.shape, *tensor.stride(), dtype, *flags)
        identity = place if tensor.numel() else (id(tensor),)
        if identity not in self._names:
            unique = name
            while unique in self.by_name or unique == "__metadata__":  # "a/b" may be two ways to go.
                unique += "'"
            self._names[identity] = unique
            # A copy, since the file has no room for tensors that overlap.
            plain = tensor.detach().resolve_conj().resolve_neg().cpu()
            self.by_name[unique] = plain.clone(memory_format=torch.contiguous_format)
        return self._names[identity]


def _to_json(tree: Any, name: str, tensors: _Tensors, level: int = 0) -> Any:
    """Returns a tree in the types of JSON, with names in the place of tensors."""

    def inner(key: Any, value: Any) -> Any:
        return _to_json(value, f"{name}/{key}" if name else str(key), tensors, level + 1)

    if level > _MOST_LEVELS:
        raise ValueError(
            f"A checkpoint holds at most {_MOST_LEVELS} levels of dicts, lists and tuples; {name[:60]!r} "
            "... is deeper, or holds itself"
        )
    kind = type(tree)
    if kind is int and tree.bit_length() > _MOST_BITS:
        raise ValueError(
            f"{name!r} is an integer of {tree.bit_length()} bits, and a checkpoint holds {_MOST_BITS}: "
            "make it a string, with hex()"
        )
    if tree is None or kind in (bool, int, str):
        return tree
    if isinstance(tree, float):  # NumPy's float64, too.
        return float(tree) if math.isfinite(tree) else {"float": str(float(tree))}
    if isinstance(tree, Tensor):
        # In row-major order in the file; channels that come last in memory do so again.
        order = sorted(range(tree.ndim), key=tree.stride().__getitem__, reverse=True)
        is_moved = not tree.is_contiguous() and tree.permute(order).is_contiguous()
        return {"tensor": tensors.add(tree, name), **({"order": order} if is_moved else {})}
    if kind is torch.dtype:
        return {"dtype": str(tree).removeprefix("torch.")}
    if kind is list:
        return [inner(index, value) for index, value in enumerate(tree)]
    if kind in (tuple, torch.Size):
        return {"tuple": [inner(index, value) for index, value in enumerate(tree)]}
    if kind in (dict, OrderedDict, Counter):
        odd = [key for key in tree if not (isinstance(key, float) or type(key) in _KEYS)]
        if odd:
            raise TypeError(
                f"The keys of a checkpoint's dicts are numbers, strings and None; in {name!r} there is "
                f"{odd[0]!r}, of the type {type(odd[0]).__name__}"
            )
        pairs = [[_to_json(key, "", tensors), inner(key, value)] for key, value in tree.items()]
        if kind is dict:
            return {"dict": pairs}
        # A model's state knows the versions of its modules.
        beside = inner("_metadata", getattr(tree, "_metadata", None))
        return {"ordered_dict" if kind is OrderedDict else "counter": pairs, "metadata": beside}
    raise TypeError(
        "A checkpoint holds tensors, numbers, strings and None, in dicts, lists and tuples; "
        f"{name or 'the run'!r} is of the type {kind.__name__}. Save its `state_dict()` if it has one, or "
        "leave it out"
    )


def _from_json(entry: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Returns the tree that the JSON describes."""
    if isinstance(entry, list):
        return [_from_json(value, tensors) for value in entry]
    if not isinstance(entry, dict):
        return entry
    kind = next(iter(entry))
    value = entry[kind]
    if kind == "float":
        return float(value)
    if kind == "tensor":
        if value not in tensors:
            raise CheckpointError(
                f"The checkpoint lacks the tensor {value!r}: save_checkpoint did not write this file, or "
                "the file was changed"
            )
        return _in_order(tensors[value], entry["order"]) if "order" in entry else tensors[value]
    if kind == "dtype":
        return getattr(torch, value)
    if kind == "tuple":
        return tuple(_from_json(each, tensors) for each in value)
    pairs = [(_from_json(key, tensors), _from_json(each, tensors)) for key, each in value]
    if kind == "dict":
        return dict(pairs)
    if kind == "counter":
        return Counter(dict(pairs))
    ordered = OrderedDict(pairs)
    if entry["metadata"] is not None:
        ordered._metadata = _from_json(entry["metadata"], tensors)  # type: ignore[attr-defined]
    return ordered


def _in_order(tensor: Tensor, order: list[int]) -> Tensor:
    """Returns a tensor whose axes lie in memory in another order."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(back)


def _to_tensor(part: Part) -> Tensor:
    """Returns a part of a file as a tensor in memory of torch's own, which can be resized."""
    tensor = torch.empty(part.shape, dtype=getattr(torch, part.dtype), device="cpu")
    if tensor.numel():
        tensor.reshape(-1).view(torch.uint8).copy_(torch.from_numpy(part.data))
    return tensor


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[Part]:
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        yield Part(name, dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().data)
