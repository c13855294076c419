"""Rounding: how small steps change parameters of low precision."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import with_arrays
from emo_optax._checks.validation import check_choice, check_params, check_seed

Rounding = Literal["nearest", "kahan", "stochastic"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)
"""The ways to round an update into a parameter."""


def is_narrow(leaf: Any) -> bool:
    """Returns whether a leaf has less than float32's precision, so that rounding acts on it."""
    dtype = jnp.result_type(leaf)
    return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.dtype(dtype).itemsize < 4


def round_bits(value: jax.Array, dtype: Any, draws: jax.Array | None = None) -> jax.Array:
    """Rounds float32 values to values of a narrower dtype; their dtype stays float32.

    On the bits, since compilers may leave out a cast that is undone: XLA with
    `xla_allow_excess_precision`, which is its default, and PyTorch's inductor. A value beyond
    the range of the dtype stays unchanged.

    Args:
        value: the values to round, float32.
        dtype: the narrower dtype, such as bfloat16.
        draws: random numbers, uint32 in the value's shape: up or down, the nearer value more likely.
            `None` rounds to the nearest value, and a tie to the even value.
    """
    info = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    dropped = 23 - info.nmant
    # Below its normal numbers a dtype is evenly spaced, as float32 is in the binade of the least.
    least = float(info.smallest_normal)
    is_even = least > 2.0**-126
    is_small = (jnp.abs(value) < least).astype(jnp.float32)
    shift = jnp.copysign(jnp.float32(least), value) * is_small if is_even else None
    bits = jax.lax.bitcast_convert_type(value if shift is None else value + shift, jnp.uint32)
    if draws is None:
        added = ((bits >> dropped) & 1) + jnp.uint32((1 << (dropped - 1)) - 1)
    else:
        added = draws >> (32 - dropped)
    kept = jnp.uint32(2**32 - (1 << dropped))
    rounded = jax.lax.bitcast_convert_type((bits + added) & kept, jnp.float32)
    rounded = rounded if shift is None else rounded - shift
    return jnp.where(jnp.isfinite(value), rounded, value)


def scramble(number: jax.Array) -> jax.Array:
    """Turns whole numbers into others that look random: a one-to-one hash of 32 bits (uint32)."""
    # "lowbias32" of Chris Wellons' hash prospector, with multipliers that int64 can multiply by.
    number = (number ^ (number >> 16)) * jnp.uint32(0x21F0AAAD)
    number = (number ^ (number >> 15)) * jnp.uint32(0x735A2D97)
    return number ^ (number >> 15)


def rounding_keys(step: jax.Array, count: int, seed: int = 0) -> jax.Array:
    """Returns a key for each of `count` parameters in one step, uint32: other ones in every step."""
    of_step = scramble(scramble(jnp.uint32(seed)) + step.astype(jnp.uint32))
    return scramble(of_step + jnp.arange(count, dtype=jnp.uint32))


def _draws(key: jax.Array, like: jax.Array) -> jax.Array:
    """Returns a random number for every element, uint32."""
    return scramble(jnp.arange(like.size, dtype=jnp.uint32) + key).reshape(like.shape)


def _with_kahan(
    update: jax.Array, param: jax.Array, compensation: jax.Array
) -> tuple[jax.Array, jax.Array]:
    before, rest = param.astype(jnp.float32), compensation.astype(jnp.float32)
    update = update.astype(jnp.float32)
    wanted = update + rest
    rounded = round_bits(wanted, param.dtype)
    moved = round_bits(before + rounded, param.dtype)
    is_still = update == 0.0  # An element without an update is not moved by its compensation either.
    rest = jnp.where(is_still, rest, wanted - (moved - before))
    rounded = jnp.where(is_still, jnp.zeros([], jnp.float32), rounded)
    return rounded.astype(param.dtype), rest.astype(param.dtype)


def _stochastically(update: jax.Array, param: jax.Array, key: jax.Array) -> jax.Array:
    before = param.astype(jnp.float32)
    moved = round_bits(before + update.astype(jnp.float32), param.dtype, _draws(key, param))
    return round_bits(moved - before, param.dtype).astype(param.dtype)


class RoundWithKahanState(NamedTuple):
    """The parts of updates that rounding has not applied yet: a tree like the parameters, in their dtypes.

    Parameters of float32 and wider need no compensation: its place has a zero of the shape `[1]` and of the
    parameter's dtype, as in the state of `optax.adafactor`, so that shardings map onto the tree.

    Attributes:
        compensation: the lost parts of each parameter, a tree like the parameters.
    """

    compensation: optax.Params


