"""The table of moments in 8 bits: a loss above its bound fails, and a worse code is told apart."""

import pytest

pytest.importorskip("sklearn")

from benchmarks.eight_bit import CODES, bytes_per_weight, report


@pytest.mark.parametrize(("coded", "fails"), [(0.99, False), (1.009, False), (1.02, True)])
def test_the_bound_is_one_percent(coded: float, fails: bool) -> None:
    page = report(
        {("mlp", "emo_sens", code): loss for code, loss in zip(CODES, (1.0, coded, 9.0), strict=True)}
    )
    assert ("**fail**" in page) == fails
    assert "+800.0%" in page


def test_the_bytes_of_moments() -> None:
    assert bytes_per_weight("emo_sens", None) == 8.0
    assert 2.0 < bytes_per_weight("emo_sens", "8bit") <= 2.1
    assert 1.0 < bytes_per_weight("emo_cats", "8bit") <= 1.05
