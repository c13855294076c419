"""EmoPilot: Adam's direction, with a step length that the losses and gradients steer."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from emo_optax._checks.hints import with_hints
from emo_optax._members.options import options_of
from emo_optax._pieces.replicas import AxisName
from emo_optax._pieces.rounding import Rounding
from emo_optax._pieces.weight_decay import WeightDecayMode
from emo_optax._rules.directions import turn_by_adam
from emo_optax._wrappers.piloted import piloted


@with_hints
def emo_pilot(
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
    r"""Steps in Adam's direction, with a step length that the losses and the gradients steer.

    .. math::
        g &\leftarrow g\,\min(1,\, 2.5\,N / \lVert g \rVert) \\
        k &\leftarrow \text{courage}(k, a, s), \qquad
            a \leftarrow \frac{\langle g,\, m_{prev} \rangle}{\lVert g \rVert\,\lVert m_{prev} \rVert} \\
        u &= \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon} \\
        p &\leftarrow p - \eta_p\,(u + wd\,p), \qquad
            \eta_p = k\,\min\bigl(\eta,\, 0.08\,\min(0.1, \max(0.02, \mathrm{RMS}(p)))\bigr) \\
        A &\leftarrow A + \min\bigl(1,\, \tfrac{9}{t+8}\bigr)\,(p - A)

    N is the running average of the gradient's norm (see `gate`), s the scale-free emotion (see
    `feel_relative`), k the courage (see `move_courage`), a the agreement, which moves the courage of the
    next step, RMS the root of the mean square of one parameter. Train on p; evaluate, save and export A,
    which `eval_params` finds in the state. A step whose loss or gradient is not finite is skipped: nothing
    moves, and no state changes. So is a step whose learning rate from a schedule is not finite.

    A follows p plus this update. Where a later transformation of a chain changes the update, as
    `optax.freeze` does, put `average_weights` around the chain, and `emo_pilot(average=False)` into it.

    The learning rate is a start, not a tuned value: a warm-up brings a smaller one to the usual step
    within about 20 steps (see `move_courage`), unless `max_courage` forbids it. A schedule multiplies the
    step by its learning rate over its largest learning rate so far; the results are best without a
    schedule.

    Args:
        learning_rate: eta, a number >= 0 or a schedule.
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: added to the root, >= 0.
        weight_decay: wd, a number >= 0 or a schedule.
        mask: a tree of booleans, or a function from the parameters to one; `True` decays.
        min_courage: the least courage, >= 0.
        max_courage: the largest courage, >= `min_courage`; with 1 (for fine-tuning) the learning rate in
            use is never above `learning_rate`, and there is no warm-up.
        gate_limit: how many times its running average the norm of a gradient may be, >= 0.
        average: whether to keep the averaged weights A; without them the state is a third smaller.
        weight_decay_mode: "decoupled" (p - eta_p wd p), "absolute" (p - wd p) or "l2" (g + wd p).
        moment_dtype: the floating-point dtype of the moments; `None` for the parameters' dtype, float32 at
            least.
        rounding: how a step is rounded into parameters below float32: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        axis_name: the mapped axes over which the loss is averaged, a name, a tuple of names or `None`; for
            replicas under `jax.shard_map` or `jax.pmap`, whose gradients you average yourself.
        shard_axis_name: the mapped axes over which parameters are split, for norms and products over the
            whole under `jax.shard_map`; `None` where every replica has whole parameters, and under jit. A
            replicated parameter counts once, unless `check_vma=False` hides that it is replicated.

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
        >>> optimizer = emo_optax.emo_pilot()
        >>> params = jnp.asarray([[1.0, -2.0], [3.0, 0.5]])
        >>> state = optimizer.init(params)
        >>> for _ in range(100):
        ...     loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
        ...     updates, state = optimizer.update(grads, state, params, value=loss)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(loss < 0.5)
        True

    Source: ours; nearest published: MoMo (arXiv 2305.07583), hypergradient descent (Baydin et al., 2018).
    """
    options = options_of(locals())
    return piloted(turn_by_adam("emo_pilot", b1, b2, eps, moment_dtype), **options)
