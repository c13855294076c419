"""Checkpoints: a whole run in one file, written so that nothing can be lost, read without running code."""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emo_shared.arrays import ARRAYS_FORMAT, to_numpy
from emo_shared.choices import check_path
from emo_shared.errors import CheckpointError
from emo_shared.files import check_digest, read_file, write_file
from emo_shared.header import CODES, Part
from emo_shared.version import __version__

CHECKPOINT_VERSION = 2
"""The version of a checkpoint's layout."""
FORMAT = "emo_optax checkpoint"

_PLAIN = tuple(dtype for dtype in CODES if not dtype.startswith("float8"))
"""The dtypes that the file and NumPy both know; other dtypes are saved byte by byte."""
_NUMBERS: dict[type, Any] = {bool: np.bool_, int: np.int64, float: np.float64}
"""Python's own numbers, and the dtypes in which they are saved."""


def save_checkpoint(path: str | Path, tree: Any) -> None:
    """Writes the state of a run to a file, completely or not at all.

    The file is written under a temporary name and renamed when it is on the disk, with a SHA-256 of its
    contents. A run that is killed at any moment leaves the old or the new checkpoint, and `load_checkpoint`
    refuses a file that was cut off or altered. It has the safetensors format: plain arrays under their
    names in the tree; no code.

    Args:
        path: the path of the file; usually the same path for the whole run.
        tree: any tree of arrays and numbers, of any shapes and dtypes: parameters, the optimizer's
            state, keys of random numbers, a count of steps.

    Raises:
        TypeError: for a leaf that is no array and no number, a traced one, and a masked array, by its name.
        ValueError: for two leaves of one name, a name without UTF-8, and arrays that are not whole on this
            machine; for integers above 64 bits; for more than 100 MB of names and dtypes, which the format
            cannot hold.
        OSError: where the file cannot be written.
            All of these are raised before an older file is replaced.

    Example:
        >>> import pathlib, tempfile
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> params = {"weight": jnp.ones(2)}
        >>> state = emo_optax.emo_sens().init(params)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.safetensors"
        >>> run = {"params": params, "state": state, "step": 7}
        >>> emo_optax.save_checkpoint(path, run)
        >>> loaded = emo_optax.load_checkpoint(path, like=run)
        >>> print(loaded["params"]["weight"], loaded["step"])
        [1. 1.] 7
    """
    check_path(path)
    arrays, dtypes = {}, {}
    for name, leaf in _named_leaves(tree).items():
        dtypes[name] = _dtype_name(name, leaf)
        arrays[name] = _to_array(name, leaf)
    metadata = {
        "format": FORMAT,
        "version": str(CHECKPOINT_VERSION),
        "release": __version__,
        "dtypes": json.dumps(dtypes),
        "states": json.dumps(_states_in(tree)),
    }
    write_file(path, metadata, _parts(arrays))


