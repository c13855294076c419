"""Checks of the value of an option."""


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` if a value is none of the choices."""
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"Invalid {name}: {value!r}; it must be one of {known}")


def check_function(name: str, value: object) -> None:
    """Raises a `TypeError` unless a value can be called."""
    if not callable(value):
        raise TypeError(f"Invalid {name}: {value!r}; it must be a function")


def check_seed(value: object) -> None:
    """Raises a `ValueError` unless a seed is a whole number of 32 bits."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise ValueError(f"Invalid seed: {value!r}; it must be a whole number in [0, 2^32)")
