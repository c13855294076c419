"""Errors, each with its remedy."""

_DROPPED = (
    "Call `update(grads, state, params, value=loss)`. If you do so already, a wrapper around the optimizer "
    "drops these arguments. These wrappers do: optax.lookahead, optax.contrib.sam, "
    "optax.contrib.split_real_and_imaginary, optax.contrib.galore, "
    "optax.MultiSteps.gradient_transformation() inside a chain, a plain "
    "optax.GradientTransformation(opt.init, opt.update), and Flax's TrainState.apply_gradients. "
    "For a wrapper of Optax, write `emo_optax.bind_extra_args(lambda inner: "
    "optax.lookahead(inner, 5, 0.5), opt)`, with your wrapper in place of optax.lookahead. "
    "Replace a nested MultiSteps by "
    "`emo_optax.accumulate(opt, k)`, and Flax's TrainState by `emo_optax.integrations.flax.TrainState`. "
    "For a trainer that you do not own, the loss can arrive as a gradient: "
    "`emo_optax.loss_from_gradient(opt)` with `emo_optax.carry_loss(loss, carrier)` in the loss function; "
    "or, for full batches, be computed again: `emo_optax.loss_from_function(opt, loss_of)`."
)

LOSS_MISSING = f"emo_optax reads the loss of every step, and none was given. {_DROPPED}"

PARAMS_MISSING = (
    "The optimizer needs the current parameters (for weight decay, the shadow or its rule), and `params` "
    "was not given. Most members need no `params` with `weight_decay=0.0` and `use_shadow=False`. "
    f"{_DROPPED}"
)

LOSS_NOT_CARRIED = (
    "The gradient of the carrier is 0, and other gradients are not 0, so no loss was carried. "
    "Differentiate `emo_optax.carry_loss(loss, carrier)`, with this leaf of the parameters as `carrier`."
)

EMOTION_MISSING = (
    "This piece needs an emotion, and nothing around it provides one. Wrap the piece, or the whole chain "
    "that the piece stands in, in `emo_optax.share_emotion(...)`, as in "
    "`emo_optax.share_emotion(optax.chain(optax.adam(1e-3), emo_optax.scale_by_emotion()))`."
)

STATE_OF_ANOTHER = (
    "The state does not fit this optimizer and these parameters: {problem}. Pass the state that `init` "
    "made or that the last `update` returned. If the parameters have changed, make a new state with `init`."
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


class EmoWarning(UserWarning):
    """A setting is allowed, and is probably meant for another optimizer.

    Example:
        >>> import warnings
        >>> import emo_optax
        >>> warnings.filterwarnings("ignore", category=emo_optax.EmoWarning)  # Where it is meant so.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)


class EmotionMissingError(ValueError):
    """A piece that needs an emotion is not inside of `share_emotion` or `emotional`.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> piece = emo_optax.scale_by_emotion()
        >>> try:
        ...     piece.update(jnp.ones(3), piece.init(jnp.ones(3)))
        ... except emo_optax.EmotionMissingError as error:
        ...     print(str(error)[:35])
        This piece needs an emotion, and no
    """
