"""How well the optimizers train small tasks, over learning rates, in noise and in spikes.

Run with `python -m benchmarks.quality`. A run that is stopped resumes where it was.
"""
