"""Optimizers by name, for configuration files and command lines."""

from typing import Any, NamedTuple

from torch.optim.optimizer import ParamsT

from emo_shared.names import did_you_mean, plain_name
from emo_torch._members.emo_airy import EmoAiry
from emo_torch._members.emo_airy3 import EmoAiry3
from emo_torch._members.emo_cats import EmoCats
from emo_torch._members.emo_cats3 import EmoCats3
from emo_torch._members.emo_clan import EmoClan
from emo_torch._members.emo_fact import EmoFact
from emo_torch._members.emo_fact36 import EmoFact36
from emo_torch._members.emo_lynx import EmoLynx
from emo_torch._members.emo_lynx36 import EmoLynx36
from emo_torch._members.emo_navi import EmoNavi
from emo_torch._members.emo_navi36 import EmoNavi36
from emo_torch._members.emo_neco import EmoNeco
from emo_torch._members.emo_pilot import EmoPilot
from emo_torch._members.emo_pilot_airy import EmoPilotAiry
from emo_torch._members.emo_sens import EmoSens
from emo_torch._members.emo_sens3 import EmoSens3
from emo_torch._members.emo_tion import EmoTion
from emo_torch._members.emo_void import EmoVoid
from emo_torch._members.emo_zeal import EmoZeal
from emo_torch._members.ref_adamw_mini_schedule_free import RefAdamWMiniScheduleFree
from emo_torch._step.loss_optimizer import LossOptimizer


class Member(NamedTuple):
    """One member of the family.

    Attributes:
        name: the name for `create_optimizer`, the same in both packages.
        make: the class.
        generation: 1 to 3, the generation of the published code; `None` for any other member.
    """

    name: str
    make: type[LossOptimizer]
    generation: int | None = None


MEMBERS = {
    member.name: member
    for member in (
        Member("emo_sens", EmoSens, generation=2),
        Member("emo_airy", EmoAiry, generation=2),
        Member("emo_cats", EmoCats, generation=2),
        Member("emo_navi", EmoNavi, generation=1),
        Member("emo_fact", EmoFact, generation=1),
        Member("emo_lynx", EmoLynx, generation=1),
        Member("emo_clan", EmoClan, generation=1),
        Member("emo_neco", EmoNeco, generation=1),
        Member("emo_zeal", EmoZeal, generation=1),
        Member("emo_sens3", EmoSens3, generation=3),
        Member("emo_airy3", EmoAiry3, generation=3),
        Member("emo_cats3", EmoCats3, generation=3),
        Member("emo_tion", EmoTion, generation=3),
        Member("emo_void", EmoVoid, generation=3),
        Member("emo_navi36", EmoNavi36, generation=1),
        Member("emo_fact36", EmoFact36, generation=1),
        Member("emo_lynx36", EmoLynx36, generation=1),
        Member("emo_pilot", EmoPilot),
        Member("emo_pilot_airy", EmoPilotAiry),
        Member("ref_adamw_mini_schedule_free", RefAdamWMiniScheduleFree),
    )
}
"""The registry of the family by name. A new member is one more line (see docs/add_a_member.md)."""


def list_optimizers() -> list[str]:
    """Returns the names of all optimizers, in alphabetical order.

    Example:
        >>> import emo_torch
        >>> "emo_sens" in emo_torch.list_optimizers()
        True
    """
    return sorted(MEMBERS)


def create_optimizer(name: str, /, params: ParamsT, *args: Any, **options: Any) -> LossOptimizer:
    """Makes an optimizer by its name.

    Args:
        name: one of `list_optimizers()`; capitals and underscores don't matter, so that
            `"EmoSens"` is `"emo_sens"`.
        params: the parameters, or groups of parameters.
        *args: further positional arguments of the optimizer, such as the learning rate.
        **options: keyword arguments of the optimizer.

    Returns:
        The optimizer.

    Raises:
        ValueError: for an unknown name, or a hyperparameter out of its range.
        TypeError: for an option that the optimizer does not have, or a name that is no string.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> params = torch.nn.Linear(2, 1).parameters()
        >>> optimizer = emo_torch.create_optimizer("emo_sens", params, lr=1e-3, use_shadow=True)
    """
    if not isinstance(name, str):
        raise TypeError(f"The name of an optimizer is needed, and this is {name!r}")
    known = {plain_name(each): each for each in MEMBERS}
    plain = plain_name(name)
    if plain not in known:
        raise ValueError(
            f"There is no optimizer named {name!r}{did_you_mean(name, MEMBERS)} "
            f"Known are {', '.join(list_optimizers())}."
        )
    return MEMBERS[known[plain]].make(params, *args, **options)
