"""Faults in moments of 8 bits, for `parity_tests.faults`."""

from parity_tests.fault import Fault

FAULTS_OF_EIGHT_BIT = tuple(
    Fault(f"emo_{side}", file, old, new, f"moments in 8 bits: {what}", by, is_coded=True)
    for side, file, old, new, what, by in (
        (
            "optax",
            "eight_bit",
            "jnp.max(jnp.abs(rows)",
            "jnp.max((rows)",
            "a scale without size",
            "EmoCats",
        ),
        (
            "optax",
            "adam",
            "(False, True))",
            "(False, False))",
            "table",
            "EmoSens",
        ),
        ("torch", "eight_bit", "codes.clamp(min=1)", "codes", "a small square is 0", "EmoSens"),
        (
            "torch",
            "moments",
            ".copy_(scale)",
            ".copy_(scale.to(torch.bfloat16))",
            "narrow scales",
            "EmoCats",
        ),
    )
)
