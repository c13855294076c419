"""The page about the first step says which optimizers are within the bound."""

from benchmarks import first_step


def test_a_first_step_in_a_new_process_is_measured() -> None:
    first, later = first_step.measure("emo_sens", "tiny", 2, 1)
    assert first > 0.0
    assert later > 0.0


def test_the_page_tells_who_is_beyond_the_bound() -> None:
    page = first_step.report(
        {
            ("adamw", "lora"): (9.0, 1.0),
            ("emo_sens", "lora"): (0.5, 0.1),
            ("emo_airy", "lora"): (0.6, 0.1),
        }
    )
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "LoRA" in line
    ]
    assert [row[0] for row in rows] == ["adamw", "emo_sens", "emo_airy"]
    assert [row[-1] for row in rows] == ["", "pass", "**fail**"]
