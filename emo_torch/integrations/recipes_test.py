"""The pages about trainers for vision, science and control, with the libraries themselves."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import emo_torch
from emo_torch._testing import Listening, batch, import_trainer, run_page, small_model

pytestmark = pytest.mark.filterwarnings("ignore")  # The advice of libraries.


@pytest.fixture(autouse=True)
def _listening(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The optimizer of the pages writes down the losses that it felt."""
    monkeypatch.setattr(emo_torch, "EmoSens", Listening)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def loss_of(model: Any, given: Any) -> torch.Tensor:
    x, y = given
    loss: torch.Tensor = (model(x) - y).square().mean()
    return loss


def batches(count: int = 4) -> list[Any]:
    return [batch(step) for step in range(count)]


def test_monai_feels_the_losses_that_it_puts_out() -> None:
    import_trainer("monai.engines")
    from monai.handlers import StatsHandler  # noqa: F401  # Its events need ignite, as its trainers do.

    given = [{"image": x, "label": y} for x, y in batches()]
    names = run_page("monai", model=small_model(), batches=given)
    assert len(names["optimizer"].heard) == 4
    assert names["optimizer"].heard[-1] == names["trainer"].state.output[0]["loss"]


def test_mmengine_feels_the_mean_of_accumulated_losses() -> None:
    mmengine = import_trainer("mmengine.runner")
    from mmengine.model import BaseModel

    class Model(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = small_model()
            self.seen: list[Any] = []

        def forward(self, x: Any, y: Any, mode: str = "loss") -> Any:
            assert mode == "loss"
            loss = loss_of(self.net, (x, y))
            self.seen.append(loss.detach())
            return {"loss": loss}

    model = Model()
    rows = [torch.cat(tensors) for tensors in zip(*batches(), strict=True)]
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows), batch_size=4)
    names = run_page("mmengine", model=model, batches=data)
    first, second, third, fourth = model.seen
    parts = [float(first / 2 + second / 2), float(third / 2 + fourth / 2)]
    assert names["optimizer"].heard == parts
    assert names["runner"].message_hub.get_scalar("train/loss").data[0][-1] == float(fourth)
    registry = mmengine.Runner and pytest.importorskip("mmengine.registry").OPTIMIZERS
    registry.register_module(module=emo_torch.EmoSens, name="EmoSens", force=True)
    built = registry.build({"type": "EmoSens", "lr": 1e-3, "params": list(model.parameters())})
    assert type(built) is emo_torch.EmoSens


def test_poutyne_feels_the_losses_of_its_batches() -> None:
    import_trainer("poutyne")
    names = run_page("poutyne", network=small_model(), batches=batches())
    heard = names["optimizer"].heard
    assert len(heard) == 4
    assert np.mean(heard) == pytest.approx(names["history"][0]["loss"], rel=1e-6)


def test_fabric_feels_the_losses() -> None:
    import_trainer("lightning")
    names = run_page("fabric", model=small_model(), batches=batches(), loss_of=loss_of)
    assert len(emo_torch.unwrap(names["optimizer"]).heard) == 4  # type: ignore[attr-defined]
    assert emo_torch.unwrap(names["optimizer"]).heard[-1] == float(names["loss"].detach())  # type: ignore[attr-defined]


def test_deepxde_feels_the_losses_that_it_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDE_BACKEND", "pytorch")
    dde = import_trainer("deepxde")

    def equation(x: Any, y: Any) -> Any:
        return dde.grad.hessian(y, x) + 1.0

    data = dde.data.PDE(
        (line := dde.geometry.Interval(0, 1)),
        equation,
        dde.icbc.DirichletBC(line, lambda x: np.zeros((len(x), 1)), lambda _, is_end: is_end),
        num_domain=8,
        num_boundary=2,
    )
    names = run_page("deepxde", data=data, net=dde.nn.FNN([1, 8, 1], "tanh", "Glorot normal"))
    logged = [float(np.float32(sum(parts))) for parts in names["history"].loss_train]
    assert len(names["optimizer"].heard) == 3
    assert names["optimizer"].heard == pytest.approx(logged[:3], rel=1e-6)


def test_botorch_feels_the_negative_likelihood() -> None:
    import_trainer("botorch")
    from botorch.models import SingleTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None]
    model = SingleTaskGP(x, (6 * x).sin())
    made: list[Any] = []

    class Kept(Listening):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    emo_torch.EmoSens = Kept  # type: ignore[misc]  # Undone by the fixture.
    log: list[float] = []
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    run_page("botorch", mll=mll, callback=lambda _, result: log.append(result.fval))
    assert made[0].heard == log
    assert len(log) == 5


def test_opacus_feels_the_losses() -> None:
    import_trainer("opacus")
    x, y = batch(0, examples=8)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    names = run_page("opacus", model=small_model(), loader=loader, loss_of=loss_of)
    inside: Any = emo_torch.unwrap(names["optimizer"])
    assert inside.heard == [float(names["loss"].detach())]


