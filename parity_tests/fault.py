"""One planted fault: a change of one place in the source text of a package."""

from typing import NamedTuple


class Fault(NamedTuple):
    """One change of one place.

    Attributes:
        package: "emo_optax" or "emo_torch".
        file: the name of the module, in whatever folder of the package; or a path inside of the package.
        old: the source text, which occurs once.
        new: the text in its place.
        what: the fault in words.
        by: the member that shows it; any may, where it is empty.
        is_coded: whether only cases with moments in 8 bits can show it.
    """

    package: str
    file: str
    old: str
    new: str
    what: str
    by: str = ""
    is_coded: bool = False


REF = "RefAdamWMiniScheduleFree"
PILOT = "EmoPilot"
REF_FILE = "ref_adamw_mini_schedule_free"
