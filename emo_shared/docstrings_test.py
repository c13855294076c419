"""The parts that the docstring of a public name must have. The API tests of both packages use them."""

import inspect
import re
from typing import Any, NamedTuple

import pytest

CHECKS = re.compile(r"\braise \w|\bcheck_\w+\(")
"""The source text of a function that refuses bad input."""
NUMBERS = re.compile(r"\b(float|int|Tensor|Array|ScalarOrSchedule)\b")
"""The annotation of a number or an array."""
TREES = {"params", "named_params", "state"}
"""Arguments whose shapes are the user's."""
EXTENT = re.compile(
    r"[<>]|at least|at most|\bpositive|\bnegative|\bbetween|\bbelow|\babove|\bin [\[(]|\bfrom -?\d.* to\b"
    r"|\bfinite|\bshapes?\b|\bscalar|0-d|dimension|number of|how many|of one element"
    r"|not used|without effect|\b1, or -1\b|\bsee `|\bas in `"
)
"""How a docstring says which numbers are allowed, or which shape an array has."""


def gaps(thing: Any) -> list[str]:
    """Returns the parts that the docstring of a public function or class lacks, in words.

    Each docstring begins with one sentence. A function or class names every argument, what it returns
    and an example that runs. A number has a range, and an array has a shape. A formula names its source.
    A function that refuses input says so under "Raises". A named tuple describes every field.

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
    found += _without_extent(text, signature)
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


def _without_extent(text: str, signature: inspect.Signature) -> list[str]:
    """Returns the arguments that are numbers or arrays, and whose range or shape is not said."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
    found = []
    for entry in re.finditer(
        r"^    (\w+(?:, \w+)*):(.*?)(?=^    \S|\Z)", section.group(1) if section else "", re.M | re.S
    ):
        for name in entry.group(1).split(", "):
            kind = str(signature.parameters[name].annotation) if name in signature.parameters else ""
            is_number = NUMBERS.search(kind) and "Callable" not in kind and name not in TREES
            if is_number and not EXTENT.search(entry.group(2)):
                found.append(f"the range or the shape of the argument {name} is not said")
    return found


class Point(NamedTuple):
    """A point. It has two fields.

    Attributes:
        x: the first coordinate.
        z: the third coordinate.
    """

    x: float
    y: float


def twice(number: float, power: float = 1.0) -> float:
    r"""Doubles a number.

    .. math:: 2\,x

    Args:
        power: another number.
    """
    if number < 0:
        raise ValueError
    return float(2 * number**power)


@pytest.mark.parametrize(
    ("thing", "parts"),
    [
        (Point, ["one sentence", "field y is not", "no field z"]),
        (twice, ["source", "argument number", "range", "example", "'Returns'", "'Raises'"]),
    ],
)
def test_every_gap_is_found(thing: Any, parts: list[str]) -> None:
    found = gaps(thing)
    assert len(found) == len(parts)
    for gap, part in zip(found, parts, strict=True):
        assert part in gap
