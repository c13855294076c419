"""The profile of a step: its parts are parts of it, and everything is as it was afterwards."""

from pathlib import Path

import pytest
import torch

import emo_torch
from benchmarks import step_profile
from benchmarks.step_profile import PARTS, WAYS, watched
from emo_torch import _kernels as _fused


def test_the_page_has_a_row_for_each_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert step_profile.main(["--problem", "tiny", "--rounds", "2", "--output", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "Where a step's time goes" in capsys.readouterr().out
    page = (tmp_path / "profile.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| Emo")]
    assert [row[2] for row in rows] == list(WAYS) * len(step_profile.MEASURED)
    assert {len(row) for row in rows} == {len(step_profile.HEAD)}


@pytest.mark.skipif(_fused.library() is None, reason="NO C COMPILER WAS FOUND")
def test_parts_are_parts_and_nothing_stays_watched() -> None:
    param = torch.nn.Parameter(torch.ones(8))
    param.grad = torch.ones(8)
    optimizer = emo_torch.EmoSens([param])
    compiled = _fused.library().handle.emo_step_float  # type: ignore[union-attr]
    spent = dict.fromkeys(PARTS, 0.0)
    with watched(optimizer, spent):
        optimizer.step(loss=1.0)
    assert all(seconds > 0.0 for seconds in spent.values())
    assert spent["in C"] < spent["move"]
    before = dict(spent)
    optimizer.step(loss=1.0)
    assert spent == before
    assert _fused.library().handle.emo_step_float is compiled  # type: ignore[union-attr]
