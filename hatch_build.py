"""Builds the compiled code into the wheel; a wheel without it where there is no C compiler."""

import importlib.util
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledCode(BuildHookInterface[Any]):
    """The hook of `tool.hatch.build.targets.wheel.hooks.custom`."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds in place for an editable install, else into the wheel, which belongs to a platform then.

        A library in place that fits its sources is kept.

        Args:
            version: "editable" or "standard".
            build_data: what hatchling asks of a hook.
        """
        build = _build_module(Path(self.root))
        is_editable = version == "editable"
        self._temporary = None if is_editable else tempfile.TemporaryDirectory()
        folder = build.SOURCES if self._temporary is None else Path(self._temporary.name)
        if is_editable and build.is_built(folder):
            return
        try:
            built = build.build(folder)
        except build.BuildError as error:
            self.app.display_warning(
                f"emo_torch is installed without compiled code, and steps take longer: {error}. With a C "
                "compiler, install it again or run `python -m emo_torch.build`."
            )
            return
        if is_editable:
            return
        for path in (built.library, built.record):
            build_data["force_include"][str(path)] = f"emo_torch/_kernels/{path.name}"
        build_data["pure_python"] = False
        # Nothing in it depends on Python's version: only on the platform.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Removes the library that is in the wheel now."""
        if self._temporary is not None:
            self._temporary.cleanup()


def _build_module(root: Path) -> ModuleType:
    """Returns `emo_torch.build`, without PyTorch, which its package imports."""
    path = root / "emo_torch" / "build.py"
    spec = importlib.util.spec_from_file_location("emo_torch_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
