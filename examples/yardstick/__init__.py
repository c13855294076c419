"""The yardstick: every member of the family and every baseline, measured in the same way.

Run `python -m examples.yardstick`, or read it in this order: `optimizers` says who is measured,
`surfaces` and `sweeps` measure on functions of two numbers, `tasks` and `training` on four small real
tasks, `memory` counts bytes; `plan` decides what is still to be run, `store` keeps what was, and
`tables` and `pictures` show it.
"""
