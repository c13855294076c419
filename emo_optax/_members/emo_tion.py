"""EmoTion v3.9.1: the sign of a momentum that moves faster where the weights move."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from emo_optax._checks.hints import with_hints
from emo_optax._checks.validation import check_decay_rate, check_not_negative
from emo_optax._pieces.pulse import LossUnit
from emo_optax._pieces.replicas import AxisName
from emo_optax._pieces.rounding import Rounding
from emo_optax._pieces.share_pulse import pulsed_rule
from emo_optax._pieces.weight_decay import WeightDecayMode
from emo_optax._rules.sign_rules import scale_by_fresh_sign


@with_hints
def emo_tion(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.995,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    stopcoef: jax.typing.ArrayLike = 0.04,
    use_shadow: bool = False,
    steady: bool = False,
    spike_limit: jax.typing.ArrayLike | None = None,
    loss_unit: LossUnit = None,
    weight_decay_mode: WeightDecayMode = "decoupled",
    moment_dtype: Any | None = None,
    rounding: Rounding = "nearest",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""EmoTion v3.9.1: steps by the sign of a momentum, with the pulse as the learning rate.

    .. math::
        G &= \sum \lVert p \rVert_1, \quad d = \frac{|G - G'|}{G' + 10^{-8}}, \quad
            f = \max(\tanh(d / 0.03),\; 1 - b_1), \quad G' \leftarrow G\,d \\
        m &\leftarrow (1 - a)\,m + a\,g, \quad a = (1 - b_1)\,f \\
        p &\leftarrow p - pulse\,\operatorname{sign}(m)

    The first step has f = 1 and keeps G, a sum over all parameters (see `sum_of_norms`); the published code
    sums over the first group of parameters alone. `feel_pulse` has the formulas of the pulse.

    Args:
        learning_rate: the scope S of the pulse, a number >= 0 or a schedule; the learning rate of each
            step is the pulse (see `get_pulse`), about 1e-4 S. A scope of 0 still makes a pulse of 1e-8, as
            published.
        b1: decay rate of the momentum, in [0, 1).
        b2: as published, in [0, 1); without effect.
        eps: as published, >= 0; without effect.
        weight_decay: wd, a number >= 0 or a schedule; the published code ignores it.
        mask: a tree of booleans, or a function from the parameters to one; `True` decays.
        stopcoef: the bound of the stop signal on the medium average of the loss, >= 0.
        use_shadow: whether to pull the weights back to their shadow, by the rule of v3.9.1.
        steady: whether a loss above its trend may only lower the pulse; an addition of this package, as are
            `spike_limit` and `loss_unit` (see `feel_pulse`).
        spike_limit: how many times the old short average a loss counts at most, > 1; `None` for no limit.
        loss_unit: the unit of the loss, a number > 0 or "first" for the size of the first loss; `None` as
            published.
        weight_decay_mode: "decoupled" (p - pulse wd p), "absolute" (p - wd p) or "l2" (g + wd p).
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
        >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), emo_optax.emo_tion(10.0))
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

    Source: EmoTion v3.9.1 by muooon.
    """
    check_decay_rate("b2", b2)
    check_not_negative("eps", eps)
    return pulsed_rule(
        scale_by_fresh_sign(b1, moment_dtype=moment_dtype, axis_name=axis_name),
        learning_rate,
        weight_decay,
        mask,
        stopcoef=stopcoef,
        use_shadow=use_shadow,
        steady=steady,
        spike_limit=spike_limit,
        loss_unit=loss_unit,
        weight_decay_mode=weight_decay_mode,
        rounding=rounding,
        axis_name=axis_name,
    )
