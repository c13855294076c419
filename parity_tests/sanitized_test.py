"""Tests of the command that runs compiled code under AddressSanitizer."""

from pathlib import Path

import pytest

from emo_torch.build import BuildError, compile_shared, find_compiler
from parity_tests import sanitized

SOURCE = "int element(const int *values, int index) { return values[index]; }\n"
# The same access inside and outside of an array.
TEST = """
import ctypes, pytest, torch

@pytest.mark.parametrize("index", [6, 7])
def test_an_element(index):
    library, values = ctypes.CDLL("./element.so"), torch.arange(7, dtype=torch.int32)
    assert library.element(ctypes.c_void_p(values.data_ptr()), index) == 6
"""


def test_a_read_past_the_end_of_an_array_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        sanitized.runtimes()
    except BuildError as error:
        pytest.skip(str(error))
    (tmp_path / "element.c").write_text(SOURCE)
    (tmp_path / "element_test.py").write_text(TEST)
    with monkeypatch.context() as context:
        context.setenv("CC", sanitized.with_checks()["CC"])
        compile_shared(tmp_path / "element.c", tmp_path / "element.so")
    assert sanitized.check(tmp_path, ["-k", "6", "element_test.py"]) == 0
    capfd.readouterr()
    (tmp_path / "reports").rmdir()
    assert sanitized.check(tmp_path, ["-k", "7", "element_test.py"]) != 0
    told = capfd.readouterr().err
    assert "AddressSanitizer: heap-buffer-overflow" in told
    assert "element.c" in told


def test_a_compiler_without_the_checks_is_an_error_that_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(sanitized, "RUNTIMES", ("libnone.so",))
    with pytest.raises(BuildError, match=r"has no libnone\.so\. Install GCC with its sanitizers"):
        sanitized.runtimes()


def test_the_copy_has_the_tests_and_no_compiled_code(tmp_path: Path) -> None:
    sanitized.copy(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    for name in (*sanitized.TESTS, *sanitized.ON_A_GPU):
        assert (tmp_path / name).exists(), name
