"""The names in README and on the pages exist."""

import re
from pathlib import Path

import pytest

import emo_optax
import emo_torch
from parity_tests.faults import ALL
from parity_tests.faults_in_codes import FAULTS_IN_AVX512

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HOW_EQUAL = (ROOT / "docs/how_equal.md").read_text()
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
TEXT = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", *PAGES)}


def test_the_readme_is_short_and_names_the_two_commands() -> None:
    assert len(README.splitlines()) <= 120
    assert "\nmake demo " in README
    assert "\nmake test " in README


@pytest.mark.parametrize("page", TEXT)
def test_the_commands_exist(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    targets |= {"test-oldest", "test-newest"}
    named = re.findall(r"(?:`|^)make ([\w-]+)(?=[`\s])", TEXT[page], flags=re.MULTILINE)
    assert {name for name in named if name.islower()} <= targets
    for module in set(re.findall(r"python -m ((?:emo_|parity_|examples|benchmarks)[\w.]*)", TEXT[page])):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_readme_and_the_page_about_equality_name_commands() -> None:
    assert re.findall(r"python -m ([\w.]+)", HOW_EQUAL)
    assert len(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) == 2


@pytest.mark.parametrize("page", TEXT)
def test_the_tests_named_exist(page: str) -> None:
    folders = "parity_tests|examples|benchmarks|emo_optax|emo_torch|emo_shared|docs"
    for path in re.findall(rf"`((?:{folders})/[\w./]+)(?:::\w+)?`", TEXT[page]):
        assert (ROOT / path).exists() or "emo_echo" in path, path  # A member that a page adds.


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_what_it_links_to_exists(page: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXT[page])
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text()
    linked = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", index)}
    pages = set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs/index.md"}
    assert pages <= linked


def test_every_member_is_on_the_page_of_members() -> None:
    words = set(re.findall(r"\w+", (ROOT / "docs/members.md").read_text().lower()))
    for name in {*emo_optax.list_optimizers(), *emo_torch.list_optimizers()}:
        assert {name, name.replace("_", "")} & words, name


@pytest.mark.parametrize(
    ("what", "shown_on", "page"),
    [
        ("yardstick", "docs/quality_of_training.md", "docs/yardstick/tables.md"),
        ("step time", "docs/performance.md", "docs/step_time/tables.md"),
    ],
)
def test_the_figures_are_those_of_the_last_run(what: str, shown_on: str, page: str) -> None:
    shown = TEXT[shown_on].split(f"<!-- {what}: tables -->")[1].split(f"<!-- {what}: end -->")[0]
    measured = " ".join((ROOT / page).read_text().split())
    rows = [line for line in shown.splitlines() if line.strip()]
    assert len(rows) > 20
    for row in rows:
        assert " ".join(row.split()) in measured, row


def test_as_many_faults_are_planted_as_it_says() -> None:
    assert f"plants {len(ALL)} faults" in HOW_EQUAL
    assert f"{len(FAULTS_IN_AVX512)} need a processor with AVX-512" in HOW_EQUAL


def test_both_packages_have_one_version() -> None:
    assert emo_optax.__version__ == emo_torch.__version__
    assert f"\nversion: {emo_optax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {emo_optax.__version__} " in (ROOT / "CHANGELOG.md").read_text()
