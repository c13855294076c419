"""The options of a training, and their defaults."""

from dataclasses import dataclass
from typing import NamedTuple

TRAIN_COUNT = 1437
"""How many digits there are to learn from."""


class Family(NamedTuple):
    """One of the optimizers, as it is called and with a learning rate that suits the digits.

    Attributes:
        title: its name in tables and pictures.
        learning_rate: the default learning rate.
        has_factors: whether its rule tells a tensor's first axis from the others.
        memory: what it makes of the losses: "emotion", "drive" (v3.6.1), "pulse" (v3.9.1) or "pilot".
    """

    title: str
    learning_rate: float
    has_factors: bool = False
    memory: str = "emotion"


OPTIMIZERS = {
    "emo_pilot": Family("EmoPilot", 1e-2, memory="pilot"),
    "emo_pilot_airy": Family("EmoPilotAiry", 1e-2, has_factors=True, memory="pilot"),
    "emo_sens": Family("EmoSens", 3e-3),
    "emo_airy": Family("EmoAiry", 2e-3, has_factors=True),
    "emo_cats": Family("EmoCats", 1e-3),
    "emo_navi": Family("EmoNavi", 3e-3),
    "emo_fact": Family("EmoFact", 2e-3, has_factors=True),
    "emo_lynx": Family("EmoLynx", 1e-3),
    "emo_clan": Family("EmoClan", 1e-3, has_factors=True),
    "emo_neco": Family("EmoNeco", 5e-3),
    "emo_zeal": Family("EmoZeal", 1e-3, has_factors=True),
    # The learning rate of the third generation is a scope: its default suits every task.
    "emo_sens3": Family("EmoSens3", 1.0, memory="pulse"),
    "emo_airy3": Family("EmoAiry3", 1.0, memory="pulse"),
    "emo_cats3": Family("EmoCats3", 1.0, memory="pulse"),
    "emo_tion": Family("EmoTion", 1.0, memory="pulse"),
    "emo_void": Family("EmoVoid", 1.0, memory="pulse"),
    "emo_navi36": Family("EmoNavi36", 1e-3, memory="drive"),
    "emo_fact36": Family("EmoFact36", 1e-3, memory="drive"),
    "emo_lynx36": Family("EmoLynx36", 1e-3, memory="drive"),
}

FACTORS = {"emotion": "step_scale", "drive": "drive", "pulse": "pulse", "pilot": "courage"}
"""The name of the factor of a step in the emotion, drive, pulse or pilot of an optimizer."""

ADAMW_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""The learning rates that AdamW is tried with, beside the chosen optimizer; its default is among them."""
ADAMW_DEFAULT = 1e-3

MAX_NORM = 1.0
"""The norm to which the gradients of a step are clipped, all taken as one vector."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides how a training goes; the same settings give the same numbers.

    Attributes:
        optimizer: a name in `OPTIMIZERS`.
        learning_rate: the learning rate, > 0.
        use_shadow: whether the optimizer pulls the weights back to their shadow.
        epochs: how often every digit is seen, > 0.
        batch_size: how many digits make one step, > 0.
        seed: decides the first weights and the order of the digits.
        dtype: "float32" or "float64".
    """

    optimizer: str = "emo_pilot"
    learning_rate: float = OPTIMIZERS["emo_pilot"].learning_rate
    use_shadow: bool = False
    epochs: int = 30
    batch_size: int = 32
    seed: int = 0
    dtype: str = "float32"

    @property
    def memory(self) -> str:
        """What the optimizer makes of the losses (see `Family`)."""
        return OPTIMIZERS[self.optimizer].memory

    @property
    def is_pilot(self) -> bool:
        """Whether EmoPilot's scalars steer the optimizer, which has a courage and averaged weights."""
        return self.memory == "pilot"

    def options(self) -> dict[str, bool]:
        """Returns the options of the optimizer beside its learning rate."""
        return {} if self.is_pilot else {"use_shadow": self.use_shadow}
