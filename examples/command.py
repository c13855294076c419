"""Shared code of all commands: a quick `--help`, the name of a missing extra, names in any spelling."""

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from emo_shared.names import plain_name


def answer_early(
    options: str | Callable[[], argparse.ArgumentParser], extra: str, needs: Iterable[str] = ()
) -> None:
    """Answers `--help`, and names a missing package, before the imports that take seconds.

    A module calls this at its top, if it is the command that runs.

    Args:
        options: makes the command's parser; a text for a command without options.
        extra: the extra that installs what the command needs.
        needs: the modules that the command imports from other projects.

    Raises:
        SystemExit: after the help, or for a package that is missing.
    """
    parser = simple(options) if isinstance(options, str) else options()
    is_help = bool({"-h", "--help"} & set(sys.argv[1:]))
    if is_help or isinstance(options, str):
        parser.parse_args(["--help"] if is_help else None)
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        parser.exit(
            2,
            f"{parser.prog}: {', '.join(missing)} missing. Install with pip install "
            f"'emo-optimizers[{extra}]', or from a clone with pip install -e '.[{extra}]'\n",
        )


def simple(text: str) -> argparse.ArgumentParser:
    """Returns the parser of a command without options."""
    spec = sys.modules["__main__"].__spec__
    return argparse.ArgumentParser(prog=f"python -m {spec.name}" if spec else None, description=text)


def one_of(known: Callable[[], Iterable[str]]) -> Callable[[str], str]:
    """Returns a type for argparse: a name in any spelling, `EmoSens` as `emo_sens`.

    Args:
        known: returns the names; called only when a name is given.

    Example:
        >>> one_of(lambda: ["emo_sens", "emo_cats"])("EmoSens")
        'emo_sens'
    """

    def name(text: str) -> str:
        names = {plain_name(each): each for each in known()}
        if plain_name(text) not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names.values())}")
        return names[plain_name(text)]

    return name


def positive_int(text: str) -> int:
    """Returns a whole number above 0 from an argument; the type of counts."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def seed_number(text: str) -> int:
    """Returns a whole number of 0 or more from an argument; the type of seeds."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def file_to_write(text: str) -> Path:
    """Returns the path of a file that a command writes at its end; the type of such arguments."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, and must be the path of a file")
    folder_to_write(str(path.parent))
    return path


def folder_to_write(text: str) -> Path:
    """Returns the path of a folder that a command makes and writes to; the type of such arguments."""
    path = Path(text)
    nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise argparse.ArgumentTypeError(f"nothing can be written to {text}: {nearest} does not allow it")
    return path


def pattern(text: str) -> str:
    """Returns a regular expression from an argument."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from error
    return text
