"""Runs a script whose optimizers hear the losses that go through Accelerate."""

import runpy
import sys
from pathlib import Path

import emo_torch
from emo_torch.integrations.accelerate import losses_from_backward

USAGE = """\
usage: python -m emo_torch.launch script.py [arguments of the script]
       python -m emo_torch.launch -m module [arguments of the module]

Runs a training script as `python script.py` would, while every loss that it gives to
`accelerator.backward` of Accelerate reaches the Emo optimizers that this Accelerator prepared. The
script needs no edit. Undone when it ends. A plain `loss.backward()` cannot be seen.
"""
CANNOT_SEE = (
    "emo_torch.launch hears the losses that a script gives to `accelerator.backward(loss)` of Accelerate, "
    "for optimizers that went through the `prepare` of that Accelerator. A plain `loss.backward()` it "
    "cannot see: such a script needs one line, `opt.watch(loss)` before it or `opt.step(loss=loss)`."
)


def main(arguments: list[str]) -> None:
    """Runs the script or the module that the arguments name, with the rest of them.

    Args:
        arguments: what stands on the command line behind `emo_torch.launch`.
    """
    is_module = arguments[:1] == ["-m"]
    rest = arguments[1:] if is_module else arguments
    if not rest or rest[0].startswith("-"):
        is_help = rest[:1] in (["-h"], ["--help"])
        print(USAGE, end="", file=sys.stdout if is_help else sys.stderr)
        raise SystemExit(0 if is_help else 2)
    argv, path = sys.argv, sys.path[:]
    sys.argv = rest
    try:
        with losses_from_backward():
            if is_module:
                runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
            else:
                # As for `python script.py`: its own folder comes first, in place of this one.
                sys.path[0] = str(Path(rest[0]).resolve().parent)
                runpy.run_path(rest[0], run_name="__main__")
    except emo_torch.LossMissingError as error:
        error.add_note(CANNOT_SEE)
        raise
    finally:
        sys.argv, sys.path[:] = argv, path


if __name__ == "__main__":
    main(sys.argv[1:])
