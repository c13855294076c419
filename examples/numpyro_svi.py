"""numpyro: its inference passes the loss by itself. Run with `python -m examples.numpyro_svi`."""

from examples.command import answer_early

if __name__ == "__main__":
    answer_early(__doc__, "integrations", ("jax", "optax", "numpyro"))

import jax
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import emo_optax


def model(observed: jax.Array) -> None:
    """Draws a mean, and observations around it."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    with numpyro.plate("rows", len(observed)):
        numpyro.sample("observed", dist.Normal(mean, 1.0), obs=observed)


def main(steps: int = 300) -> tuple[float, float]:
    """Finds the mean of some numbers, prints and returns the first and the last loss."""
    observed = 3.0 + jax.random.normal(jax.random.key(1), (50,))
    # An ELBO is large and noisy: a small gain keeps the emotion from saying "never mind" to each step.
    optimizer = numpyro.optim.optax_to_numpyro(emo_optax.emo_sens(5e-2, gain=0.005))
    svi = SVI(model, AutoNormal(model), optimizer, Trace_ELBO())
    result = svi.run(jax.random.key(0), steps, observed, progress_bar=False)
    _, (_, state) = result.state.optim_state
    first, last = float(result.losses[0]), float(result.losses[-1])
    print(f"loss {first:.1f} -> {last:.1f} in {steps} steps")
    print(f"mean {result.params['mean_auto_loc']:.2f} of {observed.mean():.2f}")
    print("emotion", emo_optax.get_emotion(state).scalar)
    return first, last


if __name__ == "__main__":
    main()
