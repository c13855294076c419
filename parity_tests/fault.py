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
AIRY_PILOT = "EmoPilotAiry"
REF_FILE = "ref_adamw_mini_schedule_free"

_V1 = "shadow_ratio=v1.0"
SHOWN_WITH = {
    "a non-finite loss enters as 0": "not_finite_first",
    "held not counted": "not_finite_first",
    "stop without absolute value": "fading",
    "stop bound": "fading",
    "stop one step late": "constant",
    "warm-up that fades": "lr=0.001",
    "courage where the loss rises": "rising",
    "ceiling of small parameters": "fading",
    "a loss that is not finite is not skipped": "not_finite_first",
    "theta without emotion": "theta",
    "theta off by 1 %": "theta",
    "ratio's bound by 1 %": "fading",
    "ratio of v1.0": _V1,
    "branch of v1.0": _V1,
    "no absolute decay": "absolute",
    "decay not divided": "decoupled",
    "bound of Lynx": _V1,
    "bound of the first step": "not_finite_first",
    "what was kept back is forgotten": "kahan",
    "old draws": "stochastic",
    "bound of level 2": "surging",
    "strength at level 2": "surging",
    "later generations: the bound of the shadow": _V1,
    "later generations: the level that settles": _V1,
    "later generations: no sign": _V1,
    "later generations: emoDrive of a far scalar": _V1,
    "later generations: the limit of spikes": "spike_limit",
}
"""For faults that few cases show: words in the description of these cases. Other cases are not tried."""
