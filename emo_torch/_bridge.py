"""The bridge to `emo_optax`: an optimizer's state as plain named arrays, in files and back."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emo_torch._emotional import LossOptimizer
from emo_torch._files import DIGEST, Part, check_digest, read_file, write_file

Arrays = dict[str, np.ndarray[Any, Any]]

ARRAYS_VERSION = 1
"""The version of the names and shapes; both packages read and write it."""
ARRAYS_FORMAT = "emo arrays"
"""What a file of `save_arrays` says that it is."""


def to_arrays(optimizer: LossOptimizer, named_params: Iterable[tuple[str, Tensor]]) -> Arrays:
    """Returns the state of a member of the family as named NumPy arrays that `emo_optax` reads, too.

    A parameter's moments are named after it, as in `exp_avg/layers.0.weight`. Narrow floats come out
    as float32, which NumPy has everywhere.

    Members of one rule exchange state on purpose, since it is the same: `EmoNavi` with `EmoSens`,
    `EmoFact` with `EmoAiry`, and `EmoLynx` with `EmoCats`.

    Args:
        optimizer: the optimizer.
        named_params: the names of its parameters, such as `model.named_parameters()`.

    Returns:
        The arrays: `version`, `rule`, `emotion/...` (or `divergence/...`), and `exp_avg/...`,
        `exp_avg_sq/...`, `exp_avg_norm/...`, `row/...`, `column/...`, `shadow/...`,
        `compensation/...` for each parameter that has them.

    Raises:
        ValueError: for an `Emotional`, whose inner optimizer has a state of its own kind; for a parameter
            without a name, for a name that two parameters have, and for shadows that were not all
            made.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = emo_torch.EmoCats(model.parameters())
        >>> arrays = emo_torch.to_arrays(optimizer, model.named_parameters())
        >>> print(arrays["exp_avg/weight"], arrays["emotion/felt"])
        [[0. 0.]] 0
    """
    arrays: Arrays = {
        "version": np.asarray(ARRAYS_VERSION, np.int32),
        "rule": np.frombuffer(optimizer.rule.encode(), np.uint8),
    }
    for name, tensor in optimizer.named_memory().items():
        arrays[name] = _to_array(tensor)
    if not any(group.get("use_shadow") for group in optimizer.param_groups):
        arrays.pop("emotion/shadow_exists", None)
        arrays.pop("emotion/shadow_ratio", None)
    divisor = optimizer.param_groups[0].get("weight_decay_divisor")
    if divisor is not None:
        arrays["weight_decay_divisor"] = np.asarray(divisor, arrays["emotion/scalar"].dtype)
    named = list(named_params)
    by_name = dict(named)
    for name, state in _named_states(optimizer, named).items():
        for key in (*optimizer.moment_names(by_name[name]), "shadow", "compensation"):
            if key in state:
                arrays[f"{key}/{name}"] = _to_array(state[key])
        made = state.get("shadow_exists")
        if made is not None and bool(made) != bool(arrays["emotion/shadow_exists"]):
            raise ValueError(
                f"The shadow of {name!r} was not made when the others' were, which emo_optax cannot hold"
            )
    return arrays


def from_arrays(
    arrays: Mapping[str, np.ndarray[Any, Any]],
    optimizer: LossOptimizer,
    named_params: Iterable[tuple[str, Tensor]],
) -> None:
    """Puts what named arrays hold into an optimizer.

    Members of one rule exchange state on purpose, since it is the same: `EmoNavi` with `EmoSens`,
    `EmoFact` with `EmoAiry`, and `EmoLynx` with `EmoCats`.

    Args:
        arrays: what `to_arrays` returned, here or in `emo_optax`.
        optimizer: an optimizer of the same rule, over the same parameters.
        named_params: the names of its parameters, such as `model.named_parameters()`.

    Raises:
        TypeError: for what is no dictionary of arrays.
        ValueError: for an unknown version, another rule, and arrays that are missing, too many,
            of another shape, of another kind (such as whole numbers for floats), or damaged, each by its
            name; for what `to_arrays` refuses; all before anything is changed.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = emo_torch.EmoCats(model.parameters())
        >>> arrays = emo_torch.to_arrays(optimizer, model.named_parameters())
        >>> arrays["exp_avg/weight"] = arrays["exp_avg/weight"] + 1.0
        >>> emo_torch.from_arrays(arrays, optimizer, model.named_parameters())
        >>> print(optimizer.state[model.weight]["exp_avg"])
        tensor([[1., 1.]])
    """
    named = list(named_params)
    check_arrays(arrays, to_arrays(optimizer, named))
    states = _named_states(optimizer, named)
    for name, tensor in optimizer.named_memory().items():
        if name in arrays:
            _put(tensor, arrays[name])
    if "weight_decay_divisor" in arrays:
        for group in optimizer.param_groups:
            group["weight_decay_divisor"] = float(arrays["weight_decay_divisor"])
    by_name = dict(named)
    for name, state in states.items():
        for key in (*optimizer.moment_names(by_name[name]), "shadow", "compensation"):
            if key in state:
                _put(state[key], arrays[f"{key}/{name}"])
        if "shadow_exists" in state:
            _put(state["shadow_exists"], arrays["emotion/shadow_exists"])
        optimizer.state[by_name[name]].update(state)


def check_arrays(
    arrays: Mapping[str, np.ndarray[Any, Any]], expected: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Raises an error that names the first thing wrong with arrays, before any is used."""
    if not isinstance(arrays, Mapping):
        raise TypeError(f"Named arrays are needed, as `load_arrays` returns them, and this is {arrays!r}")
    if "version" not in arrays or "rule" not in arrays:
        raise ValueError("These are not the arrays of an Emo optimizer: 'version' or 'rule' is missing")
    version = np.asarray(arrays["version"]).reshape(-1).tolist()
    if version != [ARRAYS_VERSION]:
        raise ValueError(f"Unknown version {version} of the arrays; this package reads {ARRAYS_VERSION}")
    written = np.asarray(arrays["rule"]).dtype
    if written != np.uint8:
        raise ValueError(f"The array 'rule' holds {written}, not the bytes of a name (uint8)")
    rule, ours = (
        np.asarray(each["rule"]).tobytes().decode(errors="replace") for each in (arrays, expected)
    )
    if rule != ours:
        raise ValueError(f"The arrays are those of another optimizer: its rule is {rule!r}, not {ours!r}")
    for name, array in expected.items():
        if name not in arrays:
            raise ValueError(f"The array {name!r} is missing")
        if name != "rule" and np.shape(arrays[name]) != array.shape:
            raise ValueError(
                f"The array {name!r} has the shape {np.shape(arrays[name])}, not {array.shape}"
            )
        dtype = np.asarray(arrays[name]).dtype
        if _kind(dtype) != _kind(array.dtype):
            raise ValueError(f"The array {name!r} holds {dtype}, not {_kind(array.dtype)}")
        if name.startswith(("emotion/", "divergence/")):
            _check_memory(name, np.asarray(arrays[name]))
    extra = sorted(arrays.keys() - expected.keys())
    if extra:
        raise ValueError(f"The arrays hold what this optimizer has no place for: {', '.join(extra)}")


