"""EmoNavi v3.6.1: the moments of Adam, by emoDrive."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from emo_optax._checks.hints import with_hints
from emo_optax._pieces.drive import driven_rule
from emo_optax._pieces.replicas import AxisName
from emo_optax._pieces.rounding import Rounding
from emo_optax._pieces.weight_decay import WeightDecayMode
from emo_optax._rules.adam import scale_by_uncorrected_adam


@with_hints
def emo_navi36(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.995,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    use_shadow: bool = False,
    weight_decay_mode: WeightDecayMode = "decoupled",
    moment_dtype: Any | None = None,
    rounding: Rounding = "nearest",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""EmoNavi v3.6.1: steps by the moments of Adam, times emoDrive.

    .. math::
        s &= \tanh\left(\frac{long - short}{\max(long, 10^{-5})}\right) \\
        p &\leftarrow p - \eta\,wd\,p \\
        m &\leftarrow b_1 m + (1-b_1)\,g, \quad v \leftarrow b_2 v + (1-b_2)\,g^2 \\
        p &\leftarrow p - \eta\,e(s)\,\frac{m}{\sqrt{v} + \epsilon}

    `feel_drive` has the averages, and `drive_factor` the factor e of the update.

    Args:
        learning_rate: eta, a number >= 0 or a schedule; 6e-5 is advised.
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: the number added to the root, >= 0.
        weight_decay: wd, a number >= 0 or a schedule.
        mask: a tree of booleans, or a function from the parameters to one; `True` decays.
        use_shadow: whether to pull the weights back to their shadow, by the rule of v3.6.1.
        weight_decay_mode: "decoupled" (p - eta wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the floating-point dtype of the moments; `None` for the parameters' dtype, float32 at
            least; "8bit" for codes of 8 bits (see `docs/low_precision.md`).
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
        >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), emo_optax.emo_navi36(1e-2))
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

    Source: EmoNavi v3.6.1 by muooon.
    """
    return driven_rule(
        scale_by_uncorrected_adam(b1, b2, eps, moment_dtype=moment_dtype),
        learning_rate,
        weight_decay,
        mask,
        use_shadow=use_shadow,
        weight_decay_mode=weight_decay_mode,
        rounding=rounding,
        axis_name=axis_name,
    )
