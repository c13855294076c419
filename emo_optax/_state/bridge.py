"""The bridge to `emo_torch`: an optimizer's state as plain named arrays, in files and back."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_optax._checks.states import nodes_of
from emo_optax._members.ref_adamw_mini_schedule_free import RefMomentsState
from emo_optax._pieces.divergence import DivergenceState
from emo_optax._pieces.drive import DriveState
from emo_optax._pieces.emotion import EmotionState
from emo_optax._pieces.packed import PackedState
from emo_optax._pieces.pilot import PilotState, SteeredState
from emo_optax._pieces.pulse import PulseState
from emo_optax._pieces.rounding import RoundStochasticallyState, RoundWithKahanState, is_narrow
from emo_optax._pieces.shadow_system import BlendWithShadowState
from emo_optax._pieces.weight_decay import AddWeightDecayState
from emo_optax._rules.adam import ScaleByUncorrectedAdamState
from emo_optax._rules.directions import PilotFactorsState, PilotMomentsState
from emo_optax._rules.eight_bit import decode, encode, is_coded_moment
from emo_optax._rules.factors import ScaleByFactorsState
from emo_optax._rules.lion import ScaleByLionState
from emo_optax._rules.sign_rules import HoldNormState, ScaleByFreshSignState, ScaleBySignState
from emo_optax._rules.signs import ScaleByMomentumState
from emo_optax._rules.switch import StepFirstState, SwitchByEmotionState
from emo_optax._state.carried import check_carried
from emo_shared.arrays import ARRAYS_VERSION, Arrays, check_arrays, in_dtype
from emo_shared.eight_bit import table_of

_TREES: dict[type, dict[str, str]] = {
    ScaleByUncorrectedAdamState: {"mu": "exp_avg", "nu": "exp_avg_sq"},
    ScaleByLionState: {"mu": "exp_avg"},
    ScaleByMomentumState: {"mu": "exp_avg"},
    ScaleByFactorsState: {"row": "row", "column": "column"},
    RefMomentsState: {"mu": "exp_avg", "nu": "exp_avg_sq", "norm": "exp_avg_norm"},
    PilotMomentsState: {"mu": "exp_avg", "nu": "exp_avg_sq"},
    PilotFactorsState: {"mu": "exp_avg", "row": "row", "column": "column"},
    RoundWithKahanState: {"compensation": "compensation"},
}
_RULES: dict[type, str] = {
    # In this order: switches, first steps and states with a norm contain the others, and factored moments
    # Adam's.
    SwitchByEmotionState: "adam_factors_or_lion",
    StepFirstState: "factored_moments_after_signs",
    ScaleByMomentumState: "cautious_sign_or_softsign",
    ScaleByFactorsState: "factored_moments",
    PilotMomentsState: "pilot",
    PilotFactorsState: "pilot_factors",
    ScaleByUncorrectedAdamState: "uncorrected_adam",
    ScaleByLionState: "lion",
    RefMomentsState: "ref_adamw_mini_schedule_free",
    HoldNormState: "sign_under_a_norm",
    ScaleByFreshSignState: "fresh_sign",
    ScaleBySignState: "sign",
}
_OF_VECTORS = {"row": "exp_avg", "column": "exp_avg_sq"}
"""The names of the moments of the factored rule for a parameter of 0 or 1 dimensions."""
_SWITCHED = ("navi_", "fact_", "lynx_")
"""The prefixes of the names of moments, for each rule of EmoClan."""
_OURS = (
    *(EmotionState, DivergenceState, BlendWithShadowState, AddWeightDecayState, SwitchByEmotionState),
    *(DriveState, PulseState, HoldNormState, ScaleByFreshSignState, SteeredState),
    *_TREES,
)


def to_arrays(state: optax.OptState) -> Arrays:
    """Returns the state of a member of the family as named NumPy arrays that `emo_torch` reads, too.

    A parameter's moments are named after its path in the tree, its parts joined by dots, as in
    `exp_avg/layers.0.weight`. Narrow floats come out as float32, which NumPy has everywhere.

    Members with the same rule have the same state, and can exchange it: `emo_navi` with `emo_sens`,
    `emo_fact` with `emo_airy`, and `emo_lynx` with `emo_cats`.

    Args:
        state: the state, at any depth inside of wrappers; not traced.

    Returns:
        The arrays: `version`, `rule`, `emotion/...` (or `pilot/...`, `pulse/...`, `divergence/...`), and
        `exp_avg/...`, `exp_avg_sq/...`, `exp_avg_norm/...`, `row/...`, `column/...`, `step/...`,
        `shadow/...`, `average/...`, `compensation/...` for each parameter that has them.

    Raises:
        ValueError: if the state is no state of a member of the family; if two of its arrays have one name:
            two parameters whose paths read the same, or the states of two members; if `accumulate` or
            `optax.MultiSteps` holds gradients of a step that is not complete; and if another transformation
            in the state holds more than numbers, as `average_weights` and `optax.trace` do.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> state = emo_optax.emo_cats().init({"weight": jnp.ones(2)})
        >>> arrays = emo_optax.to_arrays(state)
        >>> print(arrays["exp_avg/weight"], arrays["emotion/felt"])
        [0. 0.] 0
    """
    for node in nodes_of(state, optax.MultiStepsState):
        if int(node.mini_step):
            raise ValueError(
                f"The state holds the gradients of {int(node.mini_step)} micro-batches of a step that is "
                "not complete, and the arrays cannot hold gradients: call this function between two steps"
            )
    rule = _rule(state)
    check_carried(state, _OURS)
    arrays: Arrays = {
        "version": np.asarray(ARRAYS_VERSION, np.int32),
        "rule": np.frombuffer(rule.encode(), np.uint8),
    }
    for name, leaf in named_leaves(_on_host(state)).items():
        array = np.asarray(leaf)
        is_narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
        arrays[name] = array.astype(np.float32) if is_narrow else array
    return arrays


def _on_host(state: optax.OptState) -> optax.OptState:
    """Returns a state with NumPy arrays in the place of JAX's arrays, all copied at once.

    NumPy reads a value from an array without a program of XLA, which JAX compiles for each shape.
    """
    leaves, tree = jax.tree.flatten(state)
    places = [
        index
        for index, leaf in enumerate(leaves)
        if isinstance(leaf, jax.Array)
        and leaf.is_fully_addressable
        and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    ]
    for index, array in zip(places, jax.device_get([leaves[index] for index in places]), strict=True):
        leaves[index] = array
    return jax.tree.unflatten(tree, leaves)


def named_leaves(state: optax.OptState) -> dict[str, jax.Array]:
    """Returns the arrays of a state by the names of `to_arrays`, each as it is; the state may be traced."""
    leaves: dict[str, jax.Array] = {}

    def keep(name: str, leaf: jax.Array) -> jax.Array:
        if name in leaves:
            raise ValueError(
                f"Two arrays have the name {name!r}: two parameters whose paths read the same with dots, "
                "or the states of two members: call this function once for each member"
            )
        leaves[name] = leaf
        return leaf

    _exchange(state, keep)
    return leaves


def from_arrays(arrays: Mapping[str, np.ndarray[Any, Any]], state: optax.OptState) -> optax.OptState:
    """Returns a state whose values are replaced by named arrays.

    Members with the same rule have the same state, and can exchange it: `emo_navi` with `emo_sens`,
    `emo_fact` with `emo_airy`, and `emo_lynx` with `emo_cats`.

    Args:
        arrays: the result of `to_arrays`, of this package or of `emo_torch`.
        state: a state of the same rule and parameters, as `init` makes it.

    Returns:
        The new state. Schedules continue at the step of the arrays, also schedules in
        `optax.inject_hyperparams`, and the schedules of `accumulate` and `optax.MultiSteps`. A stateful
        schedule of your own stays as `state` has it.

    Raises:
        TypeError: for anything but a dictionary of arrays.
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
    _check_steps(arrays)
    counts = (
        *("divergence/steps", "emotion/felt", "emotion/held", "pulse/felt", "pulse/held"),
        *("pilot/step", "pilot/skipped"),
    )
    steps = sum(int(arrays[name]) for name in counts if name in arrays)

    def put(name: str, leaf: jax.Array) -> jax.Array:
        return jnp.array(in_dtype(arrays[name], np.dtype(leaf.dtype), repr(name)))

    return with_steps(_exchange(state, put), steps)


