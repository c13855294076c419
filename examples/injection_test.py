import pytest

from examples.digits.torch_side import one_thread
from examples.injection import NETWORKS, WAYS, main, train


@pytest.mark.parametrize("network", NETWORKS)
def test_the_bounded_injection_trains_where_the_published_one_breaks(network: str) -> None:
    adamw, _, bounded, _, published, _ = WAYS
    with one_thread():
        outcome, broken = train(NETWORKS[network], bounded, 6), train(NETWORKS[network], published, 6)
        usual = train(NETWORKS[network], adamw, 6)
    assert outcome.broken_at is None
    assert outcome.losses[-1] < 0.5 * outcome.losses[0]
    assert outcome.accuracies[-1] > usual.accuracies[-1] - 0.1
    assert broken.broken_at is not None


def test_the_table_has_a_row_for_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--epochs", "1"])
    printed = capsys.readouterr().out
    for way in WAYS:
        assert printed.count(way.title) >= len(NETWORKS)
