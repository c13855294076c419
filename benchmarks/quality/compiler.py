"""Makes XLA compile fast: these programs are small and run once. Import it before JAX."""

import os

FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"
"""Compiling takes half the time; one thread, because several would wait for each other."""


def compile_fast() -> None:
    """Sets the flags of XLA for this process, unless JAX has read them already."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()


compile_fast()
