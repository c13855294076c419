"""Errors that say what to do next."""

_DROPPED = (
    "Call `update(grads, state, params, value=loss)`. If you did, a wrapper around the optimizer dropped "
    "what it was given: optax.lookahead, optax.contrib.sam, "
    "optax.contrib.split_real_and_imaginary, optax.contrib.galore, "
    "optax.MultiSteps.gradient_transformation() inside a chain, a plain "
    "optax.GradientTransformation(opt.init, opt.update), and Flax's TrainState.apply_gradients are "
    "known to. Around any of these of Optax write `emo_optax.bind_extra_args(lambda inner: "
    "optax.lookahead(inner, 5, 0.5), opt)`; in place of a nested MultiSteps, "
    "`emo_optax.accumulate(opt, k)`; in place of Flax's TrainState, "
    "`emo_optax.integrations.flax.TrainState`."
)

LOSS_MISSING = f"emo_optax reads the loss of every step, and none was given. {_DROPPED}"

PARAMS_MISSING = (
    "emo_optax needs the current parameters (for weight decay, the shadow and the updates' dtypes), "
    f"and `params` was not given. {_DROPPED}"
)

EMOTION_MISSING = (
    "A piece made with `shared=True` takes the emotion of an enclosing `emo_optax.emotional(...)` or "
    "`emo_optax.share_emotion(...)`, and there is none around it. Wrap it in one of them, or leave "
    "`shared=True` away to let the piece keep an emotion of its own."
)

STATE_OF_ANOTHER = (
    "The state is not one of this optimizer for these parameters: {problem}. Pass the one that its `init` "
    "made, or the last `update` returned; make a new one with `init` where the parameters have changed."
)


class LossMissingError(ValueError):
    """A step was asked for without the loss that steers it.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> optimizer = emo_optax.emo_sens(1e-3)
        >>> params = jnp.ones(3)
        >>> try:
        ...     optimizer.update(jnp.ones(3), optimizer.init(params), params)
        ... except emo_optax.LossMissingError as error:
        ...     print(str(error)[:55])
        emo_optax reads the loss of every step, and none was gi
    """


class EmotionMissingError(ValueError):
    """A piece that shares an emotion stands outside of any transformation that has one.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> piece = emo_optax.scale_by_emotion(shared=True)
        >>> try:
        ...     piece.update(jnp.ones(3), piece.init(jnp.ones(3)))
        ... except emo_optax.EmotionMissingError as error:
        ...     print(str(error)[:35])
        A piece made with `shared=True` tak
    """
