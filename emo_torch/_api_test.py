"""Every public name of the package has a docstring with all its parts, and the package has a map."""

import inspect
from typing import Any

import pytest

import emo_torch
from emo_shared.docstrings_test import gaps
from emo_torch import _public
from emo_torch._members.by_name import MEMBERS

SCREEN = 50
"""The most lines of the docstring of the package."""
MOST_LINES = 120
"""The most lines of a docstring, with the signature."""
THINGS: dict[str, Any] = {
    name: thing for name, thing in vars(_public).items() if callable(thing) and not name.startswith("_")
}


@pytest.mark.parametrize("name", THINGS)
def test_the_docstring_of_a_public_name_has_all_its_parts(name: str) -> None:
    assert gaps(THINGS[name]) == []


@pytest.mark.parametrize("name", THINGS)
def test_a_docstring_is_not_long(name: str) -> None:
    assert len((inspect.getdoc(THINGS[name]) or "").splitlines()) < MOST_LINES


def test_the_docstring_of_the_package_is_a_map_of_one_screen() -> None:
    text = emo_torch.__doc__ or ""
    assert len(text.splitlines()) <= SCREEN
    for member in MEMBERS.values():
        assert member.make.__name__ in text