def test_timm_makes_every_member_by_its_registry() -> None:
    timm = import_trainer("timm.optim")
    names = run_page("timm", model=small_model(), batches=batches(1), loss_of=loss_of)
    optimizer = names["optimizer"]
    assert type(optimizer).__name__ == "EmoSens"
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.01]
    assert float(optimizer.emotion.long) == float(names["loss"].detach())
    assert names["register_optimizers"]() == []
    for name in emo_torch.list_optimizers():
        made = timm.create_optimizer_v2(small_model(), opt=name.replace("_", ""), lr=1e-3, eps=1e-8)
        assert type(made) is type(emo_torch.create_optimizer(name, [torch.nn.Parameter(torch.ones(2))]))
    ahead = timm.create_optimizer_v2(small_model(), opt="lookahead_emosens", lr=1e-3)
    assert emo_torch.unwrap(ahead) is not ahead


def test_torchrl_feels_the_losses_of_its_module() -> None:
    import_trainer("torchrl.trainers")
    from tensordict import TensorDict

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_model()
            self.seen: list[Any] = []

        def forward(self, data: Any) -> Any:
            loss = loss_of(self.net, (data["x"], data["y"]))
            self.seen.append(float(loss.detach()))
            return TensorDict({"loss": loss}, [])

    class Collector:
        requested_frames_per_batch = 16
        frames_per_batch = 16
        init_random_frames = 0

        def __iter__(self) -> Any:
            for step in range(2):
                x, y = batch(step, examples=16)
                yield TensorDict({"x": x, "y": y}, [16])

        def shutdown(self, *args: Any, **kwargs: Any) -> None:
            pass

        def set_seed(self, seed: int, **kwargs: Any) -> int:
            return seed + len(kwargs)

        def update_policy_weights_(self, *args: Any, **kwargs: Any) -> None:
            pass

    module = Loss()
    names = run_page("torchrl", collector=Collector(), loss_module=module)
    assert names["optimizer"].heard == module.seen
    assert len(module.seen) == 2


def test_pyro_feels_what_its_step_returns() -> None:
    pyro = import_trainer("pyro")
    from pyro import distributions as dist

    pyro.clear_param_store()

    def model(data: Any) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=data)

    def guide(data: Any) -> None:
        del data
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("mean", dist.Normal(loc, scale))

    data = torch.linspace(0.0, 2.0, 8)
    names = run_page("pyro", model=model, guide=guide, data=data)
    optimizers = list(names["optimizer"].optim_objs.values())
    assert len(optimizers) == 2
    for optimizer in optimizers:
        assert optimizer.heard == [float(np.float32(loss)) for loss in names["losses"]]
    pyro.clear_param_store()
    plain = pyro.infer.SVI(
        model, guide, pyro.optim.PyroOptim(emo_torch.EmoSens, {"lr": 1e-2}), pyro.infer.Trace_ELBO()
    )
    with emo_torch.listen(), pytest.raises(emo_torch.LossMissingError, match="made after the last"):
        plain.step(data)


def test_stable_baselines3_feels_the_losses_that_it_logs() -> None:
    import_trainer("stable_baselines3")
    gym = import_trainer("gymnasium")

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

    model = run_page("stable_baselines3", world=World())["model"]
    assert model.policy.optimizer.heard == [model.logger.name_to_value["train/loss"]]


@pytest.mark.parametrize("with_listener", [False, True])
def test_skorch_feels_the_losses_that_it_logs(with_listener: bool) -> None:
    import_trainer("skorch")
    x, y = batch(0, examples=16)
    with emo_torch.listen() if with_listener else contextlib.nullcontext():
        net = run_page("skorch", module=torch.nn.Linear(4, 1), X=x.numpy(), y=y.numpy())["net"]
    logged = [part["train_loss"] for epoch in net.history for part in epoch["batches"]]
    assert net.optimizer_.heard == logged
    assert len(logged) == 4


def test_ignite_feels_the_mean_of_accumulated_losses() -> None:
    import_trainer("ignite.engine")
    model, given = small_model(), batches(2)
    parts = [torch.nn.functional.mse_loss(model(x), y).detach() / 2 for x, y in given]
    names = run_page("ignite", model=model, batches=given)
    assert names["optimizer"].heard == [float(parts[0] + parts[1])]
    assert names["trainer"].state.output == pytest.approx(2 * float(parts[1]))


def test_fastai_feels_the_losses_that_it_records() -> None:
    import_trainer("fastai.learner")
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader

    data = [(x[0], y[0]) for x, y in (batch(step, 1) for step in range(8))]
    dls = DataLoaders(DataLoader(data, bs=4, num_workers=0), DataLoader(data, bs=4, num_workers=0))
    learner = run_page("fastai", dls=dls, model=small_model())["learner"]
    heard = learner.opt.opt.heard
    smooth, shown = 0.0, []
    for number, loss in enumerate(heard, start=1):  # As fastai's recorder shows losses.
        smooth = 0.98 * smooth + 0.02 * loss
        shown.append(smooth / (1 - 0.98**number))
    assert len(heard) == 2
    assert [float(loss) for loss in learner.recorder.losses] == pytest.approx(shown, rel=1e-5)
