"""Faults in the compiled code, for `parity_tests.faults`."""

from parity_tests.fault import AIRY_PILOT, REF, Fault

FAULTS_IN_C = tuple(
    Fault("emo_torch", f"_kernels/cpu_{file}.h", old, new, f"compiled: {what}", by)
    for file, old, new, what, by in (
        (
            "elements",
            "+ grad * grad * c2",
            "+ grad * c2",
            "no square in the second moment",
            "EmoSens",
        ),
        (
            "run",
            "(REAL)(1.0 - rule->b1)",
            "(REAL)(1.0 - rule->b2)",
            "the weight of another moment",
            "EmoSens",
        ),
        (
            "elements",
            "        update *= scale;\n        weight",
            "        weight",
            "no step scale",
            "EmoSens",
        ),
        ("run", "*job->shadows_exist[tensor] = 1;", ";", "the shadow never exists", "EmoSens"),
        (
            "factors",
            "(double)rows) + signal->eps",
            "(double)columns) + signal->eps",
            "a wrong axis",
            "EmoAiry",
        ),
        (
            "factors",
            "SQRT(mean) * signal->c1;\n        int",
            "mean * signal->c1;\n        int",
            "no root",
            "EmoAiry",
        ),
        (
            "elements",
            "NAME(sign_of)(grad) ? direction : 0;\n            else",
            "NAME(sign_of)(grad) ? direction : direction;\n            else",
            "no caution",
            "EmoNeco",
        ),
        (
            "factors",
            "cautious) * lr",
            "cautious) * lr * (REAL)1.01",
            "the first step longer by 1 %",
            "EmoZeal",
        ),
        (
            "signs",
            "firsts[index] * rest + direction * share",
            "firsts[index] * rest + direction",
            "no share of the gradient",
            "EmoTion",
        ),
        ("signs", "params[index] * weights;", "params[index];", "no factor of the weights", "EmoVoid"),
        (
            "pilot",
            "products += grad * last;",
            "products += grad * grad;",
            "no direction in the agreement",
            "EmoPilot",
        ),
        (
            "pilot",
            "squares += params[index] * params[index];",
            "squares += params[index];",
            "no squares of the weights",
            "EmoPilot",
        ),
        (
            "pilot",
            "(params[index] - averages[index]) * rate",
            "(params[index] - averages[index])",
            "the average forgets",
            "EmoPilot",
        ),
        (
            "pilot_factors",
            "factors[row] / mean * flight",
            "factors[row] * flight",
            "rows that are not divided by their mean",
            AIRY_PILOT,
        ),
        (
            "pilot_factors",
            "sums[index] * share * gate + LEAST_SQUARE",
            "sums[index] * share * gate * (REAL)1.01 + LEAST_SQUARE",
            "the means of squares are larger by 1 %",
            AIRY_PILOT,
        ),
        (
            "pilot_factors",
            "first * flight.corrections.first * flight.length",
            "first * flight.length",
            "the momentum is not corrected",
            AIRY_PILOT,
        ),
        (
            "pilot_run",
            "return size < 1 ? 1 : 1 / size;",
            "return size < 2 ? 1 : 1 / size;",
            "clipped u",
            AIRY_PILOT,
        ),
        ("ref", "< -most ? -most", "< -most ? most", "the injection's lower bound", REF),
        ("run", "before < 0 ? norm", "before < 2 ? norm", "the norm forgets", REF),
    )
)
