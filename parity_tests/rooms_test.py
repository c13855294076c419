"""The rooms of both packages: their imports, the length of files, and the files without a twin."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("emo_optax", "emo_torch")

ORDER = (
    "_sharded",
    "build",
    "_checks",
    "_pieces",
    "_rules",
    "_kernels",
    "_step",
    "_wrappers",
    "_members",
    "_state",
    "_public",
    "integrations",
    "launch",
)
"""The rooms from the lowest to the highest: a room imports only rooms that stand before it in this list."""

UPWARD: dict[str, str] = {}
"""The imports that run the other way, and why. A new one needs a better place for the imported name."""

TOP = ("integrations", "launch")
"""The rooms that may import the package itself, as users do. No room below may."""


TESTS = ("_distributed",)
"""The rooms that only tests use."""


def sources(package: str) -> list[Path]:
    """Returns the files of a package, relative to it, without tests and helpers of tests."""
    files = sorted(path.relative_to(ROOT / package) for path in (ROOT / package).rglob("*.py"))
    return [
        path
        for path in files
        if not path.name.endswith("_test.py") and path.name != "_testing.py" and path.parts[0] not in TESTS
    ]


def room_of(path: Path) -> str:
    """Returns the folder or, beside the folders, the module that a file of a package belongs to."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imported(path: Path) -> Iterator[str]:
    """Yields the dotted names that a file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name the package in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward(package: str) -> set[str]:
    """Returns the imports of a package that run against the order of the rooms."""
    found = set()
    for path in sources(package):
        room = room_of(path)
        for name in imported(ROOT / package / path):
            parts = name.split(".")
            if parts[0] != package or room == "__init__":
                continue
            target = parts[1] if len(parts) > 1 and parts[1] in ORDER else "the package"
            as_users_do = target == "the package" and room in TOP
            if not as_users_do and (target not in ORDER or ORDER.index(target) > ORDER.index(room)):
                found.add(f"{package}/{path} -> {target}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way_between_rooms(package: str) -> None:
    known = {arrow for arrow in UPWARD if arrow.startswith(f"{package}/")}
    assert not upward(package) - known, "Move what is imported to a lower room"
    assert not known - upward(package), "These imports are gone: take them off UPWARD"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_has_its_place_in_the_order(package: str) -> None:
    assert {room_of(path) for path in sources(package)} - {"__init__"} <= set(ORDER)


@pytest.mark.parametrize("package", [*PACKAGES, "emo_shared"])
def test_no_package_imports_its_twin_and_the_shared_one_imports_neither(package: str) -> None:
    others = {"emo_optax", "emo_torch"} - {package}
    for path in sources(package):
        roots = {name.split(".")[0] for name in imported(ROOT / package / path)}
        assert not roots & others, path
        assert package != "emo_shared" or not roots & {"torch", "jax", "optax", "flax"}, path


@pytest.mark.parametrize("package", [*PACKAGES, "emo_shared"])
def test_no_file_imports_itself_through_others(package: str) -> None:
    modules = {
        ".".join((package, *path.with_suffix("").parts)): ROOT / package / path for path in sources(package)
    }
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    below = {}
    for name, path in modules.items():
        names = {each if each in modules else each.rpartition(".")[0] for each in imported(path)}
        below[name] = names & set(modules) - {name}
    while below:
        free = {name for name, needs in below.items() if not needs & set(below)}
        assert free, f"These files import each other in a circle: {sorted(below)}"
        below = {name: needs for name, needs in below.items() if name not in free}


LONGEST = 400
"""The most lines that a file may have, so that it can be read in one sitting."""


def test_files_are_short() -> None:
    folders = (*PACKAGES, "emo_shared", "parity_tests", "examples", "benchmarks", "website")
    files = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".c", ".h")
    ]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    too_long = {name: count for name, count in lines.items() if count > LONGEST}
    assert not too_long, "Split these files along the ideas in them"


ONE_SIDED = {
    "emo_optax": {
        "_checks/states.py": "states are trees of arrays here; PyTorch checks groups",
        "_checks/states_test.py": "the same",
        "_compiled_step_test.py": "the program that XLA makes of a step",
        "_devices_test.py": "eight devices in one process",
        "_members/emo_pilot_average_test.py": "averages within wrappers of Optax",
        "_members/calls_test.py": "calls of an update; in PyTorch of a step, in _step/calls_test.py",
        "_members/aliases_test.py": "members are chains of pieces here, and classes in PyTorch",
        "_members/reference_test.py": "members against NumPy; PyTorch's are in _step/emotional_test.py",
        "_pieces/compact_chain.py": "a compiled step takes a fixed time for each node of its state",
        "_pieces/dtypes.py": "updates are rounded at the end; PyTorch moves parameters in place",
        "_pieces/meta_gradient_test.py": "gradients through updates, which are functions here",
        "_pieces/packed.py": "a compiled step takes a fixed time for each array of its state",
        "_pieces/pulse_reference_test.py": "the pulse against NumPy; the twin is held by the recordings",
        "_pieces/pulse_test.py": "in PyTorch in _members/later_generations_test.py",
        "_pieces/share_pulse.py": "the pulse around other transformations; in PyTorch it is in _step",
        "_promotion_test.py": "JAX's promotion of dtypes, and the dtypes of Optax's hyperparameters",
        "_rules/sign_rules_test.py": "sums of norms over replicas and shares of JAX",
        "_state/carried.py": "states of Optax contain the states of other transformations",
        "_state/export.py": "the classes of states for jax.export",
        "_state/export_test.py": "the same",
        "_wrappers/bind_test.py": "an adapter for wrappers that drop extra arguments, which only Optax has",
        "_wrappers/emotional.py": "a function; PyTorch's _wrappers/any_optimizer.py is a class",
        "_wrappers/emotional_test.py": "the same",
        "_wrappers/get_pulse.py": "a look into a state; in PyTorch a property",
        "_wrappers/loss_from_gradient.py": "gradients that carry the loss; PyTorch has `listen`",
        "_wrappers/loss_from_gradient_test.py": "the same",
        "_wrappers/loss_from_gradient_refused_test.py": "the same",
        "_wrappers/piloted.py": "a function; PyTorch's _step/piloted.py is a class",
        "_wrappers/injected_test.py": "`optax.inject_hyperparams`; PyTorch's groups hold numbers",
        "integrations/trainers_test.py": "libraries for JAX",
        "integrations/equinox_test.py": "a library for JAX",
        "integrations/flax.py": "a library for JAX",
        "integrations/flax_test.py": "a library for JAX",
        "integrations/jmp_test.py": "a library for JAX",
        "integrations/numpyro_test.py": "a library for JAX",
        "integrations/resume_test.py": "Orbax and other file libraries for JAX",
    },
    "emo_torch": {
        "_checks/gradients.py": "gradients are attributes of parameters here",
        "_distributed/checkpoint_test.py": "distributed checkpoints of PyTorch",
        "_distributed/compiled_test.py": "torch.compile; each step of Optax is compiled",
        "_distributed/conftest.py": "processes that are kept for all tests",
        "_distributed/listen_test.py": "backward passes of FSDP",
        "_distributed/page_test.py": "the page about torch.distributed",
        "_distributed/processes_test.py": "processes that are kept for all tests",
        "_distributed/release_test.py": "steps within the backward pass; JAX has none",
        "_distributed/training_test.py": "the net of these tests",
        "_distributed/zero_redundancy_test.py": "an optimizer around others of PyTorch",
        "_grad_scaler_test.py": "PyTorch's gradient scaler",
        "_kernels": "compiled C and Triton; a step of Optax is compiled by XLA",
        "_members/torch_optim_test.py": "PyTorch's own suite; Optax's is in parity_tests",
        "_pieces/averaged_buffers.py": "buffers of modules; states of JAX are averaged like parameters",
        "_pieces/averaged_buffers_test.py": "the same",
        "_members/emo_pilot_loops_test.py": "loops of PyTorch: scalers, parameter groups, closures",
        "_members/emo_pilot_state_test.py": "states of optimizers, which are functions in Optax",
        "_wrappers/heard.py": "sums of roots of backward passes",
        "_wrappers/heard_test.py": "the same",
        "_wrappers/listen.py": "backward passes; in JAX gradients carry the loss",
        "_wrappers/listen_test.py": "the same",
        "_wrappers/pulse_scheduler.py": "a scheduler of PyTorch; Optax has `pulse_schedule`",
        "_wrappers/pulse_scheduler_test.py": "the same",
        "_pieces/arrays_in_place.py": "what the following files share",
        "_pieces/drive_in_place.py": "numbers on the CPU without calls of PyTorch; XLA compiles them",
        "_pieces/drive_in_place_test.py": "the same",
        "_pieces/pulse_in_place.py": "numbers on the CPU without calls of PyTorch; XLA compiles them",
        "_pieces/pulse_in_place_test.py": "the same",
        "_pieces/pilot_in_place.py": "the same",
        "_pieces/pilot_in_place_test.py": "the same",
        "_wrappers/reach.py": "the graph of a backward pass",
        "_rules/family_rules.py": "the rules as data; rules of Optax are transformations already",
        "_rules/recipe.py": "the classes of this data",
        "_schedulers_test.py": "PyTorch's schedulers; schedules of Optax are functions",
        "_sharded.py": "DTensors; arrays of JAX know how they are sharded",
        "_step": "how one step is taken: one tensor, many, compiled code; Optax has one way",
        "_fault_groups_test.py": "parameter groups, which only PyTorch has",
        "_state/state_refused_test.py": "states are dictionaries here",
        "_state/saver_test.py": "a state names the member that saved it; Optax has the classes of states",
        "_state/state_copies_test.py": "copies, and the states of torch.distributed",
        "_checks/losses_test.py": "a loss may be a number, a tensor or a closure here",
        "_members/ref_adamw_mini_schedule_free_refused_test.py": "parameter groups of PyTorch",
        "_members/torch_optim_schedulers_test.py": "PyTorch's own suite",
        "_members/torch_optim_groups_test.py": "the same",
        "_pieces/accumulation_passes_test.py": "backward passes; JAX has none",
        "_pieces/rounding_resume_test.py": "states of optimizers, which are functions in Optax",
        "_wrappers/any_optimizer_options_test.py": "parameter groups and schedulers of PyTorch",
        "_testing.py": "helpers of the tests of trainers",
        "_wrappers/any_optimizer.py": "a class; Optax's _wrappers/emotional.py is a function",
        "_wrappers/around_inner.py": "an optimizer that saves and loads itself",
        "_wrappers/around_inner_test.py": "the same",
        "_wrappers/inner_check.py": "whether lr can be scaled for a step",
        "_wrappers/inner_check_test.py": "the same",
        "_wrappers/inner_state.py": "an optimizer that saves and loads itself",
        "_wrappers/inner_step.py": "scaling lr, or moving parameters back; updates of Optax are scaled",
        "_wrappers/stand_in.py": "a tiny copy of an optimizer, stepped to see how it treats lr",
        "build.py": "builds the compiled code, which only PyTorch's side has",
        "build_test.py": "the same",
        "integrations/accelerate.py": "a library for PyTorch",
        "integrations/accelerate_test.py": "a library for PyTorch",
        "integrations/docs_test.py": "the pages about trainers for PyTorch",
        "integrations/every_member_test.py": "trainers of PyTorch",
        "integrations/kohya.py": "a library for PyTorch",
        "integrations/kohya_test.py": "a library for PyTorch",
        "integrations/launch_test.py": "a launcher of scripts for PyTorch",
        "integrations/lightning.py": "a library for PyTorch",
        "integrations/lightning_averages_test.py": "a library for PyTorch",
        "integrations/lightning_test.py": "a library for PyTorch",
        "integrations/optimizers_test.py": "optimizers of PyTorch inside `Emotional`",
        "integrations/other_trainers_test.py": "libraries for PyTorch",
        "integrations/recipes_language_test.py": "libraries for PyTorch",
        "integrations/timm.py": "a library for PyTorch",
        "integrations/transformers.py": "a library for PyTorch",
        "integrations/transformers_test.py": "a library for PyTorch",
        "launch": "a launcher of scripts for PyTorch",
    },
}
"""The files and whole rooms that one package has alone, by their path in it, and why."""


def files_and_whole_rooms(package: str, other: str) -> set[str]:
    """Returns the files of a package; a room that the other package lacks stands for all files in it."""
    rooms = {path.name for path in (ROOT / other).iterdir() if path.is_dir()}
    paths = [path.relative_to(ROOT / package) for path in (ROOT / package).rglob("*.py")]
    return {
        str(path) if len(path.parts) == 1 or path.parts[0] in rooms else path.parts[0] for path in paths
    }


@pytest.mark.parametrize(("package", "other"), [PACKAGES, PACKAGES[::-1]])
def test_each_room_has_the_same_files_in_both_packages(package: str, other: str) -> None:
    alone = files_and_whole_rooms(package, other) - files_and_whole_rooms(other, package)
    listed = ONE_SIDED[package]
    assert not alone - set(listed), "Give these files a twin, or a reason in ONE_SIDED"
    assert not set(listed) - alone, "These files have a twin now, or are gone: take them off ONE_SIDED"
    assert all(len(reason) > 8 or reason == "the same" for reason in listed.values())
