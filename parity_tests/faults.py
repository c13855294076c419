"""Plants single faults in either package and looks whether the harness finds them.

Run with `python -m parity_tests.faults`. A harness that finds nothing wrong proves nothing unless it
would have. Each fault changes one place in a copy of a package; the faulty side is then driven beside
the healthy other one, and the first comparison that exceeds a bound is what found it.
"""

import argparse
import functools
import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from emo_torch._kernels import library
from parity_tests.drive import Arrays
from parity_tests.family import FAMILY, ROUNDED, Member
from parity_tests.lockstep import Case, compare, trajectory

ROOT = Path(__file__).parent.parent


class Fault(NamedTuple):
    """One change of one place.

    Attributes:
        package: "emo_optax" or "emo_torch".
        file: the name of the module, in whatever folder of the package; or a path inside of the package.
        old: what stands there, once.
        new: what is put in its place.
        what: the fault in words.
        by: the member that shows it; any may, where it is empty.
    """

    package: str
    file: str
    old: str
    new: str
    what: str
    by: str = ""


_REF = "RefAdamWMiniScheduleFree"
_PILOT = "EmoPilot"
_REF_FILE = "ref_adamw_mini_schedule_free"


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


FAULTS_OF_LATER = tuple(
    Fault(f"emo_{side}", file, old, new, f"later generations: {what}", by)
    for side, file, old, new, what, by in (
        ("optax", "trust", "(0.3, 0.05, 0.01)", "(0.3, 0.055, 0.01)", "the medium average", "EmoSens3"),
        ("optax", "trust", "(scalar) > 0.625", "(scalar) > 0.999", "the bound of the shadow", "EmoNavi36"),
        ("optax", "drive", "8.0 * jnp.abs", "8.08 * jnp.abs", "emoDrive longer by 1 %", "EmoNavi36"),
        ("optax", "pulse", "scalar, 0.7)", "scalar, 0.71)", "the course", "EmoSens3"),
        ("optax", "pulse", "settled = 0.8 *", "settled = 0.81 *", "the level that settles", "EmoSens3"),
        ("optax", "sign_rules", "0.03), rest)", "0.03), 2.0 * rest)", "the least freshness", "EmoTion"),
        ("optax", "sign_rules", "HELD_STEPS = 55", "HELD_STEPS = 5", "the norm let go early", "EmoVoid"),
        (
            "torch",
            "trust",
            "copysign(1.0 - scalar.abs(), scalar)",
            "abs(1.0 - scalar.abs())",
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
        ("torch", "pulse", "power * 1e-4", "power * 1.01e-4", "a pulse longer by 1 %", "EmoAiry3"),
        ("torch", "pulse", "limit = spike", "limit = 1.1 * spike", "the limit of spikes", "EmoCats3"),
        (
            "torch",
            "pulse",
            "state.unit == 0.0, size",
            "state.unit >= 0.0, size",
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

FAULTS: tuple[Fault, ...] = (
    *FAULTS_OF_LATER,
    *_defaults("emo_optax", "emo_sens"),
    *_defaults("emo_torch", "emo_airy"),
    # Emotion.
    Fault("emo_optax", "emotion", "* (short - long))", "* (long - short))", "sign of the scalar"),
    Fault("emo_torch", "emotion", "if state.felt.item() != 0:", "if True:", "averages start at 0"),
    Fault(
        "emo_torch", "emotion", "history[:-1] = history[1:]", "history[1:] = history[:-1]", "wrong window"
    ),
    Fault("emo_optax", "emotion", "is_finite & jnp", "jnp", "a non-finite loss enters as 0"),
    Fault("emo_torch", "emotion", "    count += 1", "    count += is_felt", "held not counted"),
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
        _PILOT,
    ),
    Fault(
        "emo_torch",
        "gate",
        "most = limit * average",
        "most = 1.5 * limit * average",
        "gate's limit",
        _PILOT,
    ),
    Fault(
        "emo_optax",
        "courage",
        "(z + 0.4 * fall)",
        "(z + 0.5 * fall)",
        "growth where the loss falls",
        _PILOT,
    ),
    Fault("emo_torch", "courage", "-0.2 * rise", "-0.21 * rise", "courage where the loss rises", _PILOT),
    Fault("emo_torch", "courage", "0.05 * (square - ", "0.06 * (square - ", "usual agreement", _PILOT),
    Fault("emo_optax", "ceiling", "0.08 * jnp.clip", "0.081 * jnp.clip", "ceiling off by 1 %", _PILOT),
    Fault(
        "emo_torch",
        "ceiling",
        ".clamp(0.02, 0.1)",
        ".clamp(0.03, 0.1)",
        "ceiling of small parameters",
        _PILOT,
    ),
    Fault(
        "emo_optax",
        "relative_emotion",
        "0.3 * (limited - short)",
        "0.31 * (limited - short)",
        "short",
        _PILOT,
    ),
    Fault(
        "emo_torch",
        "relative_emotion",
        "0.3 * (limited - short)",
        "0.31 * (limited - short)",
        "short",
        _PILOT,
    ),
    Fault("emo_optax", "averaged_weights", "9.0 / (", "10.0 / (", "window of the averaged weights", _PILOT),
    Fault("emo_torch", "averaged_weights", "9.0 / (", "8.0 / (", "window of the averaged weights", _PILOT),
    Fault(
        "emo_optax",
        "emo_pilot",
        "v + (1.0 - hyperparameter(b2",
        "v + (1.01 - hyperparameter(b2",
        "nu",
        _PILOT,
    ),
    Fault(
        "emo_torch",
        "pilot_ways",
        "steps = batch.steps + 1.0",
        "steps = batch.steps + 2.0",
        "correction",
        _PILOT,
    ),
    Fault(
        "emo_torch",
        "pilot",
        "loss.isfinite() & ",
        "",
        "a loss that is not finite is not skipped",
        _PILOT,
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
        "vector_norm(grad)) + eps",
        "vector_norm(grad, 1)) + eps",
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
    Fault("emo_torch", "divergence", "(ratio > 1.5)", "(ratio > 1.8)", "bound of level 2", _REF),
    Fault("emo_optax", "divergence", "worst == 2, 0.8", "worst == 2, 0.79", "strength at level 2", _REF),
    Fault("emo_optax", "smoothed_norm", "share * norm", "1.01 * share * norm", "norm by 1 %", _REF),
    Fault("emo_torch", "smoothed_norm", "norm + 1e-12", "norm + 1e-3", "norm without its zero", _REF),
    Fault(
        "emo_torch", "ref_ways", "torch.clamp(moved, -bound, bound)", "moved", "injection unbounded", _REF
    ),
    Fault(
        "emo_optax",
        _REF_FILE,
        "(1.0 - share) * m + share * weight",
        "m + share * weight",
        "injection sums over 1",
        _REF,
    ),
)

FAULTS_IN_C = tuple(
    Fault("emo_torch", f"_kernels/cpu_{file}.h", old, new, f"compiled: {what}", by)
    for file, old, new, what, by in (
        (
            "elements",
            "grad * grad * c2;\n            firsts",
            "grad * c2;\n            firsts",
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
            "        update *= scale;\n        params",
            "        params",
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
        ("ref", "< -most ? -most", "< -most ? most", "the injection's lower bound", _REF),
        ("run", "before < 0 ? norm", "before < 2 ? norm", "the norm forgets", _REF),
    )
)


def every_fault() -> tuple[Fault, ...]:
    """Returns all faults that can be planted here; those in C need a compiler, which built the library."""
    return FAULTS if library() is None else FAULTS + FAULTS_IN_C


def _cases() -> list[Case]:
    cases = []
    for name in FAMILY:
        cases += [
            Case(name, {"use_shadow": True}, steps=60),
            Case(name, FAMILY[name].known({"theta": 0.3}), steps=40),
            Case(name, {"use_shadow": True, "shadow_ratio": "v1.0"}, losses="rising", steps=40),
            Case(name, {"weight_decay_mode": "absolute", "weight_decay": 1e-3}, steps=20),
            Case(name, {"weight_decay_mode": "l2"}, steps=20),
            Case(name, {}, losses="not_finite_first", steps=40),
            Case(name, {}, losses="constant", steps=40),
            Case(name, {"use_shadow": True}, losses="fading", steps=160),
            Case(name, {}, losses="surging", steps=20),
            *(Case(name, options, steps=20) for options in FAMILY[name].more_options),
            *(Case(name, options, "bfloat16", steps=20) for options in ROUNDED.get(name, ())),
        ]
    return cases


CASES = _cases()


@contextmanager
def planted(fault: Fault) -> Iterator[dict[str, Member]]:
    """Gives the family with one side's package replaced by a faulty copy of it."""
    package = fault.package
    healthy = {name: module for name, module in sys.modules.items() if name.split(".")[0] == package}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / package
        shutil.copytree(ROOT / package, copy, ignore=shutil.ignore_patterns("*_test.py", "__pycache__"))
        path = copy / fault.file if "/" in fault.file else next(copy.rglob(f"{fault.file}.py"))
        text = path.read_text()
        if text.count(fault.old) != 1:
            raise AssertionError(
                f"{fault.what}: {fault.old!r} stands {text.count(fault.old)} times in {path.name}"
            )
        path.write_text(text.replace(fault.old, fault.new))
        if fault.file.endswith((".c", ".h")):  # Not for its speed: compiled as quickly as can be.
            build = copy / "build.py"
            build.write_text(build.read_text().replace('"-O3"', '"-O1"'))
            environment = {**os.environ, "EMO_TORCH_ISA": "plain"}
            subprocess.run([sys.executable, str(build)], check=True, env=environment, capture_output=True)
        for name in healthy:
            del sys.modules[name]
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            faulty = importlib.import_module(package)
            yield {name: _with(member, faulty) for name, member in FAMILY.items()}
        finally:
            sys.path.remove(folder)
            for name in [name for name in sys.modules if name.split(".")[0] == package]:
                del sys.modules[name]
            sys.modules.update(healthy)


def _with(member: Member, faulty: Any) -> Member:
    if faulty.__name__ == "emo_optax":
        return member._replace(optax=getattr(faulty, member.optax.__name__))
    return member._replace(torch=getattr(faulty, member.name))


@functools.cache
def _reference(side: str, index: int) -> Arrays:
    return trajectory(side, CASES[index])


def find(fault: Fault) -> str | None:
    """Returns what finds a fault first, or `None`."""
    side, other = ("optax", "torch") if fault.package == "emo_optax" else ("torch", "optax")
    with planted(fault) as family:
        for index, case in enumerate(CASES):
            if fault.by not in ("", case.optimizer):
                continue
            options = ", ".join(f"{name}={value}" for name, value in case.options.items()) or "defaults"
            where = f"{case.optimizer}, {options}, {case.losses}"
            if fault in FAULTS_IN_C:
                case = case._replace(options={**case.options, "fused": True})
            try:
                faulty = trajectory(side, case, member=family[case.optimizer])
                found = compare(faulty, _reference(other, index), case).first_excess
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                return f"{where}: {str(error).splitlines()[0]}"
            if found is not None:
                return f"{where}: {found[1]}, step {found[0]}"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Plants every fault, prints what found it, and returns 1 where one was not found."""
    parser = argparse.ArgumentParser(prog="python -m parity_tests.faults", description=__doc__)
    parser.add_argument("--report", type=Path, help="write the list as a Markdown page")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: one for each core")
    options = parser.parse_args(arguments)
    console = Console()
    table = Table(title="Planted faults, and what found them", box=box.SIMPLE)
    lines = ["# Planted faults, and what found them", ""]
    lines += ["Written by `python -m parity_tests.faults --report`. Each fault changes one place in a copy"]
    lines += ["of a package; the first comparison with the healthy twin that fails is what found it.", ""]
    lines += ["| package | fault | found by |", "|---|---|---|"]
    for column in ("package", "fault", "found by"):
        table.add_column(column)
    missed = 0
    spawn = multiprocessing.get_context("spawn")  # A fork of JAX's threads could hang.
    with ProcessPoolExecutor(options.workers, mp_context=spawn) as pool:
        faults = every_fault()
        results = pool.map(find, faults)
        for fault, found in track(
            zip(faults, results, strict=True),
            description="faults",
            total=len(faults),
            console=console,
            transient=True,
        ):
            missed += found is None
            table.add_row(fault.package, fault.what, found or "[red]nothing[/red]")
            lines.append(f"| {fault.package} | {fault.what} | {found or '**nothing**'} |")
    console.print(table)
    count = f"{len(faults)} faults, {len(faults) - missed} found"
    console.print(count)
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text("\n".join([*lines, "", f"{count}.", ""]))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
