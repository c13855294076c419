"""Faults in the later generations and in EmoPilot, for `parity_tests.faults`."""

from parity_tests.fault import Fault

FAULTS_OF_LATER = tuple(
    Fault(f"emo_{side}", file, old, new, f"later generations: {what}", by)
    for side, file, old, new, what, by in (
        ("optax", "trust", "(0.3, 0.05, 0.01)", "(0.3, 0.055, 0.01)", "the medium average", "EmoSens3"),
        ("optax", "trust", "(scalar) > 0.625", "(scalar) > 0.999", "the bound of the shadow", "EmoNavi36"),
        ("optax", "drive", "8.0 * jnp.abs", "8.08 * jnp.abs", "emoDrive longer by 1 %", "EmoNavi36"),
        ("optax", "pulse", "0.97, 0.7])", "0.97, 0.71])", "the course", "EmoSens3"),
        ("optax", "pulse", "settled = 0.8 *", "settled = 0.81 *", "the level that settles", "EmoSens3"),
        ("optax", "sign_rules", "0.03), rest)", "0.03), 2.0 * rest)", "the least freshness", "EmoTion"),
        ("optax", "sign_rules", "HELD_STEPS = 55", "HELD_STEPS = 5", "the norm let go early", "EmoVoid"),
        (
            "torch",
            "trust",
            "copysign(1.0 - scalar.abs(), scalar)",
            "abs(1.0 - scalar.abs())",
            "emoDrive by a trust without a sign",
            "EmoNavi36",
        ),
        (
            "torch",
            "pulse_in_place",
            "np.copysign(real(1.0) - abs(scalar), scalar)",
            "abs(real(1.0) - abs(scalar))",
            "no sign",
            "EmoSens3",
        ),
        (
            "torch",
            "trust",
            "zero, 0.1 * trust",
            "zero, 0.11 * trust",
            "the pace of the shadow",
            "EmoNavi36",
        ),
        (
            "torch",
            "drive",
            "8.0 * trust.abs()",
            "8.08 * trust.abs()",
            "emoDrive longer by 1 %",
            "EmoFact36",
        ),
        ("torch", "drive", "0.75, 1.0 - size", "0.75, size", "emoDrive of a far scalar", "EmoLynx36"),
        ("torch", "pulse_in_place", "real(1e-4)", "real(1.01e-4)", "a pulse longer by 1 %", "EmoAiry3"),
        (
            "torch",
            "pulse_in_place",
            "real(spike_limit)",
            "real(1.1 * spike_limit)",
            "the limit of spikes",
            "EmoCats3",
        ),
        (
            "torch",
            "pulse_in_place",
            "own.unit[()] == 0.0",
            "own.unit[()] >= 0.0",
            "the unit moves",
            "EmoSens3",
        ),
        ("torch", "sign_rules", "clamp(min=1.0 - b1)", "clamp(min=0.0)", "no least freshness", "EmoTion"),
        (
            "torch",
            "sign_rules",
            "is_held & ~is_first",
            "is_held & is_first",
            "the norm not held",
            "EmoVoid",
        ),
        (
            "torch",
            "ways",
            "weight.mul_(feeling.weights",
            "weight.clone().mul_(feeling.weights",
            "no scaling",
            "EmoVoid",
        ),
    )
)
