"""Trainers of other libraries that pass no loss on, under the listener."""

from typing import Any

import numpy as np
import pytest
import torch

import emo_torch

X = torch.linspace(-1.0, 1.0, 24).reshape(8, 3)
Y = X.sum(1, keepdim=True)


def test_stable_baselines3_feels_the_losses_that_it_logs() -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="not installed: pip install stable-baselines3")
    gym = pytest.importorskip("gymnasium", reason="Gymnasium is not installed: pip install gymnasium")

    class World(gym.Env):  # type: ignore[misc, name-defined]
        observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gym.spaces.Discrete(2)

        def reset(self, seed: Any = None, options: Any = None) -> Any:
            del seed, options
            self.steps = 0
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> Any:
            self.steps += 1
            return np.full(2, self.steps / 10, np.float32), float(action), self.steps >= 8, False, {}

    options = {"optimizer_class": emo_torch.EmoSens, "optimizer_kwargs": {}}
    model = sb3.PPO(
        "MlpPolicy",
        World(),
        policy_kwargs=options,
        n_steps=16,
        batch_size=16,
        n_epochs=1,
        seed=0,
        device="cpu",
    )
    with emo_torch.listen(model.policy.optimizer):
        model.learn(16)
    emotion = model.policy.optimizer.emotion
    assert int(emotion.felt) == 1
    assert float(emotion.long) == model.logger.name_to_value["train/loss"]


def test_ignite_feels_the_mean_of_accumulated_losses() -> None:
    engine = pytest.importorskip(
        "ignite.engine", reason="Ignite is not installed: pip install pytorch-ignite"
    )
    model = torch.nn.Linear(3, 1)
    optimizer = emo_torch.EmoSens(model.parameters(), lr=1e-3)
    trainer = engine.create_supervised_trainer(
        model, optimizer, torch.nn.functional.mse_loss, gradient_accumulation_steps=2
    )
    batches = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    mean = torch.stack([torch.nn.functional.mse_loss(model(x), y) for x, y in batches]).mean().detach()
    with emo_torch.listen(optimizer):
        trainer.run(batches, max_epochs=1)
    torch.testing.assert_close(optimizer.emotion.long, mean)


def test_skorch_feels_the_losses_that_it_logs() -> None:
    skorch = pytest.importorskip("skorch", reason="skorch is not installed: pip install skorch")
    net = skorch.NeuralNetRegressor(
        torch.nn.Linear(3, 1),
        max_epochs=1,
        optimizer=emo_torch.EmoSens,
        lr=1e-3,
        batch_size=8,
        train_split=None,
        verbose=0,
    )
    net.initialize()
    with emo_torch.listen(net.optimizer_):
        net.partial_fit(X.numpy(), Y.numpy())
    assert int(net.optimizer_.emotion.felt) == 1
    assert float(net.optimizer_.emotion.long) == net.history[-1, "batches", 0, "train_loss"]
