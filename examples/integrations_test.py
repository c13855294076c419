"""The short examples of where a loss comes from train, each with the library of its name."""

import importlib
from typing import Any

import pytest


def example(name: str, library: str) -> Any:
    pytest.importorskip(library, reason=f"{library} is not installed, and examples/{name}.py needs it")
    return importlib.import_module(f"examples.{name}")


@pytest.mark.parametrize(
    ("name", "library", "share"),
    [
        ("flax_train_state", "flax", 0.2),
        ("flax_nnx", "flax", 0.5),
        ("equinox_train", "equinox", 0.2),
        ("numpyro_svi", "numpyro", 0.5),
    ],
)
def test_an_example_trains(
    name: str, library: str, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = example(name, library).main()
    assert last < share * first
    printed = capsys.readouterr().out
    assert printed.startswith("loss ")
    assert "emotion " in printed


@pytest.mark.parametrize("name", ["optax_wrappers", "jax_devices"])
def test_an_example_of_optax_alone_trains_in_each_way(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = example(name, "optax").main()
    assert len(results) == 3
    assert all(last < 0.9 * first for first, last in results)
    assert capsys.readouterr().out.count("loss ") == 3


def test_the_example_of_injected_hyperparameters_trains(capsys: pytest.CaptureFixture[str]) -> None:
    first, last = example("inject_hyperparams", "optax").main()
    assert last < 0.9 * first
    assert capsys.readouterr().out.startswith("loss ")


# Orbax asks the event loop of asyncio for its threads.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:orbax")
def test_the_example_of_orbax_resumes_bit_for_bit(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("orbax_resume", "orbax.checkpoint").main()
    assert capsys.readouterr().out.endswith("True\n")