def load_checkpoint(path: str | Path, like: Any) -> Any:
    """Reads a file of `save_checkpoint`; no code in the file is run, and a damaged file is refused.

    Args:
        path: the path of the file.
        like: a tree of the same structure, shapes and dtypes, such as a run that has just begun, or
            the result of `jax.eval_shape` for one.

    Returns:
        The tree as it was, to the last bit, in the structure of `like` and on its devices.

    Raises:
        CheckpointError: for a file that was cut off or altered, that is no checkpoint of this package,
            or has another layout; for leaves that are missing, too many, or of another shape or dtype
            than in `like`, by their names.
        TypeError: for a leaf of `like` that is no array and no number.
        OSError: if there is no file, or no permission to read it.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> run = {"weight": jnp.ones(2), "epoch": 3}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     emo_optax.save_checkpoint(f"{folder}/run", run)
        ...     print(emo_optax.load_checkpoint(f"{folder}/run", like=run)["epoch"])
        3
    """
    metadata, parts = read_file(path)
    check_layout(path, metadata)
    check_digest(path, metadata, parts.values())
    arrays = {name: to_numpy(part) for name, part in parts.items()}
    dtypes = json.loads(metadata["dtypes"])
    leaves = _named_leaves(like)
    for name, leaf in leaves.items():
        if name not in arrays:
            raise CheckpointError(f"{path} lacks {name!r}, which `like` has. {_REMEDY}")
        dtype, shape = _dtype_name(name, leaf), _saved_shape(leaf)
        if dtypes[name] != dtype:
            raise CheckpointError(f"{name!r} is {dtypes[name]} in {path}, and {dtype} in `like`. {_REMEDY}")
        if arrays[name].shape != shape:
            raise CheckpointError(
                f"{name!r} has the shape {arrays[name].shape} in {path}, and {shape} in `like`. {_REMEDY}"
            )
    extra = sorted(arrays.keys() - leaves.keys())
    if extra:
        raise CheckpointError(f"{path} holds leaves that `like` lacks: {', '.join(extra)}. {_REMEDY}")
    _check_states(path, metadata, like)
    return jax.tree.unflatten(
        jax.tree.structure(like), [_from_array(arrays[name], leaf) for name, leaf in leaves.items()]
    )


_REMEDY = (
    "Nothing was loaded. Make the run as it was when it was saved (the same model, optimizer and options), "
    "and load the file with that run as `like`. To use the state in another optimizer, load it first, then "
    "call from_arrays(to_arrays(old_state), new_state)"
)


def check_layout(path: str | Path, metadata: Mapping[str, str]) -> None:
    """Raises a `CheckpointError` unless a file is a checkpoint of this package and layout."""
    kind, version = metadata.get("format"), metadata.get("version")
    if kind == ARRAYS_FORMAT:
        raise CheckpointError(f"{path} holds the arrays of an optimizer: read it with load_arrays")
    if kind != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of emo_optax; its format is {kind or 'unknown'}. To move a run "
            "between the packages, use to_arrays and from_arrays"
        )
    if version != str(CHECKPOINT_VERSION):
        raise CheckpointError(
            f"{path} has the layout {version}, written by emo_optax {metadata.get('release')}; this "
            f"release reads the layout {CHECKPOINT_VERSION}. Load it with that release, save_arrays of "
            "to_arrays(...) there, and from_arrays of load_arrays(...) here"
        )


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, in the tree's order."""
    leaves: dict[str, Any] = {}
    try:
        paths = jax.tree_util.tree_leaves_with_path(tree)
    except (RecursionError, SystemError) as error:  # JAX's own code turns the first one into the second.
        raise ValueError("The tree has too many levels for JAX, or holds itself") from error
    for path, leaf in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in leaves or name == "__metadata__":
            raise ValueError(
                f"Two leaves have the name {name!r} in the file, or the format reserves this name: rename "
                "one leaf"
            )
        leaves[name] = leaf
    return leaves


def _states_in(tree: Any) -> list[str]:
    """Returns the names of the classes of named tuples in a tree, in the tree's order.

    The states of optimizers are named tuples. `optax.EmptyState` and others without fields hold nothing.
    """
    found: list[str] = []

    def look(node: Any) -> bool:
        kind = type(node)
        if issubclass(kind, tuple) and getattr(kind, "_fields", None):
            found.append(kind.__name__)
        return False

    jax.tree.leaves(tree, is_leaf=look)
    return found


def _check_states(path: str | Path, metadata: Mapping[str, str], like: Any) -> None:
    """Raises a `CheckpointError` for states of other classes, whose leaves may have the same names."""
    if "states" not in metadata:  # The file is of an earlier release.
        return
    saved, wanted = json.loads(metadata["states"]), _states_in(like)
    for has, needs in itertools.zip_longest(saved, wanted, fillvalue="none"):
        if has != needs:
            raise CheckpointError(
                f"{path} holds an optimizer state of the class {has}, and `like` has {needs} in this "
                f"place. {_REMEDY}"
            )


