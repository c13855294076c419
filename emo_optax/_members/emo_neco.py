"""EmoNeco: a cautious sign, or a softened momentum where 0.2 < |s| <= 0.5."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.hints import with_hints
from emo_optax._members.options import options_of
from emo_optax._pieces.replicas import AxisName
from emo_optax._pieces.rounding import Rounding
from emo_optax._pieces.shadow_system import ShadowRatio
from emo_optax._pieces.weight_decay import WeightDecayMode
from emo_optax._rules.signs import scale_by_cautious_sign, scale_by_softsign
from emo_optax._rules.switch import select_by_emotion
from emo_optax._wrappers.emotional import emotional_rule


def choose_rule(scalar: jax.Array) -> jax.Array:
    """Returns 1 (softsign) for a scalar of a size in (0.2, 0.5], else 0 (cautious sign)."""
    size = jnp.abs(scalar)
    return ((size > 0.2) & (size <= 0.5)).astype(jnp.int32)


@with_hints
def emo_neco(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    decoupled_weight_decay: bool = False,
    use_shadow: bool = False,
    shadow_ratio: ShadowRatio = "v2.0",
    shadow_rate: jax.typing.ArrayLike = 0.05,
    short_factor: jax.typing.ArrayLike = 0.3,
    long_factor: jax.typing.ArrayLike = 0.01,
    gain: jax.typing.ArrayLike = 5.0,
    weight_decay_mode: WeightDecayMode = "decoupled",
    moment_dtype: Any | None = None,
    rounding: Rounding = "nearest",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Steps by the cautious sign of a momentum, or by the softened momentum where `0.2 < |s| <= 0.5`.

    .. math::
        s &= \tanh(5\,(short - long)) \\
        p &\leftarrow p - \eta\,wd\,p \\
        w &= (1-b_1)\,g + b_1 m \\
        p &\leftarrow p - \eta \begin{cases}
            \frac{w}{1 + |w|}\,(\lVert g \rVert_2 + \epsilon) & 0.2 < |s| \le 0.5 \\
            \operatorname{sign}(w)\,[\,\operatorname{sign}(w) = \operatorname{sign}(g)\,] & \text{else}
        \end{cases} \\
        m &\leftarrow b_2 m + (1-b_2)\,g

    The norm is taken over each whole parameter, so the softened step grows with the parameter's size.


    Args:
        learning_rate: eta, a number >= 0 or a schedule.
        b1: decay rate of the interpolation, in [0, 1).
        b2: decay rate of the momentum, in [0, 1).
        eps: the number added to the norm, >= 0.
        weight_decay: wd, a number >= 0 or a schedule.
        mask: a tree of booleans, or a function from the parameters to one; `True` decays.
        decoupled_weight_decay: whether to divide wd by the learning rate that the optimizer is made
            with (a schedule's first value), which must not be 0.
        use_shadow: whether to pull the weights back to their shadow (see `blend_with_shadow`).
        shadow_ratio: r(s): "v2.0", "v1.0", or a function from a scalar array to a ratio in [0, 1].
        shadow_rate: how far the shadow follows the parameters, in (0, 1].
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: the factor of the difference of the averages, per unit of the loss, >= 0.
        weight_decay_mode: "decoupled" (p - eta wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the moments' floating-point dtype; `None` for the parameters' dtype, float32 at least;
            "8bit" for codes of 8 bits (see `docs/low_precision.md`).
        rounding: how a step is rounded into parameters below float32: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        axis_name: the mapped axes over which the loss is averaged, a name, a tuple of names or `None`; for
            replicas under `jax.shard_map` or `jax.pmap`, whose gradients you average yourself.

    Returns:
        A transformation whose `update(grads, state, params, value=loss)` takes the loss at `params`,
        a scalar of any float dtype; its updates have the parameters' dtypes.

    Raises:
        ValueError: for a hyperparameter out of its range; from `init`, for complex parameters; from
            `update`, without `params` or for a loss that is not a scalar.
        LossMissingError: from `update`, without a loss.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), emo_optax.emo_neco(1e-2))
        >>> params = jnp.asarray([[1.0, -2.0], [3.0, 0.5]])
        >>> state = optimizer.init(params)
        >>> losses = []
        >>> for _ in range(30):
        ...     loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
        ...     updates, state = optimizer.update(grads, state, params, value=loss)
        ...     params = optax.apply_updates(params, updates)
        ...     losses.append(float(loss))
        >>> losses[-1] < losses[0]
        True

    Source: EmoNeco v2.0 by muooon.
    """
    options = options_of(locals())
    rules = (
        scale_by_cautious_sign(b1, b2, moment_dtype=moment_dtype),
        scale_by_softsign(b1, b2, eps, moment_dtype=moment_dtype),
    )
    return emotional_rule(
        select_by_emotion(rules, choose_rule, one_state=True),
        shadow_effect=False,
        **options,
    )
