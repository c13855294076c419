"""The known name that is nearest to an unknown one."""

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
    by_plain = {plain_name(each): each for each in known}
    near = difflib.get_close_matches(plain_name(name), by_plain, n=1)
    return f"; did you mean {by_plain[near[0]]!r}?" if near else "."


def plain_name(name: str) -> str:
    """Returns a name in lower case, without underscores: `EmoSens` and `emo_sens` are equal then."""
    return name.replace("_", "").lower()
