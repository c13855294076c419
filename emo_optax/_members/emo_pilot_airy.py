"""EmoPilotAiry: factors and a momentum in the place of Adam's moments, steered as EmoPilot steers."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from emo_optax._checks.hints import with_hints
from emo_optax._members.options import options_of
from emo_optax._pieces.replicas import AxisName
from emo_optax._pieces.rounding import Rounding
from emo_optax._pieces.weight_decay import WeightDecayMode
from emo_optax._rules.directions import turn_by_factors
from emo_optax._wrappers.piloted import piloted


@with_hints
def emo_pilot_airy(
    learning_rate: optax.ScalarOrSchedule = 1e-2,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    min_courage: jax.typing.ArrayLike = 0.03,
    max_courage: jax.typing.ArrayLike = 1000.0,
    gate_limit: jax.typing.ArrayLike = 2.5,
    average: bool = True,
    weight_decay_mode: WeightDecayMode = "decoupled",
    moment_dtype: Any | None = None,
    rounding: Rounding = "nearest",
    axis_name: AxisName = None,
    shard_axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Steps in Adafactor's direction with a momentum, as long as EmoPilot's scalars say.

    For 2 or more dimensions, with means that keep dimensions:

    .. math::
        R &\leftarrow b_2 R + (1-b_2) \operatorname{mean}_{\text{all but first}} g^2, \quad
            C \leftarrow b_2 C + (1-b_2) \operatorname{mean}_{\text{first}} g^2, \quad
            v = \frac{R\,C}{\operatorname{mean} R} \\
        u &= \frac{g}{\sqrt{v / (1 - b_2^t)} + \epsilon}, \qquad
            m \leftarrow m + (1-b_1)\Bigl(\frac{u}{\max(1, \mathrm{RMS}(u))} - m\Bigr) \\
        p &\leftarrow p - \eta_p\Bigl(\frac{m}{1 - b_1^t} + wd\,p\Bigr)

    For 0 or 1 dimensions v is the running average of :math:`g^2`. The gated gradient g, the step
    :math:`\eta_p`, the averaged weights A and the skipped steps are `emo_pilot`'s; the agreement is the
    cosine of the gradient and m. The state has two thirds of the size of `emo_pilot`'s.

    Args:
        learning_rate: eta, a number >= 0 or a schedule.
        b1: decay rate of the momentum, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: added to the root, >= 0.
        weight_decay: wd, a number >= 0 or a schedule.
        mask: a tree of booleans, or a function from the parameters to one; `True` decays.
        min_courage: the least courage, >= 0.
        max_courage: the largest courage, >= `min_courage`; with 1 (for fine-tuning) the learning rate in
            use is never above `learning_rate`, and there is no warm-up.
        gate_limit: how many times its running average the norm of a gradient may be, >= 0.
        average: whether to keep the averaged weights A; without them the state is half as large.
        weight_decay_mode: "decoupled" (p - eta_p wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the floating-point dtype of the moments; `None` for the parameters' dtype, float32 at
            least.
        rounding: how a step is rounded into parameters below float32: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        axis_name: the mapped axes over which the loss is averaged, a name, a tuple of names or `None`; for
            replicas under `jax.shard_map` or `jax.pmap`, whose gradients you average yourself.
        shard_axis_name: the mapped axes over which all parameters are split along their first axis, for
            norms, products and means over the whole under `jax.shard_map`. The averages over rows are
            split as their parameters are, the averages over columns are whole. `None` where every replica
            has whole parameters, and under jit, which admits any split.

    Returns:
        A transformation whose `update(grads, state, params, value=loss)` takes the loss at `params`,
        a scalar of any float dtype; its updates have the dtypes of the parameters.

    Raises:
        ValueError: for a hyperparameter out of its range; from `init`, for complex parameters; from
            `update`, without `params` or for a loss that is not a scalar.
        LossMissingError: from `update`, without a loss.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.emo_pilot_airy()
        >>> params = jnp.asarray([[1.0, -2.0], [3.0, 0.5]])
        >>> state = optimizer.init(params)
        >>> for _ in range(100):
        ...     loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
        ...     updates, state = optimizer.update(grads, state, params, value=loss)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(loss < 0.5)
        True

    Source: ours; the direction is Adafactor's (Shazeer and Stern, 2018).
    """
    options = options_of(locals())
    return piloted(turn_by_factors("emo_pilot_airy", b1, b2, eps, moment_dtype, shard_axis_name), **options)
