"""The tables of `examples.pulse_options` show their effects."""

import pytest

from examples.pulse_options import AT, falling, first_stop, flat, main, pulses


def test_steady_takes_the_spike_out_of_the_pulse() -> None:
    losses = flat(0)
    losses[AT] *= 3.0
    published, steady = pulses(losses), pulses(losses, steady=True)
    assert float(published[-1].pulse) == pytest.approx(3e-3)
    assert max(float(state.pulse) for state in steady[AT:]) < 1.5e-4
    losses[AT] *= 10.0
    steady, limited = pulses(losses, steady=True), pulses(losses, steady=True, spike_limit=3.0)
    assert max(float(state.pulse) for state in limited[AT:]) < max(
        float(state.pulse) for state in steady[AT:]
    )


def test_the_unit_of_the_loss_decides_when_it_is_told() -> None:
    tiny = [1e-6 * loss for loss in falling(0)]
    assert first_stop(pulses(tiny)) != first_stop(pulses(falling(0)))
    stops = {
        first_stop(pulses([unit * loss for loss in falling(0)], loss_unit="first")) for unit in (1e-6, 1e3)
    }
    assert stops == {first_stop(pulses(falling(0), loss_unit="first"))}


def test_the_command_prints_its_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("examples.pulse_options.SPIKES", (3.0,))
    monkeypatch.setattr("examples.pulse_options.UNITS", (1.0,))
    main(["--seeds", "1"])
    printed = " ".join(capsys.readouterr().out.split())
    assert all(title in printed for title in ("one spike of a flat loss", "several units", "not finite"))
