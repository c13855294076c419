"""The parts that the docstring of a public name must have. The API tests of both packages use them."""

import inspect
import re
from typing import Any, NamedTuple

import pytest

CHECKS = re.compile(r"\braise \w|\bcheck_\w+\(")
"""The source text of a function that refuses bad input."""


def gaps(thing: Any) -> list[str]:
    """Returns the parts that the docstring of a public function or class lacks, in words.

    Each docstring begins with one sentence. A function or class names every argument, what it returns
    and an example that runs. A formula names its source. A function that refuses input says so under
    "Raises". A named tuple describes every field.

    Args:
        thing: a function or a class.
    """
    text = inspect.getdoc(thing) or ""
    found = []
    first = text.partition("\n\n")[0]
    if not first.endswith((".", ":")) or re.search(r"[.!?] [A-Z]", first.replace("e.g. ", "")):
        found.append("the first paragraph must be one sentence")
    if ".. math::" in text and "Source:" not in text:
        found.append("a formula needs its source")
    if isinstance(thing, type) and issubclass(thing, BaseException):
        return found
    if isinstance(thing, type) and issubclass(thing, tuple):
        return found + _differences("field", "Attributes", text, list(getattr(thing, "_fields", ())))
    signature = inspect.signature(thing)
    found += _differences("argument", "Args", text, list(signature.parameters))
    if ">>> " not in text:
        found.append("an example is missing")
    if not isinstance(thing, type):
        if signature.return_annotation not in (None, "None") and not re.search(
            r"^(Returns|Yields)\b", text, re.M
        ):
            found.append("'Returns' is missing")
        if CHECKS.search(inspect.getsource(thing)) and "Raises:" not in text:
            found.append("'Raises' is missing")
    return found


def _differences(kind: str, title: str, text: str, expected: list[str]) -> list[str]:
    """Returns the names that a section of a docstring lacks, or has in addition."""
    section = re.search(rf"^{title}:\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
    lines = section.group(1) if section else ""
    groups = re.findall(r"^    (\*{0,2}\w+(?:, \w+)*):", lines, re.M)
    described = [name.lstrip("*") for group in groups for name in group.split(", ")]
    missing = [f"the {kind} {name} is not described" for name in expected if name not in described]
    return missing + [f"there is no {kind} {name}" for name in described if name not in expected]


class Point(NamedTuple):
    """A point. It has two fields.

    Attributes:
        x: the first coordinate.
        z: the third coordinate.
    """

    x: float
    y: float


def twice(number: float) -> float:
    r"""Doubles a number.

    .. math:: 2\,x
    """
    if number < 0:
        raise ValueError
    return 2 * number


@pytest.mark.parametrize(
    ("thing", "parts"),
    [
        (Point, ["one sentence", "field y is not", "no field z"]),
        (twice, ["source", "argument number", "example", "'Returns'", "'Raises'"]),
    ],
)
def test_every_gap_is_found(thing: Any, parts: list[str]) -> None:
    found = gaps(thing)
    assert len(found) == len(parts)
    for gap, part in zip(found, parts, strict=True):
        assert part in gap
