"""The cost of one optimizer step: time, memory, compilation.

Run `python -m benchmarks.step_time`, or read it in this order: `plan` says who is measured against whom
and which bounds hold, `problems` on which tensors, `rounds` how; `torch_side` and `jax_side` hold the
optimizers, `floor` what no step can beat, `memory` counts temporaries; `worker` runs one framework with one
number of threads in a process of its own; `store` keeps what is finished, and `report` and `pictures` show
it.
"""