def with_steps(state: optax.OptState, steps: int) -> optax.OptState:
    """Returns a state whose schedules, and random numbers, have taken so many steps."""
    # The counter of a schedule inside `optax.inject_hyperparams`: optax does not export its type.
    wrapped = type(optax.schedules.WrappedSchedule(lambda count: count).init())
    injected = (optax.InjectStatefulHyperparamsState, optax.InjectHyperparamsState)
    counting = (optax.ScaleByScheduleState, wrapped)
    containing = (*injected, optax.MultiStepsState)

    def visit(node: Any) -> Any:
        if isinstance(node, counting):
            return node._replace(count=jnp.array(steps, jnp.int32))
        if isinstance(node, RoundStochasticallyState):
            return RoundStochasticallyState(jnp.array(steps, jnp.int32))
        if isinstance(node, AddWeightDecayState) and isinstance(node.steps, jax.Array):
            return node._replace(steps=jnp.array(steps, jnp.int32))
        if isinstance(node, containing):
            fields = {name: with_steps(field, steps) for name, field in node._asdict().items()}
            counter = "count" if isinstance(node, injected) else "gradient_step"
            return node._replace(**{**fields, counter: jnp.array(steps, jnp.int32)})
        return node

    kinds = (*counting, RoundStochasticallyState, AddWeightDecayState, *containing)
    return jax.tree.map(visit, state, is_leaf=lambda node: isinstance(node, kinds))