def _is_key(leaf: Any) -> bool:
    """Returns whether a leaf is made of keys of random numbers (`jax.random.key`)."""
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _key_impl(leaf: Any) -> Any:
    """Returns which generator keys are for, also where `leaf` is only their shape."""
    found: list[Any] = []
    jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), leaf)
    return found[0]


def _is_of_numbers(dtype: np.dtype[Any]) -> bool:
    return dtype.kind not in "OSUMm" and dtype.fields is None


def _dtype_name(name: str, leaf: Any) -> str:
    """Returns the name of the dtype of a leaf, or raises an error for a leaf that cannot be saved."""
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(f"{name!r} is traced: save and load checkpoints outside of jit")
    if type(leaf) in _NUMBERS:
        return f"Python's {type(leaf).__name__}"
    is_array = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic)
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(f"{name!r} is a masked array, and a checkpoint has no place for a mask: fill it")
    if not is_array or not (_is_key(leaf) or _is_of_numbers(leaf.dtype)):
        raise TypeError(
            f"A checkpoint holds arrays and numbers; {name or 'the run'!r} is of the type "
            f"{type(leaf).__name__}. Leave it out, or save its contents as arrays and numbers"
        )
    return str(leaf.dtype)


def _to_array(name: str, leaf: Any) -> np.ndarray[Any, Any]:
    """Returns a leaf as the array that is saved."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(f"{name!r} is a jax.ShapeDtypeStruct without data: save the array itself")
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise ValueError(
            f"{name!r} is sharded over several machines, and this machine holds only a part. Replicate the "
            "array, or save the run with Orbax"
        )
    if type(leaf) in _NUMBERS:
        try:
            return np.asarray(leaf, _NUMBERS[type(leaf)])
        except OverflowError as error:
            raise ValueError(
                f"{name!r} is an integer of {leaf.bit_length()} bits; a checkpoint holds integers from "
                "-2^63 to 2^63 - 1"
            ) from error
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    whole = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.name in _PLAIN:
        return whole.astype(whole.dtype.newbyteorder("<"), copy=False)  # As in the file.
    return whole.reshape(*whole.shape, 1).view(np.uint8)


def _saved_shape(leaf: Any) -> tuple[int, ...]:
    """Returns the shape of the array that a leaf is saved as."""
    if type(leaf) in _NUMBERS:
        return ()
    if _is_key(leaf):
        return tuple(jax.eval_shape(jax.random.key_data, leaf).shape)
    own = () if leaf.dtype.name in _PLAIN else (leaf.dtype.itemsize,)
    return (*leaf.shape, *own)


def _from_array(array: np.ndarray[Any, Any], leaf: Any) -> Any:
    """Returns a saved array with the type of `leaf`, on its devices."""
    if type(leaf) in _NUMBERS:
        return type(leaf)(array)
    if _is_key(leaf):
        own: Any = jax.random.wrap_key_data(jnp.array(array), impl=_key_impl(leaf))
    else:
        is_plain = leaf.dtype.name in _PLAIN
        own = (
            array.astype(leaf.dtype, copy=False) if is_plain else array.view(leaf.dtype).reshape(leaf.shape)
        )
    if isinstance(leaf, np.generic):
        return own[()]
    if isinstance(leaf, np.ndarray):
        return own
    is_placed = leaf.sharding is not None and getattr(leaf, "committed", True)
    # In new buffers, so that they can be donated to a step.
    if getattr(leaf, "weak_type", False):
        own = _weak(own)
    return jax.device_put(own, leaf.sharding if is_placed else None, may_alias=False)


def _weak(array: np.ndarray[Any, Any]) -> Any:
    """Returns an array of the weak type of Python's numbers, which does not widen other arrays."""
    blank = jnp.full(array.shape, array.dtype.type(0).item())
    return blank.at[...].set(array) if blank.dtype == array.dtype else array


def _parts(arrays: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[Part]:
    for name, array in arrays.items():
        yield Part(name, array.dtype.name, array.shape, array.reshape(-1).view(np.uint8).data)
