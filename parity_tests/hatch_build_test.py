"""The build hook: a wheel with compiled code for one platform, and without a compiler one for all."""

import importlib.util
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

Config = TypeVar("Config")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hook, with a stand-in for hatchling, which is there only while a wheel is built."""

    class Interface(Generic[Config]):
        root = str(ROOT)

        def __init__(self) -> None:
            self.warnings: list[str] = []
            self.app = types.SimpleNamespace(display_warning=self.warnings.append)

    name = "hatchling.builders.hooks.plugin.interface"
    stand_in: Any = types.ModuleType(name)
    stand_in.BuildHookInterface = Interface
    for parent in (
        "hatchling",
        "hatchling.builders",
        "hatchling.builders.hooks",
        "hatchling.builders.hooks.plugin",
    ):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, stand_in)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare(
    hook: Any, monkeypatch: pytest.MonkeyPatch, reason: str = "", *, is_built: bool = False
) -> tuple[Any, list[Path]]:
    """Returns the hook's object, and where it asked for the library; `reason` lets the build fail.

    `is_built` says that an up-to-date library is in place, whatever this checkout has.
    """
    build, asked = hook._build_module(ROOT), list[Path]()

    def fake(folder: Path) -> Any:
        asked.append(folder)
        if reason:
            raise build.BuildError(reason)
        return build.Built(folder / build.LIBRARY, folder / build.RECORD, ("plain",), True)

    monkeypatch.setattr(build, "build", fake)
    monkeypatch.setattr(build, "is_built", lambda _: is_built)
    monkeypatch.setattr(hook, "_build_module", lambda _: build)
    return hook.CompiledCode(), asked


def test_a_wheel_with_compiled_code_is_one_for_this_platform(
    hook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, asked = prepare(hook, monkeypatch)
    data: dict[str, Any] = {"force_include": {}, "pure_python": True}
    own.initialize("standard", data)
    (folder,) = asked
    assert ROOT not in folder.parents
    names = (hook._build_module(ROOT).LIBRARY, hook._build_module(ROOT).RECORD)
    assert data["force_include"] == {str(folder / name): f"emo_torch/_kernels/{name}" for name in names}
    assert not data["pure_python"]
    assert data["tag"] == "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert own.warnings == []
    own.finalize("standard", data, "")
    assert not folder.exists()


@pytest.mark.parametrize("is_built", [False, True], ids=["missing", "up-to-date"])
def test_an_editable_install_has_it_beside_the_sources(
    hook: Any, monkeypatch: pytest.MonkeyPatch, is_built: bool
) -> None:
    own, asked = prepare(hook, monkeypatch, is_built=is_built)
    data: dict[str, Any] = {"force_include": {}}
    own.initialize("editable", data)
    assert asked == ([] if is_built else [ROOT / "emo_torch" / "_kernels"])
    assert data == {"force_include": {}}
    own.finalize("editable", data, "")


def test_a_build_that_fails_is_said_once_and_fails_no_install(
    hook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _ = prepare(hook, monkeypatch, "no C compiler was found")
    data: dict[str, Any] = {"force_include": {}, "pure_python": True}
    own.initialize("standard", data)
    assert data == {"force_include": {}, "pure_python": True}
    (warning,) = own.warnings
    assert "without compiled code" in warning
    assert "no C compiler was found" in warning
    own.finalize("standard", data, "")


def test_the_module_that_builds_needs_no_framework(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "numpy", "emo_torch", "emo_shared"):
        monkeypatch.setitem(sys.modules, name, None)
    assert hook._build_module(ROOT).LIBRARY
