"""Handwritten digits, learnt in Flax NNX and in PyTorch from the same weights and batches.

Run `python -m examples.digits`, or read it in this order: `flax_side` and `torch_side` show how to use
the optimizers, `comparison` trains with both, `report` draws.
"""
