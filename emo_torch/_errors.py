"""Errors that say what to do next."""

LOSS_MISSING = (
    "emo_torch reads the loss of every step, and none was given. Pass it with `opt.step(loss=loss)` "
    "(also `scaler.step(opt, loss=loss)`); or call `opt.watch(loss)` before the backward pass or "
    "`opt.observe(loss)` after it, and no `zero_grad` from there to the step; or give a closure that "
    "returns it: `opt.step(closure)`, and `opt.step(lambda: loss.detach())` where a wrapper hands on "
    "nothing but a closure. `emo_torch.integrations` does it for Accelerate, Hugging Face's Trainer and "
    "Lightning. Nothing was changed. (A step in which every group's lr is 0 needs no loss and changes "
    "nothing.)"
)

NOT_A_CLOSURE = (
    "The first argument of `step` is a closure, a function that computes the loss, and is {kind}. "
    "Pass a loss by its name: `opt.step(loss=loss)`."
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
