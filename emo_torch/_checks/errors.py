"""Errors, each with its remedy."""

LOSS_MISSING = (
    "emo_torch reads the loss of every step, and none was given. Pass it with `opt.step(loss=loss)` "
    "(with a gradient scaler: `scaler.step(opt, loss=loss)`); or call `opt.watch(loss)` before the "
    "backward pass or `opt.observe(loss)` after it, without a `zero_grad` between that and the step; or "
    "give a closure that returns the loss: `opt.step(closure)`, for example "
    "`opt.step(lambda: loss.detach())`. A trainer or a wrapper that calls `step` may drop the loss, and "
    "may drop the value of a closure: call `emo_torch.unwrap(opt).watch(loss)` before the backward pass. "
    "`emo_torch.integrations` has ready-made code for Accelerate, Hugging Face's Trainer and Lightning. "
    "Around a trainer that you do not own, write `with emo_torch.listen(opt): trainer.fit()`, or run the "
    "script by `python -m emo_torch.launch`. "
    "Nothing was changed. (A step needs no loss if the lr of every group is 0, or if its closure returns "
    "None and no parameter has a gradient: such a step changes nothing.)"
)

HALF_HEARD = (
    "The listener of emo_torch may have heard only a part of the loss: {why}. Pass the loss of the step: "
    "`opt.step(loss=loss)`, `opt.watch(loss)` before the backward pass, or `opt.observe(loss)` before the "
    "step. Nothing was changed."
)

NOT_A_CLOSURE = (
    "The first argument of `step` is a closure, a function that computes the loss, and is {kind}. "
    "Pass a loss by its name: `opt.step(loss=loss)`."
)

STATE_WITHOUT_CHANGES = (
    "The state has the scalars of Autopilot, and lacks the last changes and the averages of the weights. "
    "PyTorch leaves them out when it reads a distributed checkpoint with "
    "StateDictOptions(flatten_optimizer_state_dict=True): save and load without this option. Nothing was "
    "changed."
)

WITHOUT_VALUES = (
    "{owner} reads a norm of all {kind} at every step, and one is on the device 'meta', where tensors have "
    "no values. Give the parameters values first: `model.to_empty(device='cpu')`, then initialize them or "
    "load a checkpoint, and make a new optimizer. Nothing was changed."
)


class LossMissingError(ValueError):
    """A step was asked for without the loss that steers it.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = emo_torch.EmoSens([weight], lr=1e-3)
        >>> weight.sum().backward()
        >>> try:
        ...     optimizer.step()
        ... except emo_torch.LossMissingError as error:
        ...     print(str(error)[:55])
        emo_torch reads the loss of every step, and none was gi
    """


class EmoWarning(UserWarning):
    """A setting is allowed, and is probably meant for another optimizer.

    Example:
        >>> import warnings
        >>> import emo_torch
        >>> warnings.filterwarnings("ignore", category=emo_torch.EmoWarning)  # Where it is meant so.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
