"""Prints the versions that the tests run on: `python -m parity_tests.versions`."""

import importlib.metadata
import platform

from examples.command import simple

PACKAGES = (
    *("torch", "jax", "jaxlib", "optax", "numpy", "safetensors", "flax", "orbax-checkpoint"),
    *("transformers", "lightning", "accelerate", "peft", "pytest", "pytest-xdist"),
    *("bitsandbytes", "dadaptation", "heavyball", "lion-pytorch", "prodigyopt", "pytorch-optimizer"),
    *("schedulefree", "torchao"),
)
"""The packages whose versions decide the results of the tests."""


def versions() -> dict[str, str]:
    """Returns the version of Python and of every package of `PACKAGES` that is installed."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    simple(__doc__).parse_args()
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
