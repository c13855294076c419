"""The table of moments in 8 bits: a loss above its bound fails, and a worse code is told apart."""

import pytest

pytest.importorskip("sklearn")

from benchmarks import eight_bit
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


def test_the_comparison_names_the_extra_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(eight_bit, "find_spec", lambda name: None if name == "torchao" else name)
    assert eight_bit.main(["--others"]) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("torchao missing.")
    assert "pip install 'emo-optimizers[examples,trainers]'" in printed


def test_the_comparison_counts_bytes_and_times() -> None:
    pytest.importorskip("torch")
    from benchmarks import eight_bit_others

    found = eight_bit_others.measure(eight_bit_others.own_makers(), 2, ((96, 96), (64, 64)))
    each = {title: own.bytes_each for title, own in found.items()}
    assert each["EmoSens"] == pytest.approx(8.0, abs=0.02)
    assert each['EmoCats, moment_dtype="8bit"'] < 1.05
    page = eight_bit_others.report(found)
    assert len([line for line in page.splitlines() if line.startswith("| Emo")]) == 3
    assert "| AdamW(fused=True) | 8.00" in page
