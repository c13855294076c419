"""Faults in the Python code of both packages, for `parity_tests.faults`."""

from collections.abc import Iterator

from parity_tests.fault import PILOT, REF, REF_FILE, Fault
from parity_tests.faults_of_eight_bit import FAULTS_OF_EIGHT_BIT
from parity_tests.faults_of_later import FAULTS_OF_LATER


def _defaults(package: str, member: str) -> Iterator[Fault]:
    kind = "float" if package == "emo_torch" else "jax.typing.ArrayLike"
    for name, value, wrong in (
        ("short_factor", "0.3", "0.303"),
        ("long_factor", "0.01", "0.0101"),
        ("gain", "5.0", "5.05"),
        ("shadow_rate", "0.05", "0.0505"),
    ):
        yield Fault(
            package,
            member,
            f"{name}: {kind} = {value}",
            f"{name}: {kind} = {wrong}",
            f"{name} off by 1 %",
            "EmoSens" if member == "emo_sens" else "EmoAiry",
        )


FAULTS: tuple[Fault, ...] = (
    *FAULTS_OF_LATER,
    *FAULTS_OF_EIGHT_BIT,
    *_defaults("emo_optax", "emo_sens"),
    *_defaults("emo_torch", "emo_airy"),
    # Emotion.
    Fault("emo_optax", "emotion", "* (short - long))", "* (long - short))", "sign of the scalar"),
    Fault("emo_torch", "emotion", "if arrays.felt.item() != 0:", "if True:", "averages start at 0"),
    Fault(
        *("emo_torch", "emotion", "arrays.older[...] = arrays.newer", "arrays.newer[...] = arrays.older"),
        "wrong window",
    ),
    Fault("emo_optax", "emotion", "is_finite & jnp", "jnp", "a non-finite loss enters as 0"),
    Fault("emo_torch", "emotion", "count.item() + 1", "count.item() + is_felt", "held not counted"),
    Fault("emo_optax", "early_stop", "jnp.abs(history)", "history", "stop without absolute value"),
    Fault("emo_torch", "early_stop", "mean_below: float = 0.05", "mean_below: float = 0.02", "stop bound"),
    Fault("emo_torch", "early_stop", "(felt >= WINDOW)", "(felt > WINDOW)", "stop one step late"),
    # EmoPilot.
    Fault(
        "emo_optax",
        "gate",
        "jnp.maximum(0.05, 1.0 / step",
        "jnp.maximum(0.06, 1.0 / step",
        "gate's average",
        PILOT,
    ),
    Fault(
        "emo_torch",
        "gate",
        "most = limit * average",
        "most = 1.5 * limit * average",
        "gate's limit",
        PILOT,
    ),
    Fault(
        "emo_optax",
        "courage",
        "(z + 0.4 * fall)",
        "(z + 0.5 * fall)",
        "growth where the loss falls",
        PILOT,
    ),
    Fault("emo_torch", "courage", "USUAL_STEP = 0.008", "USUAL_STEP = 0.009", "warm-up", PILOT),
    Fault("emo_optax", "courage", "+ 20.0) * jnp", "+ 21.0) * jnp", "warm-up that fades", PILOT),
    Fault("emo_torch", "courage", "-0.2 * rise", "-0.21 * rise", "courage where the loss rises", PILOT),
    Fault("emo_torch", "courage", "0.05 * (square - ", "0.06 * (square - ", "usual agreement", PILOT),
    Fault(
        "emo_optax",
        "emo_pilot",
        "steer(\n            old,",
        "steer(\n            with_agreement(old, total),",
        "the courage uses the agreement of this step",
        PILOT,
    ),
    Fault(
        "emo_torch",
        "_members/emo_pilot.py",
        "steer(\n            before,",
        "steer(\n            with_agreement(before, total),",
        "the courage uses the agreement of this step",
        PILOT,
    ),
    Fault("emo_optax", "ceiling", "0.08 * jnp.clip", "0.081 * jnp.clip", "ceiling off by 1 %", PILOT),
    Fault(
        "emo_torch",
        "ceiling",
        ".clamp(0.02, 0.1)",
        ".clamp(0.03, 0.1)",
        "ceiling of small parameters",
        PILOT,
    ),
    Fault(
        "emo_optax",
        "relative_emotion",
        "0.3 * (limited - short)",
        "0.31 * (limited - short)",
        "short",
        PILOT,
    ),
    Fault(
        "emo_torch",
        "relative_emotion",
        "0.3 * (limited - short)",
        "0.31 * (limited - short)",
        "short",
        PILOT,
    ),
    Fault("emo_optax", "averaged_weights", "9.0 / (", "10.0 / (", "window of the averaged weights", PILOT),
    Fault("emo_torch", "averaged_weights", "9.0 / (", "8.0 / (", "window of the averaged weights", PILOT),
    Fault(
        "emo_optax",
        "emo_pilot",
        "v + (1.0 - hyperparameter(b2",
        "v + (1.01 - hyperparameter(b2",
        "nu",
        PILOT,
    ),
    Fault(
        "emo_torch",
        "pilot_ways",
        "steps = batch.steps + 1.0",
        "steps = batch.steps + 2.0",
        "correction",
        PILOT,
    ),
    Fault(
        "emo_torch",
        "_pieces/pilot.py",
        "loss.isfinite() & ",
        "",
        "a loss that is not finite is not skipped",
        PILOT,
    ),
    # Shadow-effect.
    Fault("emo_optax", "shadow_effect", "1.0 - jnp.abs(scalar)", "1.0 - scalar", "scale without absolute"),
    Fault("emo_torch", "shadow_effect", "1.0 - scalar.abs()", "1.0 - 1.01 * scalar.abs()", "scale by 1 %"),
    Fault("emo_optax", "shadow_effect", "(1.0 + jnp.abs(scalar))", "1.0", "theta without emotion"),
    Fault(
        "emo_torch",
        "shadow_effect",
        "return gradient.abs() >= tolerance * tolerance * tolerance",
        "return gradient.abs() >= 1.03 * tolerance * tolerance * tolerance",
        "theta off by 1 %",
    ),
    Fault(
        "emo_optax",
        "shadow_effect",
        "return bound <= jnp.abs(gradient)",
        "return bound <= gradient",
        "filter without absolute value",
    ),
    Fault(
        "emo_torch",
        "shadow_effect",
        "tolerance * tolerance.sqrt()",
        "tolerance",
        "filter of vectors",
        "EmoAiry",
    ),
    Fault(
        "emo_optax",
        "shadow_effect",
        "jnp.mean(gradient * -",
        "jnp.min(gradient * -",
        "columns by their largest element",
        "EmoAiry",
    ),
    Fault(
        "emo_torch",
        "shadow_effect",
        "range(1, squares.ndim)",
        "range(1, 2)",
        "rows over one axis only",
        "EmoAiry",
    ),
    # Shadow-system.
    Fault("emo_optax", "shadow_system", "size > 0.1, size", "size > 0.101, size", "ratio's bound by 1 %"),
    Fault("emo_torch", "shadow_system", "0.7 + 0.2 * scalar", "0.7 - 0.2 * scalar", "ratio of v1.0"),
    Fault("emo_optax", "shadow_system", "scalar < -0.6, 0.1", "scalar < 0.6, 0.1", "branch of v1.0"),
    Fault("emo_torch", "shadow_system", "param * (1.0 - ratio)", "param * 1.0", "blend sums over 1"),
    Fault(
        "emo_optax",
        "shadow_system",
        "jnp.where(state.exists, shadow + rate * (blended - shadow), blended)",
        "jnp.where(state.exists, shadow + rate * (blended - shadow), 0.95 * blended)",
        "shadow is not a copy",
    ),
    Fault("emo_torch", "shadow_system", "exists.logical_or_(wakes)", "exists.fill_(True)", "wakes at once"),
    # Weight decay.
    Fault(
        "emo_optax",
        "emotional",
        'step, decay["decoupled"],',
        'decay["decoupled"], step,',
        "decay before the rule",
    ),
    Fault(
        "emo_torch",
        "ways",
        'if mode == "absolute":\n            add_weight_decay',
        'if mode == "never":\n            add_weight_decay',
        "no absolute decay",
    ),
    Fault("emo_optax", "weight_decay", "dtype) / divisor_now", "dtype)", "decay not divided", "EmoCats"),
    Fault("emo_torch", "weight_decay", "update.add_(param, alpha=weight_decay)", "pass", "no decay"),
    # Rules.
    Fault("emo_optax", "_rules/adam.py", "m / (jnp.sqrt(v) +", "m / jnp.sqrt(v +", "eps under the root"),
    Fault(
        "emo_torch",
        "_rules/adam.py",
        "addcmul_(grad, grad, value=1.0 - b2)",
        "addcmul_(grad, grad)",
        "no 1 - b2",
    ),
    Fault(
        "emo_optax",
        "_rules/lion.py",
        "jnp.sign(interpolate(g, m, moved, b1, b2))",
        "jnp.sign(g)",
        "no momentum",
        "EmoCats",
    ),
    Fault(
        "emo_torch",
        "_rules/lion.py",
        "update = exp_avg.mul(b1).add_(grad, alpha=1.0 - b1).sign_()\n    average(exp_avg, grad, b2)",
        "average(exp_avg, grad, b2)\n    update = exp_avg.mul(b1).add_(grad, alpha=1.0 - b1).sign_()",
        "momentum moved before the step",
        "EmoCats",
    ),
    Fault(
        "emo_optax",
        "_rules/factors.py",
        "g / (jnp.sqrt(r * c)",
        "g / (1.01 * jnp.sqrt(r * c)",
        "factors by 1 %",
        "EmoAiry",
    ),
    Fault(
        "emo_torch",
        "_rules/factors.py",
        "average(row, (row_mean + eps).sqrt_(), b1)",
        "average(row, row_mean + eps, b1)",
        "factor without root",
        "EmoAiry",
    ),
    Fault(
        "emo_optax",
        "_rules/signs.py",
        "sign == jnp.sign(gradient)",
        "gradient == gradient",
        "no caution",
        "EmoNeco",
    ),
    Fault(
        "emo_torch",
        "_rules/signs.py",
        "norm_of(grad) + eps",
        "norm_of(grad, 1.0) + eps",
        "another norm",
        "EmoNeco",
    ),
    Fault(
        "emo_optax",
        "_rules/signs.py",
        "mixed / (1.0 + jnp",
        "mixed / (1.01 + jnp",
        "softsign by 1 %",
        "EmoNeco",
    ),
    # Switches.
    Fault(
        "emo_torch",
        "switch",
        "old.copy_(torch.where(is_chosen, news[name], old))",
        "pass",
        "no moving",
        "EmoClan",
    ),
    Fault(
        "emo_torch",
        "switch",
        "(is_chosen, news[name], old)",
        "(is_chosen | True, news[name], old)",
        "all move",
        "EmoClan",
    ),
    Fault(
        "emo_optax",
        "switch",
        "update(updates, state.inner_state, moved,",
        "update(updates, state.inner_state, params,",
        "decay before the first step",
        "EmoZeal",
    ),
    Fault("emo_torch", "emo_clan", "(size > 0.6)", "(size > 0.7)", "bound of Lynx", "EmoClan"),
    Fault(
        "emo_optax", "emo_clan", "(0.9, 0.99)", "(0.9, 0.999)", "Lynx with Navi's decay rates", "EmoClan"
    ),
    Fault("emo_torch", "emo_neco", "(size <= 0.5)", "(size <= 0.4)", "bound of softsign", "EmoNeco"),
    Fault("emo_optax", "emo_zeal", "(size > 0.1)", "(size > 0.15)", "bound of the first step", "EmoZeal"),
    Fault("emo_torch", "emo_zeal", "least_ndim=2", "least_ndim=1", "a first step for vectors", "EmoZeal"),
    # The first generation's defaults.
    Fault(
        "emo_optax",
        "emo_navi",
        "use_shadow: bool = True",
        "use_shadow: bool = False",
        "Navi's shadow off",
        "EmoNavi",
    ),
    Fault("emo_torch", "emo_lynx", "= (0.9, 0.99)", "= (0.9, 0.98)", "Lynx's decay rate", "EmoLynx"),
    Fault("emo_torch", "emo_fact", "eps: float = 1e-8", "eps: float = 2e-8", "Fact's eps", "EmoFact"),
    # Rounding.
    Fault(
        "emo_torch",
        "rounding",
        "rest, wanted - (moved - before)",
        "rest, update - (moved - before)",
        "what was kept back is forgotten",
        "EmoSens",
    ),
    Fault(
        "emo_optax", "rounding", "steps, count, seed", "state.steps, count, seed", "old draws", "EmoSens"
    ),
    # RefAdamWMiniScheduleFree.
    Fault("emo_torch", "divergence", "(ratio > 1.5)", "(ratio > 1.8)", "bound of level 2", REF),
    Fault("emo_optax", "divergence", "worst == 2, 0.8", "worst == 2, 0.79", "strength at level 2", REF),
    Fault("emo_optax", "smoothed_norm", "share * norm", "1.01 * share * norm", "norm by 1 %", REF),
    Fault("emo_torch", "smoothed_norm", "norm + 1e-12", "norm + 1e-3", "norm without its zero", REF),
    Fault(
        "emo_torch", "ref_ways", "torch.clamp(moved, -bound, bound)", "moved", "injection unbounded", REF
    ),
    Fault(
        "emo_optax",
        REF_FILE,
        "(1.0 - share) * m + share * weight",
        "m + share * weight",
        "injection sums over 1",
        REF,
    ),
)
