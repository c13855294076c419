"""The shared package needs Python and NumPy alone."""

import subprocess
import sys
from pathlib import Path

ALONE = """
import sys
for name in ("torch", "jax", "jaxlib", "optax", "flax", "safetensors", "emo_torch", "emo_optax"):
    sys.modules[name] = None
import importlib, pathlib, tempfile
import numpy as np
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    if not path.name.endswith("_test.py"):
        importlib.import_module(f"emo_shared.{path.stem}".removesuffix(".__init__"))
from emo_shared.arrays import load_arrays, save_arrays
path = pathlib.Path(tempfile.mkdtemp()) / "run"
save_arrays(path, {"x": np.ones(2)})
assert load_arrays(path)["x"].sum() == 2
assert sum(name.startswith("emo_shared.") for name in sys.modules) >= 6
"""


def test_it_needs_no_framework() -> None:
    command = [sys.executable, "-W", "error", "-c", ALONE, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
