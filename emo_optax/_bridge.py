"""The bridge to `emo_torch`: an optimizer's state as plain named arrays, in files and back."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_optax._divergence import DivergenceState
from emo_optax._emotion import EmotionState
from emo_optax._files import DIGEST, Part, check_digest, read_file, write_file
from emo_optax._ref_adamw_mini_schedule_free import RefMomentsState
from emo_optax._rounding import RoundStochasticallyState, RoundWithKahanState, is_narrow
from emo_optax._rules.adam import ScaleByUncorrectedAdamState
from emo_optax._rules.factors import ScaleByFactorsState
from emo_optax._rules.lion import ScaleByLionState
from emo_optax._rules.signs import ScaleByMomentumState
from emo_optax._shadow_system import BlendWithShadowState
from emo_optax._switch import StepFirstState, SwitchByEmotionState
from emo_optax._weight_decay import AddWeightDecayState

Arrays = dict[str, np.ndarray[Any, Any]]

ARRAYS_VERSION = 1
"""The version of the names and shapes; both packages read and write it."""
ARRAYS_FORMAT = "emo arrays"
"""What a file of `save_arrays` says that it is."""

_TREES: dict[type, dict[str, str]] = {
    ScaleByUncorrectedAdamState: {"mu": "exp_avg", "nu": "exp_avg_sq"},
    ScaleByLionState: {"mu": "exp_avg"},
    ScaleByMomentumState: {"mu": "exp_avg"},
    ScaleByFactorsState: {"row": "row", "column": "column"},
    RefMomentsState: {"mu": "exp_avg", "nu": "exp_avg_sq", "norm": "exp_avg_norm"},
    RoundWithKahanState: {"compensation": "compensation"},
}
_RULES: dict[type, str] = {
    # In this order: switches and first steps hold the others, and factored moments Adam's.
    SwitchByEmotionState: "adam_factors_or_lion",
    StepFirstState: "factored_moments_after_signs",
    ScaleByMomentumState: "cautious_sign_or_softsign",
    ScaleByFactorsState: "factored_moments",
    ScaleByUncorrectedAdamState: "uncorrected_adam",
    ScaleByLionState: "lion",
    RefMomentsState: "ref_adamw_mini_schedule_free",
}
_OF_VECTORS = {"row": "exp_avg", "column": "exp_avg_sq"}
"""The names of what the factored rule keeps of a parameter of 0 or 1 dimensions."""
_SWITCHED = ("navi_", "fact_", "lynx_")
"""What the names of moments begin with, for each rule of EmoClan."""
_OURS = (
    *(EmotionState, DivergenceState, BlendWithShadowState, AddWeightDecayState, SwitchByEmotionState),
    *_TREES,
)


def to_arrays(state: optax.OptState) -> Arrays:
    """Returns the state of a member of the family as named NumPy arrays that `emo_torch` reads, too.

    A parameter's moments are named after its path in the tree, its parts joined by dots, as in
    `exp_avg/layers.0.weight`. Narrow floats come out as float32, which NumPy has everywhere.

    Members of one rule exchange state on purpose, since it is the same: `emo_navi` with `emo_sens`,
    `emo_fact` with `emo_airy`, and `emo_lynx` with `emo_cats`.

    Args:
        state: the state, however deeply wrapped; not traced.

    Returns:
        The arrays: `version`, `rule`, `emotion/...` (or `divergence/...`), and `exp_avg/...`,
        `exp_avg_sq/...`, `exp_avg_norm/...`, `row/...`, `column/...`, `shadow/...`,
        `compensation/...` for each parameter that has them.

    Raises:
        ValueError: if the state is not one of a member of the family, and if two of its arrays have
            one name: two parameters whose paths read the same, or the states of two members.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> state = emo_optax.emo_cats().init({"weight": jnp.ones(2)})
        >>> arrays = emo_optax.to_arrays(state)
        >>> print(arrays["exp_avg/weight"], arrays["emotion/felt"])
        [0. 0.] 0
    """
    arrays: Arrays = {
        "version": np.asarray(ARRAYS_VERSION, np.int32),
        "rule": np.frombuffer(_rule(state).encode(), np.uint8),
    }

    def keep(name: str, leaf: jax.Array) -> jax.Array:
        array = np.asarray(leaf)
        if name in arrays:
            raise ValueError(
                f"Two arrays have the name {name!r}: two parameters whose paths read the same with dots, "
                "or the states of two members, each of which needs a call of its own"
            )
        is_narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
        arrays[name] = array.astype(np.float32) if is_narrow else array
        return leaf

    _exchange(state, keep)
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray[Any, Any]], state: optax.OptState) -> optax.OptState:
    """Returns a state with what named arrays hold in the place of what it holds.

    Members of one rule exchange state on purpose, since it is the same: `emo_navi` with `emo_sens`,
    `emo_fact` with `emo_airy`, and `emo_lynx` with `emo_cats`.

    Args:
        arrays: what `to_arrays` returned, here or in `emo_torch`.
        state: a state of the same rule and parameters, as `init` makes it.

    Returns:
        The new state; schedules go on at the step that the arrays were taken at, also those in
        `optax.inject_hyperparams`. A stateful schedule of your own stays as `state` has it.

    Raises:
        TypeError: for what is no dictionary of arrays.
        ValueError: for an unknown version, another rule, and arrays that are missing, too many,
            of another shape, of another kind (such as whole numbers for floats), or damaged, each by its
            name.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> state = emo_optax.emo_cats().init({"weight": jnp.ones(2)})
        >>> arrays = emo_optax.to_arrays(state)
        >>> arrays["exp_avg/weight"] = arrays["exp_avg/weight"] + 1.0
        >>> print(emo_optax.to_arrays(emo_optax.from_arrays(arrays, state))["exp_avg/weight"])
        [1. 1.]
    """
    check_arrays(arrays, to_arrays(state))
    counts = ("divergence/steps", "emotion/felt", "emotion/held")
    steps = sum(int(arrays[name]) for name in counts if name in arrays)

    def put(name: str, leaf: jax.Array) -> jax.Array:
        return jnp.array(np.asarray(arrays[name], leaf.dtype))

    return _go_on(_exchange(state, put), steps)


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
        >>> import emo_optax
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> emo_optax.save_arrays(path, {"one": np.ones(1)})
        >>> print(emo_optax.load_arrays(path)["one"])
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


def _go_on(state: optax.OptState, steps: int) -> optax.OptState:
    """Returns a state whose schedules, and random numbers, have taken so many steps."""
    # What a schedule inside `optax.inject_hyperparams` counts with: optax does not export the type.
    wrapped = type(optax.schedules.WrappedSchedule(lambda count: count).init())
    injected = (optax.InjectStatefulHyperparamsState, optax.InjectHyperparamsState)
    counting = (optax.ScaleByScheduleState, wrapped)

    def visit(node: Any) -> Any:
        if isinstance(node, counting):
            return node._replace(count=jnp.array(steps, jnp.int32))
        if isinstance(node, RoundStochasticallyState):
            return RoundStochasticallyState(jnp.array(steps, jnp.int32))
        if isinstance(node, AddWeightDecayState) and isinstance(node.steps, jax.Array):
            return node._replace(steps=jnp.array(steps, jnp.int32))
        if isinstance(node, injected):
            fields = {name: _go_on(field, steps) for name, field in node._asdict().items()}
            return node._replace(**{**fields, "count": jnp.array(steps, jnp.int32)})
        return node

    kinds = (*counting, RoundStochasticallyState, AddWeightDecayState, *injected)
    return jax.tree.map(visit, state, is_leaf=lambda node: isinstance(node, kinds))


def _kind(dtype: np.dtype[Any]) -> str:
    """Returns what a dtype holds, however wide."""
    # NumPy itself does not know bfloat16 for a float.
    kind = "f" if dtype.name == "bfloat16" else dtype.kind
    kinds = {"f": "floating-point numbers", "i": "whole numbers", "u": "whole numbers", "b": "booleans"}
    return kinds.get(kind, str(dtype))


def _rule(state: optax.OptState) -> str:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, tuple(_RULES)))
    kinds = {type(node) for node in nodes}
    for kind, rule in _RULES.items():
        if kind in kinds:
            return rule
    raise ValueError("This is not the state of a member of the family: none of its rules is in it")


def _exchange(
    state: optax.OptState, swap: Callable[[str, jax.Array], jax.Array], prefix: str = ""
) -> optax.OptState:
    """Calls `swap` with the name and the value of every leaf, and puts back what it returns."""

    def swap_tree(name: str, tree: Any) -> Any:
        def swap_leaf(path: Any, leaf: jax.Array) -> jax.Array:
            if name == "compensation" and not is_narrow(leaf):
                return leaf  # Stands in the place of a compensation that is not needed.
            own = _OF_VECTORS.get(name, name) if jnp.ndim(leaf) < 2 else name
            return swap(f"{prefix}{own}/{jax.tree_util.keystr(path, simple=True, separator='.')}", leaf)

        return jax.tree_util.tree_map_with_path(swap_leaf, tree)

    def visit(node: Any) -> Any:
        if isinstance(node, EmotionState):
            return EmotionState(
                **{name: swap(f"emotion/{name}", leaf) for name, leaf in node._asdict().items()}
            )
        if isinstance(node, DivergenceState):
            return DivergenceState(
                **{name: swap(f"divergence/{name}", leaf) for name, leaf in node._asdict().items()}
            )
        if isinstance(node, BlendWithShadowState):
            return BlendWithShadowState(
                ratio=swap("emotion/shadow_ratio", node.ratio),
                exists=swap("emotion/shadow_exists", node.exists),
                shadow=swap_tree("shadow", node.shadow),
                inner_state=_exchange(node.inner_state, swap),
            )
        if isinstance(node, AddWeightDecayState):
            if isinstance(node.divisor, tuple):
                return node
            return node._replace(divisor=swap("weight_decay_divisor", node.divisor))
        if isinstance(node, SwitchByEmotionState):
            # A rule that keeps nothing has nothing to name: EmoZeal's switch of first steps.
            named = zip(_SWITCHED, node.states, strict=True)
            return SwitchByEmotionState(tuple(_exchange(own, swap, begin) for begin, own in named))
        names = _TREES.get(type(node), {})
        if names:
            return node._replace(
                **{field: swap_tree(name, getattr(node, field)) for field, name in names.items()}
            )
        return node

    return jax.tree.map(visit, state, is_leaf=lambda node: isinstance(node, _OURS))
