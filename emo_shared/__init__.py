"""Code that `emo_torch` and `emo_optax` share: it imports neither of them, and no framework.

This package is private: its names may change in any release. Import them from `emo_torch` or `emo_optax`.

- `errors`: the error for a file that cannot be used.
- `header`: the header of the safetensors format, written and read.
- `files`: a file that is written in full or not at all, with a digest inside.
- `arrays`: named NumPy arrays in files, and the checks of an optimizer's arrays.
- `eight_bit`: the code of moments in 8 bits.
- `choices`: checks of an option against the values that it may have.
- `names`: the known name that is nearest to an unknown one.
- `version`: the version of both packages.
"""
