"""Runs a script, and passes the loss of every backward pass to its optimizers."""

import runpy
import sys
from pathlib import Path

import emo_torch

USAGE = """\
usage: python -m emo_torch.launch script.py [arguments of the script]
       python -m emo_torch.launch -m module [arguments of the module]

Runs a training script as `python script.py` would, inside `emo_torch.listen`: the loss of every backward
pass reaches the Emo optimizers whose parameters the pass reaches. The script needs no edit. The listener
ends with the script. If the script passes a loss itself, the optimizer takes this loss.
"""
CANNOT_HEAR = (
    "emo_torch.launch sums the losses of `loss.backward()` and `torch.autograd.backward(loss)` since the "
    "last step. If the script computes its gradients in another way, add one line to it: "
    "`opt.watch(loss)` before the gradients are computed, or `opt.step(loss=loss)`."
)


def main(arguments: list[str]) -> None:
    """Runs the script or the module that the arguments name, with the rest of them.

    Args:
        arguments: the arguments after `emo_torch.launch` on the command line.
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
        with emo_torch.listen():
            if is_module:
                runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
            else:
                # As for `python script.py`: its own folder comes first, in place of this one.
                sys.path[0] = str(Path(rest[0]).resolve().parent)
                runpy.run_path(rest[0], run_name="__main__")
    except emo_torch.LossMissingError as error:
        error.add_note(CANNOT_HEAR)
        raise
    finally:
        sys.argv, sys.path[:] = argv, path


if __name__ == "__main__":
    main(sys.argv[1:])
