import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from rich.console import Console

from emo_torch._members.by_name import MEMBERS
from examples.digits import data, flax_side, torch_side
from examples.digits.__main__ import main, parse
from examples.digits.comparison import compare
from examples.digits.report import summary
from examples.digits.rivals import train_rivals
from examples.digits.settings import ADAMW_DEFAULT, OPTIMIZERS, Settings

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("shadow", [[], ["--shadow"]], ids=["without_shadow", "with_shadow"])
@pytest.mark.parametrize("optimizer", ["emo_sens", "emo_airy", "emo_cats"])
def test_float64_leaves_no_difference(
    optimizer: str, shadow: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "digits.png"
    few = ["--epochs", "2", "--batch-size", "128", "--dtype", "float64", "--output", str(picture)]
    assert main(["--optimizer", optimizer, *shadow, *few]) == 0
    printed, warned = capsys.readouterr()
    assert warned == ""
    assert printed.splitlines()[-1] == str(picture)
    assert picture.read_bytes().startswith(PNG)
    assert max(len(line) for line in printed.splitlines()[:-1]) <= 80
    difference, control = re.findall(r"by at most\s(\S+?)[,:]", printed)
    assert float(difference) < 1e-9
    assert float(control) < 1e-9


@pytest.mark.parametrize("optimizer", ["emo_sens3", "emo_void", "emo_navi36"])
def test_later_generations_train_alike(optimizer: str) -> None:
    """One for each memory, and one that scales the weights before the step."""
    settings, _ = parse(
        ["--optimizer", optimizer, "--epochs", "1", "--batch-size", "128", "--dtype", "float64"]
    )
    comparison = compare(settings)
    assert comparison.difference.max() < 1e-9
    assert comparison.control_difference.max() < 1e-9
    np.testing.assert_allclose(comparison.flax.step_scale, comparison.torch.step_scale, rtol=1e-9)
    assert comparison.torch.loss[-1] < comparison.torch.loss[0]


def test_every_member_with_a_memory_of_the_losses_can_train() -> None:
    members = {name: each for name, each in MEMBERS.items() if name != "ref_adamw_mini_schedule_free"}
    assert OPTIMIZERS.keys() == members.keys()
    for name, member in members.items():
        assert OPTIMIZERS[name].title == member.make.__name__
        assert OPTIMIZERS[name].memory == ("drive" if name.endswith("36") else member.make.memory_title)
        if member.generation == 3:
            default = inspect.signature(member.make).parameters["lr"].default
            assert OPTIMIZERS[name].learning_rate == default


def test_float32_differs_by_rounding() -> None:
    comparison = compare(Settings(epochs=1))
    assert comparison.flax.loss.dtype == comparison.torch.loss.dtype == np.float32
    assert len(comparison.difference) == data.TRAIN_COUNT // Settings().batch_size
    assert 0.0 < comparison.difference.max() < 1e-4
    assert 0.0 < comparison.control_difference.max() < 1e-4
    assert comparison.flax.accuracy[-1] > 0.6
    np.testing.assert_allclose(comparison.flax.test_loss, comparison.torch.test_loss, rtol=1e-4)
    np.testing.assert_allclose(comparison.flax.loss, comparison.torch.loss, rtol=1e-4)
    np.testing.assert_allclose(comparison.flax.scalar, comparison.torch.scalar, atol=1e-4)


def test_the_default_is_emo_pilot_and_beats_adamw_at_its_default() -> None:
    settings, _ = parse([])
    assert settings.optimizer == "emo_pilot"
    settings = Settings(epochs=3)
    steps: list[int] = []
    default, best = train_rivals(settings, lambda: steps.append(1))
    assert len(steps) == 5 * 3 * (data.TRAIN_COUNT // settings.batch_size)
    assert default.learning_rate == ADAMW_DEFAULT
    assert best.test_loss[-1] <= default.test_loss[-1]
    comparison = compare(settings, with_control=False)
    assert comparison.torch.test_loss[-1] < default.test_loss[-1]
    table = Console(width=80).render_lines(summary(comparison, [default, best], settings))
    text = "\n".join("".join(piece.text for piece in line) for line in table)
    assert all(name in text for name in ("EmoPilot, Flax", "EmoPilot, PyTorch", "AdamW, default"))


def test_the_evaluation_is_that_of_the_averaged_weights_and_changes_nothing() -> None:
    settings = Settings(epochs=1)
    digits = data.load(settings.dtype)
    run = torch_side.TorchRun(settings, torch_side.tensors(flax_side.FlaxRun(settings).weights_for_torch()))
    for start in range(0, 320, 32):
        run.step(digits.train_images[start : start + 32], digits.train_labels[start : start + 32])
    before = {name: value.clone() for name, value in run._network.state_dict().items()}
    averaged = run.evaluate(digits.test_images, digits.test_labels)
    assert averaged != torch_side.evaluate(run._network, digits.test_images, digits.test_labels)
    assert all(torch.equal(value, before[name]) for name, value in run._network.state_dict().items())


def test_a_shadow_is_refused_for_the_pilot(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--shadow"])
    assert "--shadow" in capsys.readouterr().err


def test_the_networks_agree() -> None:
    images = data.load("float64").test_images[:5]
    with jax.enable_x64(True):
        flax_network = flax_side.Network("float64", nnx.Rngs(0))
        weights = flax_side.weights_for_torch(nnx.state(flax_network))
        expected = np.asarray(flax_network(jnp.asarray(images)))
    network = torch_side.Network({name: torch.tensor(np.array(weight)) for name, weight in weights.items()})
    with torch.no_grad():
        scores = network(torch.from_numpy(images))
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [0.1, 100.0])
def test_gradients_are_clipped_as_optax_does(size: float) -> None:
    gradients = [np.asarray([size, -2.0 * size], np.float32), np.asarray([[0.5 * size]], np.float32)]
    params = [torch.nn.Parameter(torch.zeros(gradient.shape)) for gradient in gradients]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = torch.from_numpy(gradient.copy())
    torch_side.clip_by_global_norm(params, 1.0)
    expected, _ = optax.clip_by_global_norm(1.0).update(gradients, optax.EmptyState())
    for param, gradient in zip(params, expected, strict=True):
        assert param.grad is not None
        np.testing.assert_allclose(param.grad, gradient, rtol=1e-6)


def test_no_digit_is_both_learnt_and_tested() -> None:
    digits = data.load("float64")
    both = np.concatenate([digits.train_images, digits.test_images])
    assert len(both) == 1797
    batches = data.shuffled_batches(np.random.default_rng(0), 32)
    assert batches.shape == (44, 32)
    assert len(np.unique(batches)) == batches.size


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_optimizer_has_its_learning_rate(optimizer: str) -> None:
    settings, _ = parse(["--optimizer", optimizer])
    assert settings.learning_rate == OPTIMIZERS[optimizer].learning_rate
    settings, _ = parse(["--optimizer", optimizer, "--learning-rate", "0.5"])
    assert settings.learning_rate == 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--learning-rate", "0"],
        ["--epochs", "0"],
        ["--batch-size", "1438"],
        ["--seed", "-1"],
        ["--epochs", "x"],
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err
