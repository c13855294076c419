"""Public names of a package that are imported at the first use of one of them.

A framework takes one to two seconds to import. A command that prints its help, or a program that asks for
the version, does not wait for the framework.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

PUBLIC = "_public"
"""The module of a package that imports all public names, each as `from ... import name as name`."""
PARTS = ("integrations",)
"""The public subpackages. A subpackage is imported when its name is used."""


def names_on_first_use(package: str, extra: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the functions `__getattr__` and `__dir__` of a package (PEP 562).

    The first use of a public name, of `dir` or of `__all__` imports the module `_public` of the package.
    All of its names then become attributes of the package, for which Python does not call `__getattr__`.

    Args:
        package: the name of the package.
        extra: the extra of emo-optimizers that installs the framework of the package.
    """

    def load() -> dict[str, Any]:
        try:
            public = vars(importlib.import_module(f"{package}.{PUBLIC}"))
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.partition(".")[0] != package:
                error.add_note(f"{package} needs this package: pip install 'emo-optimizers[{extra}]'")
            raise
        attributes = vars(sys.modules[package])
        attributes["__all__"] = [name for name in public if not name.startswith("_")]
        for name in attributes["__all__"]:
            attributes.setdefault(name, public[name])
        return attributes

    def get(name: str) -> Any:
        hint = "."
        if name in PARTS:
            return importlib.import_module(f"{package}.{name}")
        # Python's tools ask every module for special names, such as `__wrapped__`: no use of the package.
        if name == "__all__" or not name.startswith("__"):
            attributes = load()
            if name in attributes:
                return attributes[name]
            from emo_shared.names import did_you_mean

            hint = did_you_mean(name, attributes["__all__"])
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")

    def names() -> list[str]:
        attributes = load()
        own = [name for name, thing in attributes.items() if isinstance(thing, ModuleType)]
        special = [name for name in attributes if name.startswith("_")]
        return sorted({*attributes["__all__"], *PARTS, *own, *special})

    return get, names
