"""The pages about trainers for JAX, with the libraries themselves."""

import importlib.metadata
import re
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

PAGES = Path(__file__).parents[2] / "docs" / "trainers"
X = jnp.linspace(-1.0, 1.0, 24).reshape(8, 3)
Y = X.sum(1)
emo_sens = emo_optax.emo_sens

pytestmark = pytest.mark.filterwarnings("ignore")  # The advice of libraries.


def import_trainer(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            module, reason=f"{module} is not installed: pip install -e .[trainers]", exc_type=ImportError
        )


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The losses that the optimizer of a page has felt."""
    losses: list[float] = []
    note = losses.append  # Not the list itself: Equinox takes lists in closures for trees.

    def listening(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        inner = emo_sens(*args, **kwargs)

        def update_fn(
            updates: Any, state: Any, params: Any = None, *, value: Any = None, **others: Any
        ) -> Any:
            jax.debug.callback(lambda loss: note(float(loss)), value)
            return inner.update(updates, state, params, value=value, **others)

        return optax.GradientTransformationExtraArgs(inner.init, update_fn)

    monkeypatch.setattr(emo_optax, "emo_sens", listening)
    return losses


def run_page(page: str, /, **names: Any) -> dict[str, Any]:
    """Runs the Python code of a page of `docs/trainers` as pasted, and returns all names."""
    blocks = re.findall(r"```python\n(.*?)```", (PAGES / f"{page}.md").read_text(), flags=re.DOTALL)
    assert blocks
    names["__name__"] = f"page_{page}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The advice of a trainer.
        for number, block in enumerate(blocks):
            exec(compile(block, f"{page}.md, block {number}", "exec", dont_inherit=True), names)
    jax.effects_barrier()
    return names


def loss_of(weight: Any, batch: Any = (X, Y)) -> jax.Array:
    return jnp.mean((batch[0] @ weight - batch[1]) ** 2)


def floats(values: Any) -> list[float]:
    return [float(value) for value in values]


def test_gpjax_feels_its_history(heard: list[float]) -> None:
    gpx = import_trainer("gpjax")
    data = gpx.Dataset(
        X=jnp.linspace(0.0, 1.0, 8)[:, None], y=jnp.sin(6 * jnp.linspace(0.0, 1.0, 8))[:, None]
    )
    prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=gpx.kernels.RBF())
    if importlib.metadata.version("gpjax").startswith("0."):
        pytest.skip("GPJAX IS OLDER THAN 1.0: pip install 'gpjax>=1.0' (needs jax below 0.11)")
    posterior = prior * gpx.likelihoods.Gaussian()
    names = run_page("gpjax", posterior=posterior, data=data)
    assert heard == floats(np.float32(names["history"]))
    assert len(heard) == 3
    assert names["fitted"].carrier == 0.0


def test_flowjax_feels_the_losses_of_its_batches(heard: list[float]) -> None:
    import_trainer("flowjax.train")
    from flowjax.distributions import Normal

    data = jax.random.normal(jax.random.key(1), (220, 2))
    names = run_page("flowjax", flow=Normal(jnp.ones(2)), data=data, key=jax.random.key(0))
    means = np.asarray(heard, np.float32).reshape(2, -1).mean(1)
    np.testing.assert_allclose(means, names["losses"]["train"], rtol=1e-6)
    assert names["fitted"].carrier == 0.0


def test_jaxopt_feels_the_loss(heard: list[float]) -> None:
    import_trainer("jaxopt")
    start = jnp.asarray([0.1, 0.2, 0.3])
    names = run_page("jaxopt", loss_of=loss_of, params=start)
    assert heard[0] == pytest.approx(float(loss_of(start)), rel=1e-6)
    assert len(heard) == 3
    assert heard[-1] == float(names["state"].value)


def test_dynamax_feels_the_losses_that_it_logs(heard: list[float]) -> None:
    import_trainer("dynamax.utils.optimize")
    names = run_page("dynamax", loss_of=loss_of, params=jnp.asarray([0.1, 0.2, 0.3]), data=(X, Y))
    assert heard == floats(names["losses"])
    assert len(heard) == 3


def test_netket_feels_the_energy_that_it_logs(heard: list[float]) -> None:
    nk = import_trainer("netket")
    space = nk.hilbert.Spin(0.5, 4)
    hamiltonian = nk.operator.IsingJax(space, nk.graph.Chain(4), h=1.0)
    sampler = nk.sampler.MetropolisLocal(space, n_chains=4)
    state = nk.vqs.MCState(sampler, nk.models.RBM(alpha=1, param_dtype=float), n_samples=32, seed=0)
    names = run_page("netket", hamiltonian=hamiltonian, state=state)
    assert heard == floats(np.real(names["log"].data["Energy"]["Mean"]))
    assert len(heard) == 3


def test_blackjax_feels_its_bound(heard: list[float]) -> None:
    import_trainer("blackjax")
    target = jnp.asarray([1.0, -1.0])
    names = run_page(
        "blackjax",
        logdensity=lambda x: -0.5 * jnp.sum((x - target) ** 2),
        position=jnp.zeros(2),
        key=jax.random.key(0),
    )
    assert heard[2] == float(names["info"].elbo)
    assert len(heard) == 4  # The last one is that of SVGD.
    assert np.isfinite(heard[3])


def test_optimistix_feels_the_loss(heard: list[float]) -> None:
    import_trainer("optimistix")
    start = jnp.asarray([0.1, 0.2, 0.3])
    names = run_page("optimistix", loss_of=lambda weight, _: loss_of(weight), params=start)
    assert len(heard) == 3
    assert heard[0] == pytest.approx(float(loss_of(start)), rel=1e-6)
    assert heard[2] == float(names["found"].state.f)


def test_numpyro_feels_the_losses_that_it_logs(heard: list[float]) -> None:
    numpyro = import_trainer("numpyro")
    import_trainer("numpyro.infer.autoguide")
    dist = numpyro.distributions

    def model(data: Any) -> None:
        mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        numpyro.sample("observed", dist.Normal(mean, 1.0), obs=data)

    guide = numpyro.infer.autoguide.AutoNormal(model)
    data = jnp.asarray([2.0, 3.0, 4.0])
    names = run_page("numpyro", model=model, guide=guide, data=data, key=jax.random.key(0))
    assert heard == floats(names["result"].losses)
    assert len(heard) == 5
    scalar = emo_optax.get_emotion(names["result"].state.optim_state).scalar
    assert abs(float(scalar)) < 0.5  # The gain fits: the emotion is not saturated.


def test_penzai_feels_the_losses_that_it_logs(heard: list[float]) -> None:
    import_trainer("penzai.toolshed.basic_training")
    from penzai import pz

    model = pz.nn.Affine.from_config("affine", jax.random.key(0), {"in": 3}, {"out": 1})

    def loss(model: Any, batch: Any) -> Any:
        found = model(pz.nx.wrap(batch[0]).tag("batch", "in")).unwrap("batch", "out")[:, 0]
        return jnp.mean((found - batch[1]) ** 2)

    names = run_page("penzai", model=model, loss_of=loss, batches=[(X, Y)] * 3)
    assert heard == floats(names["log"])
    assert len(heard) == 3


def test_tunix_feels_the_losses_that_it_logs(heard: list[float]) -> None:
    import_trainer("tunix.sft.peft_trainer")
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.layer = nnx.Linear(3, 1, rngs=nnx.Rngs(0))

    def loss(model: Any, x: Any, y: Any) -> Any:
        return jnp.mean((model.layer(x)[:, 0] - y) ** 2)

    batches = [{"x": X, "y": Y}] * 3
    names = run_page("tunix", model=Model(), loss_of=loss, batches=batches)
    history = names["trainer"].metrics_logger.get_metric_history("", "loss", "train")
    assert heard == floats(history)
    assert len(heard) == 3


def test_keras_trains_in_a_loop_of_its_own(heard: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = import_trainer("keras")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=r"[Oo]ptimizer"):
        model.compile(optimizer=emo_sens(1e-3), loss="mse")
    names = run_page("keras", model=model, batches=[(X, Y[:, None])] * 3)
    assert heard == floats(names["losses"])
    assert heard[2] < heard[0]
