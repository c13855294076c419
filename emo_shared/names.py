"""The known name that is nearest to an unknown name."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a hint that names the nearest known name, `"; did you mean 'x'?"`, or `"."` for none near.

    Case and underscores make no difference.

    Args:
        name: the unknown name.
        known: the names that there are.

    Example:
        >>> did_you_mean("emo_sense", ["emo_sens", "emo_airy"])
        "; did you mean 'emo_sens'?"
        >>> did_you_mean("adam", ["emo_sens", "emo_airy"])
        '.'
    """
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near is not None else "."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that is nearest to an unknown one, or `None` if none is near.

    Case, underscores and hyphens make no difference.

    Args:
        name: the unknown name.
        known: the names that there are.
    """
    by_plain = {plain_name(each): each for each in known}
    near = difflib.get_close_matches(plain_name(name), by_plain, n=1)
    return by_plain[near[0]] if near else None


def plain_name(name: str) -> str:
    """Returns a name in lower case, without underscores and hyphens, so that EmoSens is emo_sens."""
    return name.replace("_", "").replace("-", "").lower()
