"""The rules: from a gradient to a direction. No rule uses the emotion or the learning rate.

- `moments`: helpers that all rules use.
- `adam`, `lion`, `signs`, `factors`: one rule, or two related rules, per file.

Where several rules are computed and one is chosen, `update` takes the extra argument `is_chosen`, a bool
of shape `[]`. Where `is_chosen` is false, the state of the rule stays unchanged and its updates are not
used.
"""