def round_with_kahan() -> optax.GradientTransformationExtraArgs:
    r"""Rounds updates to the dtype of narrow parameters, and adds the rounding error to the next step.

    With y in float32, Kahan's summation:

    .. math::
        y = u + c, \quad u' = \operatorname{round}(y), \quad
        c \leftarrow \operatorname{round}(y - (\operatorname{round}(p + u') - p))

    In bfloat16 a step below half a unit of the last place, :math:`2^{-9}` to :math:`2^{-8}` of p,
    changes nothing, however often it is repeated. Here such steps add up in `c` until they change p. `c`
    takes as much memory as the parameters, and keeps about as many digits as 16 bits of mantissa. Elements
    whose update is exactly 0 stay as they are; parameters of float32 and wider, too, with all updates.
    float16 itself holds no `c` below :math:`3 \cdot 10^{-8}`: smaller steps are lost, as without `c`.

    Use it as the last piece of an `optax.chain`, before `optax.apply_updates`.

    Returns:
        A transformation whose `update` needs `params`; updates of narrow parameters have their dtypes.

    Raises:
        ValueError: from `update`, without `params`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> for last in (optax.identity(), emo_optax.round_with_kahan()):
        ...     optimizer = optax.chain(optax.sgd(1e-3), last)
        ...     params = jnp.ones(1, jnp.bfloat16)
        ...     state, update = optimizer.init(params), jax.jit(optimizer.update)
        ...     for _ in range(100):
        ...         updates, state = update(jnp.ones(1), state, params)
        ...         params = optax.apply_updates(params, updates)
        ...     print(params)
        [1]
        [0.898438]

    Source: Kahan, 1965; Zamirai et al., "Revisiting BFloat16 Training", 2020.
    """

    def init_fn(params: optax.Params) -> RoundWithKahanState:
        return RoundWithKahanState(
            jax.tree.map(lambda p: jnp.zeros_like(p, shape=None if is_narrow(p) else (1,)), params)
        )

    def update_fn(
        updates: optax.Updates,
        state: RoundWithKahanState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RoundWithKahanState]:
        del extra_args
        check_params(params)

        state = with_arrays(state, init_fn, params)

        def move(update: jax.Array, param: Any, rest: Any) -> tuple[jax.Array, Any]:
            return _with_kahan(update, param, rest) if is_narrow(param) else (update, rest)

        pairs = jax.tree.map(move, updates, params, state.compensation)
        compensation = jax.tree.map(lambda _, pair: pair[1], updates, pairs)
        updates = jax.tree.map(lambda _, pair: pair[0], updates, pairs)
        return updates, RoundWithKahanState(compensation)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class RoundStochasticallyState(NamedTuple):
    """How many steps have been rounded, int32 of shape `[]`: every step draws other numbers.

    Attributes:
        steps: the number of steps so far, int32 of shape `[]`.
    """

    steps: jax.Array


def round_stochastically(seed: int = 0) -> optax.GradientTransformationExtraArgs:
    r"""Rounds narrow parameters up or down at random, so that they are right on average.

    .. math::
        u' = \begin{cases} \lceil p + u \rceil - p & \text{with probability }
            \frac{p + u - \lfloor p + u \rfloor}{\lceil p + u \rceil - \lfloor p + u \rfloor} \\
            \lfloor p + u \rfloor - p & \text{else} \end{cases}

    between the two neighbours in the parameter's dtype. In bfloat16 a step below half a unit of the
    last place, :math:`2^{-9}` to :math:`2^{-8}` of p, changes nothing where it is rounded to the
    nearest; here it changes some elements by a whole unit. It needs no memory, and adds noise of about
    that unit. Elements whose update is exactly 0 stay as they are; parameters of float32 and wider, too,
    with all their updates. If a step is longer than half of the new parameter, the step is
    rounded to the nearest value first, as without stochastic rounding.

    The random numbers are a hash of the seed, the count of steps, the parameter's place in the tree and
    the element's in the parameter: the same on every device, in a resumed run, and in `emo_torch`.

    Use it as the last piece of an `optax.chain`, before `optax.apply_updates`.

    Args:
        seed: a whole number in [0, 2^32).

    Returns:
        A transformation whose `update` needs `params`; updates of narrow parameters have their dtypes.

    Raises:
        ValueError: for a seed out of its range; from `update`, without `params`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> for last in (optax.identity(), emo_optax.round_stochastically()):
        ...     optimizer = optax.chain(optax.sgd(1e-3), last)
        ...     params = jnp.ones(1000, jnp.bfloat16)
        ...     state, update = optimizer.init(params), jax.jit(optimizer.update)
        ...     for _ in range(100):
        ...         updates, state = update(jnp.ones(1000), state, params)
        ...         params = optax.apply_updates(params, updates)
        ...     print(f"{params.astype(jnp.float32).mean():.2f}")
        1.00
        0.90

    Source: Gupta et al., "Deep Learning with Limited Numerical Precision", 2015; Zamirai et al.,
    "Revisiting BFloat16 Training", 2020.
    """
    check_seed(seed)

    def init_fn(params: optax.Params) -> RoundStochasticallyState:
        del params
        return RoundStochasticallyState(jnp.zeros([], jnp.int32))

    def update_fn(
        updates: optax.Updates,
        state: RoundStochasticallyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RoundStochasticallyState]:
        del extra_args
        check_params(params)
        state = with_arrays(state, init_fn, params)
        steps = jnp.asarray(optax.safe_increment(state.steps))
        count = len(jax.tree.leaves(updates))
        keys = jax.tree.unflatten(jax.tree.structure(updates), list(rounding_keys(steps, count, seed)))

        def move(update: jax.Array, param: Any, key: jax.Array) -> jax.Array:
            return _stochastically(update, param, key) if is_narrow(param) else update

        return jax.tree.map(move, updates, params, keys), RoundStochasticallyState(steps)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def add_rounding(
    inner: optax.GradientTransformationExtraArgs, rounding: Rounding
) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation followed by the piece that a word names; "nearest" adds nothing."""
    check_choice("rounding", rounding, ROUNDINGS)
    if rounding == "nearest":
        return inner
    last = round_with_kahan() if rounding == "kahan" else round_stochastically()
    return optax.with_extra_args_support(optax.chain(inner, last))
