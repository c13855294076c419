"""Optimizers by name, for configuration files and command lines."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from emo_optax._members.emo_airy import emo_airy
from emo_optax._members.emo_airy3 import emo_airy3
from emo_optax._members.emo_cats import emo_cats
from emo_optax._members.emo_cats3 import emo_cats3
from emo_optax._members.emo_clan import emo_clan
from emo_optax._members.emo_fact import emo_fact
from emo_optax._members.emo_fact36 import emo_fact36
from emo_optax._members.emo_lynx import emo_lynx
from emo_optax._members.emo_lynx36 import emo_lynx36
from emo_optax._members.emo_navi import emo_navi
from emo_optax._members.emo_navi36 import emo_navi36
from emo_optax._members.emo_neco import emo_neco
from emo_optax._members.emo_pilot import emo_pilot
from emo_optax._members.emo_pilot_airy import emo_pilot_airy
from emo_optax._members.emo_sens import emo_sens
from emo_optax._members.emo_sens3 import emo_sens3
from emo_optax._members.emo_tion import emo_tion
from emo_optax._members.emo_void import emo_void
from emo_optax._members.emo_zeal import emo_zeal
from emo_optax._members.ref_adamw_mini_schedule_free import ref_adamw_mini_schedule_free
from emo_shared.names import did_you_mean, plain_name


class Member(NamedTuple):
    """One member of the family.

    Attributes:
        name: the name for `create_optimizer`, the same in both packages.
        make: the function that makes the optimizer.
        generation: 1 to 3, the generation of the published code; `None` for any other member.
    """

    name: str
    make: Callable[..., optax.GradientTransformationExtraArgs]
    generation: int | None = None


MEMBERS = {
    member.name: member
    for member in (
        Member("emo_sens", emo_sens, generation=2),
        Member("emo_airy", emo_airy, generation=2),
        Member("emo_cats", emo_cats, generation=2),
        Member("emo_navi", emo_navi, generation=1),
        Member("emo_fact", emo_fact, generation=1),
        Member("emo_lynx", emo_lynx, generation=1),
        Member("emo_clan", emo_clan, generation=1),
        Member("emo_neco", emo_neco, generation=1),
        Member("emo_zeal", emo_zeal, generation=1),
        Member("emo_sens3", emo_sens3, generation=3),
        Member("emo_airy3", emo_airy3, generation=3),
        Member("emo_cats3", emo_cats3, generation=3),
        Member("emo_tion", emo_tion, generation=3),
        Member("emo_void", emo_void, generation=3),
        Member("emo_navi36", emo_navi36, generation=1),
        Member("emo_fact36", emo_fact36, generation=1),
        Member("emo_lynx36", emo_lynx36, generation=1),
        Member("emo_pilot", emo_pilot),
        Member("emo_pilot_airy", emo_pilot_airy),
        Member("ref_adamw_mini_schedule_free", ref_adamw_mini_schedule_free),
    )
}
"""The registry of the family by name. A new member is one more line (see docs/add_a_member.md)."""


def list_optimizers() -> list[str]:
    """Returns the names of all optimizers, in alphabetical order.

    Example:
        >>> import emo_optax
        >>> "emo_sens" in emo_optax.list_optimizers()
        True
    """
    return sorted(MEMBERS)


def create_optimizer(name: str, /, *args: Any, **options: Any) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer by its name.

    Args:
        name: one of `list_optimizers()`; capitals and underscores don't matter, so that
            `"EmoSens"` is `"emo_sens"`.
        *args: positional arguments of the optimizer, such as the learning rate.
        **options: keyword arguments of the optimizer.

    Returns:
        The optimizer.

    Raises:
        ValueError: for an unknown name, or a hyperparameter out of its range.
        TypeError: for an option that the optimizer does not have, or a name that is no string.

    Example:
        >>> import emo_optax
        >>> optimizer = emo_optax.create_optimizer("emo_sens", 1e-3, use_shadow=True)
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
    return MEMBERS[known[plain]].make(*args, **options)