def _check_steps(arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Raises an error for arrays of EmoPilot in which a parameter took fewer steps than the optimizer."""
    for name, array in arrays.items():
        if name.startswith("step/") and int(array) != int(arrays["pilot/step"]):
            raise ValueError(
                f"{name!r} is {int(array)}, and 'pilot/step' is {int(arrays['pilot/step'])}: this "
                "parameter had no gradient in some steps. emo_optax counts the same steps for all "
                "parameters and cannot load this state"
            )


def _exchange_steered(
    node: SteeredState,
    swap: Callable[[str, jax.Array], jax.Array],
    swap_tree: Callable[[str, Any], Any],
) -> SteeredState:
    """Exchanges the state of a steered member; in `emo_torch` every parameter counts its own steps."""
    if not isinstance(node.rule, PilotMomentsState | PilotFactorsState):
        raise ValueError(
            "The state of `autopilot` has no plain arrays that emo_torch could read: keep the whole state "
            "with save_checkpoint"
        )
    fields = node.pilot._asdict()
    emotion, courage = fields.pop("emotion"), fields.pop("courage")
    swapped = {name: swap(f"pilot/{name}", leaf) for name, leaf in fields.items()}
    emotion, courage = (
        type(part)(**{name: swap(f"pilot/{name}", leaf) for name, leaf in part._asdict().items()})
        for part in (emotion, courage)
    )
    swap_tree("step", jax.tree.map(lambda _: node.pilot.step.astype(jnp.float32), node.rule.mu))
    return SteeredState(
        pilot=PilotState(**swapped, emotion=emotion, courage=courage),
        rule=_exchange(node.rule, swap),
        last=node.last,
        average=swap_tree("average", node.average),
    )


def _swapped(node: PackedState, title: str, swap: Callable[[str, jax.Array], jax.Array]) -> PackedState:
    """Exchanges the values of a packed state."""
    old = node.named()
    new = {name: swap(f"{title}/{name}", value) for name, value in old.items()}
    # Who only reads gets all values back: a packed state with the same values takes many programs.
    changed = {name: value for name, value in new.items() if value is not old[name]}
    return node.replace(**changed) if changed else node


def _rule(state: optax.OptState) -> str:
    found = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, tuple(_RULES)))
    kinds = {type(node) for node in found}
    for kind, rule in _RULES.items():
        if kind in kinds:
            return rule
    raise ValueError(
        "This state has no rule of a member. Pass the state of a member, such as emo_sens, or of a wrapper "
        "around one"
    )


def _exchange(
    state: optax.OptState, swap: Callable[[str, jax.Array], jax.Array], prefix: str = ""
) -> optax.OptState:
    """Replaces every leaf by the result of `swap` for its name and value."""

    def swap_tree(name: str, tree: Any, least_ndim: int = 0) -> Any:
        def swap_leaf(path: Any, leaf: Any) -> Any:
            if name == "compensation" and not is_narrow(leaf):
                return leaf  # Stands in the place of a compensation that is not needed.
            if is_coded_moment(leaf):
                table = table_of(name)
                decoded = decode(leaf, table)
                swapped = swap_leaf(path, decoded)
                return leaf if swapped is decoded else encode(swapped, table)
            if jnp.ndim(leaf) < least_ndim:
                return leaf  # Stands in the place of averages that a vector does not have.
            own = _OF_VECTORS.get(name, name) if jnp.ndim(leaf) < 2 else name
            return swap(f"{prefix}{own}/{jax.tree_util.keystr(path, simple=True, separator='.')}", leaf)

        return jax.tree_util.tree_map_with_path(swap_leaf, tree, is_leaf=is_coded_moment)

    def visit(node: Any) -> Any:
        if isinstance(node, EmotionState):
            return _swapped(node, "emotion", swap)
        if isinstance(node, DivergenceState):
            return DivergenceState(
                **{name: swap(f"divergence/{name}", leaf) for name, leaf in node._asdict().items()}
            )
        if isinstance(node, DriveState):
            emotion, medium = _exchange(node.emotion, swap), node.medium
            swapped = swap("emotion/medium", medium)
            if swapped is not medium:
                emotion = emotion._replace(numbers=emotion.numbers.at[..., -1].set(swapped))
            return DriveState(emotion)
        if isinstance(node, PulseState):
            return _swapped(node, "pulse", swap)
        if isinstance(node, SteeredState):
            return _exchange_steered(node, swap, swap_tree)
        if isinstance(node, PilotFactorsState):
            matrices = swap_tree("row", node.row, least_ndim=2)
            return PilotFactorsState(
                swap_tree("exp_avg", node.mu), matrices, swap_tree("column", node.column)
            )
        if isinstance(node, ScaleByFreshSignState):
            return ScaleByFreshSignState(swap_tree("exp_avg", node.mu), swap("norm/kept", node.norm))
        if isinstance(node, HoldNormState):
            return HoldNormState(
                norm=swap("norm/kept", node.norm),
                counter=swap("norm/counter", node.counter),
                was_quiet=swap("norm/was_quiet", node.was_quiet),
                inner_state=_exchange(node.inner_state, swap),
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
