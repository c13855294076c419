"""The error for a file that cannot be used."""


class CheckpointError(ValueError):
    """A file is damaged, of another layout, or lacks the requested contents.

    `emo_torch.CheckpointError` and `emo_optax.CheckpointError` are this class.

    Example:
        >>> import pathlib, tempfile
        >>> from emo_shared.arrays import load_arrays
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.safetensors"
        >>> _ = path.write_bytes(b"")
        >>> try:
        ...     load_arrays(path)
        ... except CheckpointError as error:
        ...     print(str(error).split(": ")[1].split(". ")[0])
        the file was cut off or changed after it was written
    """
