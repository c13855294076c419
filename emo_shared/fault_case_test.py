"""One fault of the fault campaigns, as data, and the members on whom faults are tried."""

from typing import Any, NamedTuple

BASIC = ("emo_sens", "emo_airy", "emo_cats")
FIRST_GENERATION = ("emo_navi", "emo_fact", "emo_lynx")
SWITCHING = ("emo_clan", "emo_neco", "emo_zeal")
REF = ("ref_adamw_mini_schedule_free",)
EMOTIONAL = (*BASIC, *FIRST_GENERATION, *SWITCHING)
EVERY = (*EMOTIONAL, *REF)
DIVIDING = ("emo_cats", "emo_lynx", "emo_neco")


class Refused(NamedTuple):
    """The end is an error.

    Attributes:
        error: its type.
        message: a piece of it.
    """

    error: type[Exception]
    message: str


class Case(NamedTuple):
    """One fault.

    Attributes:
        name: of the fault, one of its kind.
        given: what is given wrongly, in a dictionary by the name of the place.
        end: `Refused`, or the name of a behaviour (see `BEHAVIOURS`).
        members: on whom it is tried.
    """

    name: str
    given: Any
    end: Any
    members: tuple[str, ...] = BASIC


NAN, INF = float("nan"), float("inf")