def _check_memory(name: str, array: np.ndarray[Any, Any]) -> None:
    """Raises a `ValueError` for what no losses can have left."""
    if not np.all(np.isfinite(array.astype(np.float64))):
        raise ValueError(f"The array {name!r} is damaged: not finite, which a loss never makes it")
    if array.dtype.kind in "iu" and np.any(array < 0):
        raise ValueError(f"The array {name!r} is damaged: a count below 0")


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Writes named arrays to a file in the safetensors format, which holds no code.

    The file is written beside and moved into its place, and has a digest in it: whatever happens,
    there is the old file or the whole new one, and `load_arrays` refuses a damaged one.

    Args:
        path: where the file goes.
        arrays: the arrays, of any shapes and of NumPy's dtypes, such as `to_arrays` returns.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> import emo_torch
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> emo_torch.save_arrays(path, {"one": np.ones(1)})
        >>> print(emo_torch.load_arrays(path)["one"])
        [1.]
    """
    whole = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    write_file(path, {"format": ARRAYS_FORMAT}, _parts(whole))


def load_arrays(path: str | Path) -> Arrays:
    """Reads named arrays from a file in the safetensors format (see `save_arrays`).

    Args:
        path: where the file is; one that was written without a digest is read, too.

    Returns:
        The arrays by their names.

    Raises:
        CheckpointError: for a file that was cut off or altered.
        OSError: where there is no file, or none that may be read.
    """
    metadata, arrays = read_file(path, "np")
    if DIGEST in metadata or metadata.get("format") == ARRAYS_FORMAT:
        check_digest(path, metadata, _parts(arrays))
    return arrays


def _parts(arrays: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[Part]:
    for name, array in arrays.items():
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)  # As in the file.
        yield Part(name, array.dtype.name, array.shape, little.reshape(-1).view(np.uint8).data)


def _kind(dtype: np.dtype[Any]) -> str:
    """Returns what a dtype holds, however wide."""
    # NumPy itself does not know bfloat16 for a float.
    kind = "f" if dtype.name == "bfloat16" else dtype.kind
    kinds = {"f": "floating-point numbers", "i": "whole numbers", "u": "whole numbers", "b": "booleans"}
    return kinds.get(kind, str(dtype))


def _to_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu()
    is_narrow = tensor.is_floating_point() and tensor.element_size() < 4
    array: np.ndarray[Any, Any] = (tensor.float() if is_narrow else tensor.clone()).numpy()
    return array


def _put(tensor: Tensor, array: np.ndarray[Any, Any]) -> None:
    with torch.no_grad():
        # By way of what torch reads from NumPy whatever the file held, bfloat16 too.
        is_float, is_bool = tensor.is_floating_point(), tensor.dtype == torch.bool
        wide = np.float64 if is_float else np.bool_ if is_bool else np.int64
        tensor.copy_(torch.tensor(np.asarray(array, wide)))


def _named_states(
    optimizer: LossOptimizer, named_params: Iterable[tuple[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Returns each parameter's state by its name, newly made where there is none yet."""
    names: dict[Tensor, str] = {}
    owners: dict[str, Tensor] = {}
    for name, param in named_params:
        if owners.setdefault(name, param) is not param:
            raise ValueError(f"Two parameters have the name {name!r} in named_params")
        names[param] = name
    states = {}
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param not in names:
                raise ValueError(
                    f"A parameter of the shape {tuple(param.shape)} has no name in named_params"
                )
            states[names[param]] = optimizer.full_state(param, group)
    return states
