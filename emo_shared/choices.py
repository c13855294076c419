"""Checks of the value of an option."""

import numbers
import os


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` if a value is none of the choices."""
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"Invalid {name}: {value!r}; it must be one of {known}")


def number_in(value: object) -> str:
    """Returns how to write a number that was given as text, as a part of an error message.

    A configuration file in YAML reads `1e-3`, without a point, as text.

    Example:
        >>> number_in("1e-3")
        ", such as float('1e-3')"
        >>> number_in("fast")
        ''
    """
    try:
        float(value if isinstance(value, str) else "no text")
    except ValueError:
        return ""
    return f", such as float({value!r})"


def check_path(path: object) -> None:
    """Raises a `TypeError` for anything but a path, such as the contents of a file."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"The path of the file comes first, and this is of the type {type(path).__name__}")


def check_function(name: str, value: object) -> None:
    """Raises a `TypeError` unless a value can be called."""
    if not callable(value):
        raise TypeError(f"Invalid {name}: {value!r}; it must be a function")


def check_seed(value: object) -> None:
    """Raises a `ValueError` unless a seed is a whole number of 32 bits."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not 0 <= int(value) < 2**32:
        raise ValueError(f"Invalid seed: {value!r}; it must be a whole number in [0, 2^32)")
