"""A release: the README's links, the versions, the pinned actions, and the files not in the wheel."""

import importlib.util
import re
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest

import emo_torch

ROOT = Path(__file__).parent.parent
URL = "https://github.com/someone/somewhere"


def module_from(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hook, with a stand-in for hatchling, which is there only while a wheel is built."""

    class Interface:
        root = str(ROOT)

    name = "hatchling.metadata.plugin.interface"
    parts = name.split(".")
    for count in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
    stand_in: Any = types.ModuleType(name)
    stand_in.MetadataHookInterface = Interface
    monkeypatch.setitem(sys.modules, name, stand_in)
    return module_from(ROOT / "hatch_metadata.py")


def test_a_release_has_addresses_and_a_readme_of_absolute_links(
    metadata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/somewhere")
    made: dict[str, Any] = {}
    metadata.Addresses().update(made)
    targets = re.findall(r"\]\(([^)#]+)", made["readme"]["text"])
    assert len(targets) > 10
    assert all(target.startswith("https://") for target in targets)
    assert f"{URL}/raw/v{emo_torch.__version__}/docs/pictures/" in made["readme"]["text"]  # The pictures.
    assert made["urls"]["Repository"] == URL


def test_without_an_address_the_readme_stays(metadata: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    made: dict[str, Any] = {}
    metadata.Addresses().update(made)
    assert made == {"readme": {"content-type": "text/markdown", "text": (ROOT / "README.md").read_text()}}


def test_a_release_is_refused_where_tag_changelog_or_citation_differ(tmp_path: Path) -> None:
    check = module_from(ROOT / ".github/check_release.py")
    (tmp_path / "emo_shared").mkdir()
    (tmp_path / "emo_shared/version.py").write_text('"""Text."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("## 1.2.3 (2030-01-31)\n")
    (tmp_path / "CITATION.cff").write_text("a: b\nversion: 1.2.3\n")
    assert check.problems("tag", "v1.2.3", tmp_path) == []
    assert check.problems("tag", "v1.2.4", tmp_path) != []
    assert check.problems("branch", "main", tmp_path) == []
    (tmp_path / "CHANGELOG.md").write_text("## 1.2.3 (unreleased)\n")
    (tmp_path / "CITATION.cff").write_text("version: 1.2.2\n")
    assert len(check.problems("branch", "main", tmp_path)) == 2


def test_every_action_is_pinned() -> None:
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    uses = [use for path in workflows for use in re.findall(r"uses: (.+)", path.read_text())]
    assert len(uses) > 10
    for use in uses:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use


def test_the_wheel_leaves_tests_out() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    rooms = {"emo_optax/_distributed", "emo_torch/_distributed"}
    assert set(build["exclude"]) == {"*_test.py", "emo_torch/_testing.py", *rooms}
