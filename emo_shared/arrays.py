"""Named NumPy arrays in files, and the checks of the arrays of an optimizer."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emo_shared.errors import CheckpointError
from emo_shared.files import DIGEST, check_digest, read_file, write_file
from emo_shared.header import CODES, Part

Arrays = dict[str, np.ndarray[Any, Any]]

ARRAYS_VERSION = 1
"""The version of the names and shapes; both packages read and write it."""
MEMORY = ("emotion/", "divergence/", "pulse/", "pilot/", "norm/")
"""The first parts of the names of an optimizer's statistics of losses and norms."""
ARRAYS_FORMAT = "emo arrays"
"""The metadata `format` of a file of `save_arrays`."""


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Writes named arrays to a file in the safetensors format, which holds no code.

    The file is written under a temporary name and then renamed, so that the path always leads to the old
    file or to the complete new file. The file contains a digest, and `load_arrays` refuses a damaged file.
    `emo_torch.save_arrays` and `emo_optax.save_arrays` are this function.

    Args:
        path: the path of the file.
        arrays: the arrays by their names, of any shapes, and of the dtypes of the format: booleans,
            integers, floating-point numbers of at most 64 bits, complex64. `to_arrays` returns such arrays.

    Raises:
        TypeError: for anything but a mapping of arrays, a name that is not a string, and a masked array.
        ValueError: for a dtype that the format does not have, a name without UTF-8, and names and
            shapes that fill more than the format's limit of 100 MB.
        OSError: if the file cannot be written.
            All of these errors are raised before an older file is replaced.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from emo_shared.arrays import load_arrays, save_arrays
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> save_arrays(path, {"one": np.ones(1)})
        >>> print(load_arrays(path)["one"])
        [1.]
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"Named arrays are needed, in a dictionary, and this is {arrays!r}")
    whole: Arrays = {}
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"The name of an array must be a string, and is {name!r}: use {str(name)!r}")
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{name!r} is a masked array, and the file has no place for a mask: fill it")
        plain = np.asarray(array)
        whole[name] = np.ascontiguousarray(plain).reshape(plain.shape)
    write_file(path, {"format": ARRAYS_FORMAT}, _parts(whole))


def load_arrays(path: str | Path) -> Arrays:
    """Reads named arrays from a file in the safetensors format (see `save_arrays`).

    `emo_torch.load_arrays` and `emo_optax.load_arrays` are this function.

    Args:
        path: the path of the file; a file without a digest is read, too.

    Returns:
        The arrays by their names.

    Raises:
        CheckpointError: for a file that was cut off or altered.
        OSError: if there is no file, or if the file may not be read.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from emo_shared.arrays import load_arrays, save_arrays
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> save_arrays(path, {"two": np.full((2,), 2.0)})
        >>> print(load_arrays(path)["two"])
        [2. 2.]
    """
    metadata, parts = read_file(path)
    if DIGEST in metadata or metadata.get("format") == ARRAYS_FORMAT:
        check_digest(path, metadata, parts.values())
    return {name: to_numpy(part) for name, part in parts.items()}


def to_numpy(part: Part) -> np.ndarray[Any, Any]:
    """Returns a part of a file as an array, which shares its memory.

    Raises:
        CheckpointError: for bfloat16 and float8 where the package `ml_dtypes` is missing.
    """
    try:
        dtype = np.dtype(part.dtype)
    except TypeError:
        try:
            import ml_dtypes
        except ImportError as error:
            raise CheckpointError(
                f"{part.name!r} has the dtype {part.dtype}, which NumPy alone does not have: "
                "pip install ml_dtypes"
            ) from error
        dtype = np.dtype(getattr(ml_dtypes, part.dtype))
    array: np.ndarray[Any, Any] = part.data.view(dtype).reshape(part.shape)
    return array


def check_arrays(
    arrays: Mapping[str, np.ndarray[Any, Any]], expected: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Raises an error that names the first invalid array, before any array is used."""
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
        raise ValueError(f"The arrays belong to another optimizer: its rule is {rule!r}, not {ours!r}")
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
        if name.startswith(MEMORY):
            _check_memory(name, np.asarray(arrays[name]))
    extra = sorted(arrays.keys() - expected.keys())
    if extra:
        raise ValueError(f"The arrays hold names that this optimizer does not have: {', '.join(extra)}")


def _check_memory(name: str, array: np.ndarray[Any, Any]) -> None:
    """Raises a `ValueError` for statistics that no losses can give."""
    if not np.all(np.isfinite(array.astype(np.float64))):
        raise ValueError(f"The array {name!r} is damaged: it holds a value that is not finite")
    if array.dtype.kind in "iu" and np.any(array < 0):
        raise ValueError(f"The array {name!r} is damaged: it holds a count below 0")


def _parts(arrays: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[Part]:
    for name, array in arrays.items():
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)  # As in the file.
        yield Part(name, array.dtype.name, array.shape, _bytes_of(little))


def _bytes_of(array: np.ndarray[Any, Any]) -> Any:
    """Returns the bytes of an array; none for a dtype that `write_file` refuses by its name."""
    return array.reshape(-1).view(np.uint8).data if array.dtype.name in CODES else b""


def _kind(dtype: np.dtype[Any]) -> str:
    """Returns the kind of numbers of a dtype, independent of its width."""
    # NumPy itself does not know bfloat16 for a float.
    kind = "f" if dtype.name == "bfloat16" else dtype.kind
    kinds = {"f": "floating-point numbers", "i": "whole numbers", "u": "whole numbers", "b": "booleans"}
    return kinds.get(kind, str(dtype))


def in_dtype(array: np.ndarray[Any, Any], dtype: "np.dtype[Any]", name: str) -> np.ndarray[Any, Any]:
    """Returns an array in another dtype; raises a `ValueError` for a number that this dtype cannot hold."""
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        if (
            array.dtype.kind in "iu"
            and array.size
            and not (bounds.min <= int(array.min()) and int(array.max()) <= bounds.max)
        ):
            raise ValueError(f"The state is damaged: {name} has a count beyond {bounds.max}")
        return np.asarray(array, dtype)
    with np.errstate(over="ignore"):
        converted = np.asarray(array, dtype)
    if array.dtype.kind == "f" and array.dtype != dtype:
        is_lost = np.isfinite(array) & ~np.isfinite(converted.astype(np.float64))
        if is_lost.any():
            raise ValueError(f"The state is damaged: {name} has a number that {dtype} cannot hold")
    return converted
