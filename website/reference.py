"""The API reference: every public name of both packages, by the room that it comes from."""

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("emo_torch", "emo_optax")
ROOMS = {
    "members": "Members and the registry",
    "wrappers": "Around any optimizer, metrics, monitors",
    "pieces": "Pieces: emotion, pulse, shadow, weight decay, rounding",
    "rules": "Rules: from a gradient to a direction",
    "state": "Checkpoints, and runs that move",
    "other": "Base classes, errors and constants",
}
"""The pages of each package, in order, with their titles."""
INTEGRATIONS = {
    "emo_torch": ("accelerate", "kohya", "lightning", "transformers"),
    "emo_optax": ("flax",),
}


def public_names(package: ModuleType) -> list[str]:
    """Returns the public names of a package.

    Example:
        >>> import emo_torch
        >>> "EmoSens" in public_names(emo_torch)
        True
    """
    listed = getattr(package, "__all__", None)
    if listed is not None:
        return [name for name in listed if not name.startswith("__")]
    return [
        name
        for name, thing in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    ]


def room(package: ModuleType, name: str) -> str:
    """Returns the page that a public name belongs to, by the folder of its module."""
    module = getattr(getattr(package, name), "__module__", "")
    part = module.split(".")[1].lstrip("_") if module.startswith(package.__name__ + ".") else ""
    if module.startswith("emo_shared.arrays") or "CHECKPOINT" in name or "ARRAYS" in name:
        return "state"
    return part if part in ROOMS else "other"


def directive(package: str, name: str, thing: Any) -> str:
    """Returns the directive that makes Sphinx print the docstring of a name."""
    full = f"{package}.{name}"
    if package != PACKAGES[0] and getattr(thing, "__module__", "").startswith("emo_shared"):
        return f"``{full}``\n   The same object as :py:obj:`{PACKAGES[0]}.{name}`.\n"
    if inspect.isclass(thing):
        members = "" if issubclass(thing, (tuple, BaseException)) else "   :members:\n"
        return f".. autoclass:: {full}\n{members}"
    if callable(thing):
        return f".. autofunction:: {full}\n"
    return f".. autodata:: {full}\n   :no-value:\n"


def page(package: ModuleType, names: list[str], title: str) -> str:
    """Returns a page of the reference, in reStructuredText, which docstrings are written in."""
    heading = f"{package.__name__}: {title[0].lower()}{title[1:]}"
    parts = [f"{heading}\n{'=' * len(heading)}\n", f".. currentmodule:: {package.__name__}\n"]
    parts += [directive(package.__name__, name, getattr(package, name)) for name in names]
    return "\n".join(parts)


def write(folder: Path) -> list[str]:
    """Writes the reference below a folder, and returns the paths of its pages relative to it."""
    (folder / "reference").mkdir(parents=True, exist_ok=True)
    written = []

    def add(name: str, text: str) -> None:
        (folder / "reference" / name).write_text(text)
        written.append(f"reference/{name}")

    for package_name in PACKAGES:
        package = importlib.import_module(package_name)
        names = public_names(package)
        for key, title in ROOMS.items():
            here = [name for name in names if room(package, name) == key]
            if here:
                add(f"{package_name}_{key}.rst", page(package, here, title))
        heading = f"{package_name}.integrations"
        modules = [
            f".. automodule:: {heading}.{name}\n   :members:\n" for name in INTEGRATIONS[package_name]
        ]
        add(f"{package_name}_integrations.rst", "\n".join([f"{heading}\n{'=' * len(heading)}\n", *modules]))
    return written
