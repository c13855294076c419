"""The fixture of the tests in several processes."""

from collections.abc import Iterator

import pytest

from emo_torch._distributed.processes_test import Processes


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """Starts processes when a test needs them, and keeps them for the other tests."""
    made = Processes()
    yield made
    made.end()
