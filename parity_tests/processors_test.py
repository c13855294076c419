"""The twins agree under another instruction set, and the command finds where they do not."""

from pathlib import Path

import pytest

from parity_tests import closed_loop, processors
from parity_tests.lockstep import Case
from parity_tests.processors import PROCESSORS
from parity_tests.tolerances import LOCKSTEP, Tolerance


def test_members_that_a_rounding_leads_astray_first_stay_in_the_band_on_a_basic_processor(
    tmp_path: Path,
) -> None:
    pairs = [("emo_zeal", "float32"), ("emo_lynx", "float32")]
    assert set(pairs) <= set(closed_loop.pairs())
    found = processors.loops(["basic, not compiled"], pairs, tmp_path)["basic, not compiled"]
    assert [(loop["optimizer"], loop["dtype"]) for loop in found] == pairs
    assert all(loop["first_excess"] is None and 0.0 < loop["of_band"] < 1.0 for loop in found)


def test_every_instruction_set_of_one_side_is_compared_with_every_one_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Case("EmoZeal", {"use_shadow": True, "fused": True}, "float32", steps=20)]
    names = ("as it is", "basic, not compiled")
    found = processors.lockstep(list(names), cases, tmp_path)
    # Optax has no compiled code to leave out.
    assert set(found) == {("as it is", name) for name in names}
    assert all(first is None and used < 1.0 for [(_, used, first)] in found.values())
    monkeypatch.setitem(LOCKSTEP, "float32", Tolerance(0.0, 0.0))
    (tmp_path / "again").mkdir()
    again = processors.lockstep(["basic"], cases, tmp_path / "again")
    assert all(first is not None for [(_, _, first)] in again.values())


def test_an_instruction_set_that_does_not_come_about_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROCESSORS, "odd", PROCESSORS["basic"]._replace(capability="ODD"))
    with pytest.raises(RuntimeError, match="asked for ODD, PyTorch has DEFAULT"):
        processors.loops(["odd"], [], tmp_path)
