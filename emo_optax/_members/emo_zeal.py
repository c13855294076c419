"""EmoZeal: row and column averages, and a first step where |s| > 0.1."""

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
from emo_optax._rules.factors import is_matrix, is_vector, scale_by_factored_moments
from emo_optax._rules.signs import scale_by_cautious_sign, scale_by_softsign
from emo_optax._rules.switch import select_by_emotion
from emo_optax._wrappers.emotional import emotional_rule


def choose_first_step(scalar: jax.Array) -> jax.Array:
    """Returns 2 (sign) above 0.6, 1 (softsign) above 0.1, else 0 (none), for the size of a scalar."""
    size = jnp.abs(scalar)
    return (size > 0.1).astype(jnp.int32) + (size > 0.6).astype(jnp.int32)


@with_hints
def emo_zeal(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
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
    r"""Steps by averages over rows and columns, after a first step by sign or softsign where `|s| > 0.1`.

    For 2 or more dimensions, with :math:`w = (1-b_1)\,g`:

    .. math::
        s &= \tanh(5\,(short - long)) \\
        p &\leftarrow p - \eta \begin{cases}
            \operatorname{sign}(w) & |s| > 0.6 \\
            \frac{w}{1 + |w|}\,(\lVert g \rVert_2 + \epsilon) & 0.1 < |s| \le 0.6 \\
            0 & |s| \le 0.1
        \end{cases} \\
        p &\leftarrow p - \eta\,wd\,p \\
        r &\leftarrow b_1 r + (1-b_1)\sqrt{R}, \quad c \leftarrow b_1 c + (1-b_1)\sqrt{C} \\
        p &\leftarrow p - \eta\,\frac{g}{\sqrt{r c} + \epsilon}

    See `scale_by_factored_moments` for R, C and vectors, which have no first step. Where weight decay
    is "l2", :math:`g + wd\,p` takes the place of g in both steps, the first one and the factored one.
    The published first step has a momentum that stays 0, so the state keeps none.


    Args:
        learning_rate: eta, a number >= 0 or a schedule.
        b1: decay rate of the factors and of the vectors' first moment; 1 - b1 of g is softened; in [0, 1).
        b2: decay rate of the vectors' second moment, in [0, 1).
        eps: the number added to means, roots and the norm, >= 0.
        weight_decay: wd, a number >= 0 or a schedule.
        mask: a tree of booleans, or a function from the parameters to one; `True` decays.
        use_shadow: whether to pull the weights back to their shadow (see `blend_with_shadow`).
        shadow_ratio: r(s): "v2.0", "v1.0", or a function from a scalar array to a ratio in [0, 1].
        shadow_rate: how far the shadow follows the parameters, in (0, 1].
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: the factor of the difference of the averages, per unit of the loss, >= 0.
        weight_decay_mode: "decoupled" (p - eta wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the moments' floating-point dtype; `None` for the parameters' dtype, float32 at least.
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
        >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), emo_optax.emo_zeal(1e-2))
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

    Source: EmoZeal v2.0 by muooon.
    """
    options = options_of(locals())
    rules = (
        optax.set_to_zero(),
        scale_by_softsign(b1, None, eps),
        scale_by_cautious_sign(b1, None),
    )
    first = select_by_emotion(rules, choose_first_step)
    return emotional_rule(
        scale_by_factored_moments(b1, b2, eps, moment_dtype=moment_dtype),
        shadow_effect=False,
        first=optax.chain(optax.masked(first, is_matrix), optax.masked(optax.set_to_zero(), is_vector)),
        **options,
    )
