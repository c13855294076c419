"""What holds for the tests of both packages: the option `--fast`, and a faster collection.

It imports neither framework: each package is tested where the other's is hidden.
"""

import gc
import re
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
SLOW = re.compile(
    r"""
    ^(examples|benchmarks)/ | /integrations/ | /_distributed/
    | [/_](compiled_step|cuda|devices|distributed|fault_campaign|import|kill|triton)_test
    | ^emo_torch/_\w+/(any_optimizer|emotional|rounding|sync|torch_optim|ways)(_\w+)?_test
    | ^emo_optax/_\w+/(aliases|any_optimizer|first_generation|injected)_test
    | ^emo_optax/_\w+/(reference|rounding|state|wrappers)_test
    | ^emo_optax/_members/(by_name|emo_pilot|emo_pilot_airy|emo_pilot_average)_test
    | ^emo_optax/_wrappers/(bind|every_member|loss_from_gradient|metrics|runaway|steered)_test
    | ^emo_optax/_pieces/(accumulation|meta_gradient|pulse|replicas|sums)_test
    | ^emo_optax/(_checks/validation|_state/bridge)_test
    | ^emo_optax/(_promotion|_checks/states|_rules/(eight_bit|rules|sign_rules)|_state/export)_test
    | ^emo_torch/(build|_schedulers|_state/(saver|state|state_copies))_test
    | ^emo_torch/_kernels/(blocked|changes|coded|cuda_codes|loader|memory|narrow|pilot)_test
    | ^emo_torch/_members/(emo_pilot|emo_pilot_loops|first_generation)_test
    | ^emo_torch/_pieces/(accumulation|pulse_in_place)_test
    | ^emo_torch/_wrappers/inner_check_test
    | /(autopilot|checkpoint_refused|eight_bit_state|hints|ref_adamw_mini_schedule_free)_test
    | /(later_generations|pilot_in_place|shadow_effect)_test
    | ^parity_tests/(?!__init__|compare|rooms|signatures|versions)
    """,
    re.VERBOSE,
)
"""Files of tests that start processes, compile many programs or take many steps."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.addoption("--fast", action="store_true", help="leave the slow files out, for the inner loop")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves the slow files out where that is asked for, before they are imported."""
    if config.getoption("--fast") and collection_path.is_file():
        return True if SLOW.search(collection_path.relative_to(ROOT).as_posix()) else None
    return None


@pytest.fixture(autouse=True)
def as_a_new_process() -> None:
    """Forgets which warnings were given: a process warns once, and no test may depend on another."""
    for package in ("emo_optax", "emo_torch"):
        if hints := sys.modules.get(f"{package}._checks.hints"):
            hints._warned.clear()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects no garbage while tests are collected, and leaves modules and tests out of later collections.

    Each pass would visit thousands of tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """Leaves all objects to the end of Python, as without a test."""
    gc.unfreeze()
