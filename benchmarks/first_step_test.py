"""The page about the first step says which optimizers are within the bound."""

from benchmarks import first_step


def test_a_first_step_in_a_new_process_is_measured() -> None:
    times = first_step.measure("emo_sens", "tiny", 2, 1)
    assert times.first > times.state > 0.0
    assert times.later > 0.0


def test_the_page_tells_who_is_beyond_the_bound() -> None:
    page = first_step.report(
        {
            ("adamw", "lora"): first_step.Times(9.0, 1.0, 8.0),
            ("emo_sens", "lora"): first_step.Times(0.5, 0.1, 0.1),
            ("emo_airy", "lora"): first_step.Times(0.6, 0.1, 0.3),
            ("emo_clan", "lora"): first_step.Times(0.9, 0.1, 0.3),
        }
    )
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "LoRA" in line
    ]
    assert [row[0] for row in rows] == ["adamw", "emo_sens", "emo_airy", "emo_clan"]
    assert [row[-2] for row in rows] == ["9.00", "5.00 pass", "6.00 **fail**", "9.00 **fail**"]
    assert [row[-1] for row in rows] == ["1.00", "4.00 pass", "3.00 pass", "6.00 **fail**"]
