"""Connections of `emo_torch` to other libraries; each module needs the library of its name."""
