"""Errors that say what to do next."""

_DROPPED = (
    "Call `update(grads, state, params, value=loss)`. If you do so already, a wrapper around the optimizer "
    "drops these arguments. These wrappers do: optax.lookahead, optax.contrib.sam, "
    "optax.contrib.split_real_and_imaginary, optax.contrib.galore, "
    "optax.MultiSteps.gradient_transformation() inside a chain, a plain "
    "optax.GradientTransformation(opt.init, opt.update), and Flax's TrainState.apply_gradients. "
    "For a wrapper of Optax, write `emo_optax.bind_extra_args(lambda inner: "
    "optax.lookahead(inner, 5, 0.5), opt)`, with your wrapper in place of optax.lookahead. "
    "Replace a nested MultiSteps by "
    "`emo_optax.accumulate(opt, k)`, and Flax's TrainState by `emo_optax.integrations.flax.TrainState`."
)

LOSS_MISSING = f"emo_optax reads the loss of every step, and none was given. {_DROPPED}"

PARAMS_MISSING = (
    "emo_optax needs the current parameters (for weight decay, the shadow and the updates' dtypes), "
    f"and `params` was not given. {_DROPPED}"
)

EMOTION_MISSING = (
    "A piece made with `shared=True` takes the emotion of the `emo_optax.emotional(...)` or "
    "`emo_optax.share_emotion(...)` around it, and there is none. Wrap the piece in one of them, or leave "
    "out `shared=True`: then the piece keeps an emotion of its own."
)

STATE_OF_ANOTHER = (
    "The state is not one of this optimizer for these parameters: {problem}. Pass the state that `init` "
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


class CheckpointError(ValueError):
    """A file is damaged, of another layout, or does not hold what is asked of it.

    Example:
        >>> import pathlib, tempfile
        >>> import emo_optax
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.safetensors"
        >>> _ = path.write_bytes(b"")
        >>> try:
        ...     emo_optax.load_arrays(path)
        ... except emo_optax.CheckpointError as error:
        ...     print(str(error).split(": ")[1])
        it was cut off or altered since. Nothing was loaded; take an earlier one, or a copy.
    """
