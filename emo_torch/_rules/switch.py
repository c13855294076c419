"""Switching between rules by emotion."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Moments = dict[str, Tensor]


def switch_by_emotion(
    grad: Tensor,
    moments: Sequence[Moments],
    rules: Sequence[Callable[[Tensor, Moments], Tensor]],
    chosen: Tensor,
) -> Tensor:
    r"""Passes a gradient to one of several rules, without a host sync.

    .. math:: u = rule_{k(s)}(g)

    Only the moments of the chosen rule move. A step must not wait until the device tells which rule is
    chosen, so all rules are computed, on copies of the moments.

    Args:
        grad: the gradient, any shape, float32 or wider.
        moments: for each rule its moments by name, moved in place; the same for rules that share
            them.
        rules: functions of a gradient and of moments, which they move, to an update.
        chosen: k(s), the index of a rule, a whole number of shape `[]`; taken to the nearest one.

    Returns:
        The update of the chosen rule.

    Raises:
        ValueError: without a rule.

    Example:
        >>> import torch
        >>> from emo_torch import scale_by_lion, switch_by_emotion
        >>> rules = (lambda grad, moments: grad, lambda grad, moments: scale_by_lion(grad, **moments))
        >>> moments = ({}, {"exp_avg": torch.zeros(2)})
        >>> for chosen in (0, 1):
        ...     grad = torch.tensor([3.0, -2.0])
        ...     print(switch_by_emotion(grad, moments, rules, torch.tensor(chosen)))
        tensor([ 3., -2.])
        tensor([ 1., -1.])

    Source: EmoClan and EmoNeco v2.0 by muooon.
    """
    states = [[own] for own in moments]
    many = [_for_many(rule) for rule in rules]
    (update,) = multi_tensor_switch_by_emotion([grad], states, many, chosen)
    return update


def _for_many(
    rule: Callable[[Tensor, Moments], Tensor],
) -> Callable[[list[Tensor], list[Moments]], list[Tensor]]:
    return lambda grads, moments: [rule(*pair) for pair in zip(grads, moments, strict=True)]


def multi_tensor_switch_by_emotion(
    grads: list[Tensor],
    moments: Sequence[list[Moments]],
    rules: Sequence[Callable[[list[Tensor], list[Moments]], list[Tensor]]],
    chosen: Tensor,
) -> list[Tensor]:
    """Like `switch_by_emotion`, for many tensors of one device and dtype."""
    if not rules:
        raise ValueError("switch_by_emotion needs at least one rule, and none was given")
    chosen = chosen.clamp(0, len(rules) - 1)
    # All are copied before any is moved: rules may share moments.
    copies = [[{name: old.clone() for name, old in each.items()} for each in own] for own in moments]
    updates = [torch.zeros_like(grad) for grad in grads]
    for index, (rule, own, moved) in enumerate(zip(rules, moments, copies, strict=True)):
        is_chosen = chosen == index
        # `where`, not a product: the update of a rule that is not chosen may be infinite.
        taken = zip(rule(grads, moved), updates, strict=True)
        updates = [torch.where(is_chosen, new, before) for new, before in taken]
        for olds, news in zip(own, moved, strict=True):
            for name, old in olds.items():
                old.copy_(torch.where(is_chosen, news[name], old))
    return updates
