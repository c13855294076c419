"""EmoFact v3.6.1: the sign of the gradient, by emoDrive."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from emo_optax._checks.hints import with_hints
from emo_optax._pieces.drive import driven_rule
from emo_optax._pieces.replicas import AxisName
from emo_optax._pieces.rounding import Rounding
from emo_optax._pieces.weight_decay import WeightDecayMode
from emo_optax._rules.sign_rules import scale_by_sign


@with_hints
def emo_fact36(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.995,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    use_shadow: bool = False,
    weight_decay_mode: WeightDecayMode = "decoupled",
    rounding: Rounding = "nearest",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""EmoFact v3.6.1: steps by the sign of the gradient, times emoDrive.

    .. math::
        s &= \tanh\left(\frac{long - short}{\max(long, 10^{-5})}\right) \\
        p &\leftarrow p - \eta\,wd\,p \\
        p &\leftarrow p - \eta\,e(s)\,\operatorname{sign}(g)

    The published code divides g by averages of its size before it takes the sign; they change nothing, and
    are not kept here (see `scale_by_sign`). `feel_drive` has the averages, and
    `drive_factor` the factor e of the update.

    Args:
        learning_rate: eta, a number >= 0 or a schedule; 1e-4 is advised.
        b1: as published, in [0, 1); without effect.
        b2: as published, in [0, 1); without effect.
        eps: as published, >= 0; without effect.
        weight_decay: wd, a number >= 0 or a schedule.
        mask: a tree of booleans, or a function from the parameters to one; `True` decays.
        use_shadow: whether to pull the weights back to their shadow, by the rule of v3.6.1.
        weight_decay_mode: "decoupled" (p - eta wd p), "absolute" (p - wd p) or "l2" (g + wd p).
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
        >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), emo_optax.emo_fact36(1e-2))
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

    Source: EmoFact v3.6.1 by muooon.
    """
    return driven_rule(
        scale_by_sign(b1, b2, eps),
        learning_rate,
        weight_decay,
        mask,
        use_shadow=use_shadow,
        weight_decay_mode=weight_decay_mode,
        rounding=rounding,
        axis_name=axis_name,
    )
