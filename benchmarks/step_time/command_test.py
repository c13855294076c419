import json
import os
from pathlib import Path

import pytest
import torch

import emo_optax
import emo_torch
from benchmarks.step_time import __main__ as command
from benchmarks.step_time.__main__ import main, parse, settings_of
from benchmarks.step_time.members import MEMBERS
from benchmarks.step_time.plan import COMPILED, GROUPS, TRACED, Cell, cells
from benchmarks.step_time.store import Store, environment

# One run for all of these tests, also where several processes share them.
pytestmark = pytest.mark.xdist_group("step_time")

ARGUMENTS = ["--problem", "tiny", "--threads", "1", "--quick"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("step_time")
    assert main([*ARGUMENTS, "--output", str(folder)]) == 0
    return folder


def test_the_whole_family_is_in_the_tables(output: Path) -> None:
    text = (output / "tables.md").read_text()
    for name in emo_torch.list_optimizers():
        assert f"| **{MEMBERS[name].title}** |" in text
    for name in emo_optax.list_optimizers():
        assert f"| **{name}** |" in text
    for theirs in (
        *("AdamW(fused=True)", "AdamW(foreach=True)", "AdamW(foreach=False)", "Adafactor"),
        *("optax.adamw", "optax.lion", "optax.adafactor"),
    ):
        assert f"| {theirs} |" in text
    assert "not measured |" in text  # Bounds are of other problems.
    assert "More than one each: none." in " ".join(text.split())


def test_there_is_a_plot(output: Path) -> None:
    picture = (output / "ratios.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) < 300_000


def test_every_cell_was_kept(output: Path) -> None:
    plan = cells(settings_of(parse(ARGUMENTS)))
    store = Store(output / "results.json", environment())
    for cell in plan:
        found = store.get(cell)
        if cell.kind == "steps":
            variants = GROUPS[cell.framework][cell.group].variants
            keys = {key for variant in variants for key, _ in variant.rows()}
            assert {key for key in keys if not key.startswith("floor")} <= set(found["seconds"]) <= keys
            rounds = {len(times) for times in found["seconds"].values()} | {len(found["external"])}
            (count,) = rounds
            assert cell.rounds <= count <= 2 * cell.rounds
            for costs in found["costs"].values():
                assert costs.get("traces", 1) == costs.get("programs", 1) == 1


def test_a_second_run_measures_only_what_is_missing(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    content = json.loads((output / "results.json").read_text())
    lost = "torch, cpu, 1, steps, tiny, no emotion, 3"
    kept = content["cells"].pop(lost)
    path.write_text(json.dumps(content))
    jobs = []

    def run(job: list[Cell], store: Store, *_: object) -> None:
        jobs.append([cell.key for cell in job])
        store.put(job[0], kept)

    monkeypatch.setattr(command, "_run_process", run)
    for _ in range(2):
        assert main([*ARGUMENTS, "--output", str(tmp_path)]) == 0
    assert jobs == [[lost]]
    assert json.loads(path.read_text()) == json.loads((output / "results.json").read_text())
    assert (tmp_path / "tables.md").read_text() == (output / "tables.md").read_text()


def test_only_the_results_of_the_package_that_changed_are_measured_again(
    output: Path, tmp_path: Path
) -> None:
    content = json.loads((output / "results.json").read_text())
    frameworks = {key.split(",")[0] for key in content["cells"]}
    assert frameworks == {"torch", "jax"}
    content["environment"]["emo_optax"] = "another"
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    store = Store(path, environment())
    assert store.environment == environment()
    kept = {key for key in content["cells"] if key.startswith("torch, ")}
    assert {cell.key for cell in cells(settings_of(parse(ARGUMENTS))) if cell in store} == kept


def test_results_of_other_versions_of_both_packages_are_not_gone_on_with(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((output / "results.json").read_text())
    content["environment"] |= {"emo_optax": "another", "emo_torch": "another"}
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert main([*ARGUMENTS, "--output", str(tmp_path)]) == 2
    assert "--fresh" in capsys.readouterr().out
    assert main([*ARGUMENTS, "--report", "--output", str(tmp_path)]) == 0
    assert "digest another" in " ".join((tmp_path / "tables.md").read_text().split())


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    assert main([*ARGUMENTS, "--output", str(tmp_path)]) == 2
    assert (tmp_path / "results.json").read_text() == "[]"


def test_no_results_make_no_report(tmp_path: Path) -> None:
    assert main(["--report", "--output", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_an_error_names_the_cell(tmp_path: Path) -> None:
    arguments = ["--problem", "tiny", "--threads", "1", "--framework", "torch", "--device", "cuda"]
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match=r"(?s)torch, cuda, 1, steps, tiny.*torch sees no GPU"):
        main([*arguments, "--output", str(tmp_path)])


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--threads", "0"], ["--threads", "4096"], ["--threads", "x"], ["--rounds", "0"]),
        *(["--problem", "huge"], ["--framework", "torch,tf"], ["--device", "tpu"], ["--report", "--fresh"]),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_rest_of_jax_runs_with_the_most_threads_alone_unless_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)

    def groups(*more: str) -> dict[int, list[str]]:
        plan = cells(settings_of(parse(["--framework", "jax", "--problem", "lora", *more])))
        return {count: [cell.group for cell in plan if cell.threads == count] for count in (1, 2)}

    assert groups()[1] == ["second generation", "factors", "steered"]
    assert set(groups()[2]) >= GROUPS["jax"].keys() - {"donation"}
    assert set(groups("--full")[1]) == GROUPS["jax"].keys() - {"donation"}


def test_a_quick_run_is_quick() -> None:
    settings = settings_of(parse(["--quick", "--threads", "1"]))
    assert (settings.rounds, settings.slow_rounds, settings.leaves, settings.compilations) == (
        3,
        1,
        (100,),
        1,
    )
    assert settings.traced == COMPILED
    settings = settings_of(parse(["--threads", "1"]))
    assert settings.traced == TRACED
    assert (settings.rounds, settings.leaves, settings.compilations) == (15, (100, 500, 1000), 5)
    assert settings.problems == ("gpt2", "lora")
