import emo_optax
import emo_torch
from benchmarks.step_time.members import MEMBERS, MIDDLING
from benchmarks.step_time.plan import BOUNDS, GROUPS, STANDSTILL, floor_of
from benchmarks.step_time.problems import PROBLEMS
from parity_tests.family import FAMILY


def test_the_whole_family_is_measured() -> None:
    for package, framework in ((emo_torch, "torch"), (emo_optax, "jax")):
        assert set(MEMBERS) == set(package.list_optimizers())
        made = {variant.make for group in GROUPS[framework].values() for variant in group.variants}
        assert set(MEMBERS) <= made


def test_cousins_are_those_of_the_parity_tests() -> None:
    names = {member.title: make for make, member in MEMBERS.items()}
    second = {make for make, member in MEMBERS.items() if member.cousin is None}
    assert second == {"emo_sens", "emo_airy", "emo_cats"}
    for member in FAMILY.values():
        # Costs are compared with the second generation alone; a rule may have its cousin in the third.
        if member.cousin is not None and names[member.cousin] in second:
            assert MEMBERS[names[member.name]].cousin == names[member.cousin]


def test_every_bound_is_of_rows_that_run_side_by_side() -> None:
    for bound in BOUNDS:
        keys = [
            {key for variant in group.variants for key, _ in variant.rows()}
            for group in GROUPS[bound.framework].values()
            if bound.problem in group.problems
        ]
        assert any({bound.row, bound.against} <= group for group in keys), bound


def test_every_row_stands_on_a_floor_that_is_measured() -> None:
    for framework, groups in GROUPS.items():
        variants = [variant for group in groups.values() for variant in group.variants]
        measured = {variant.name for variant in variants if variant.written or variant.make == STANDSTILL}
        for variant in variants:
            assert {floor_of(variant, size) for size in variant.sizes} <= measured, (framework, variant)


def test_a_shadow_that_blends_has_a_floor_of_its_own() -> None:
    (shadow,) = (
        variant for variant in GROUPS["torch"]["shadow"].variants if variant.name == "EmoSens with shadow"
    )
    assert floor_of(shadow, 0.02) == "floor: 4 read, 3 written"
    assert floor_of(shadow, MIDDLING) == "floor: 5 read, 4 written"


def test_the_problems_are_as_large_as_they_should_be() -> None:
    assert (len(PROBLEMS["gpt2"].shapes), PROBLEMS["gpt2"].elements) == (148, 124_439_808)
    assert (len(PROBLEMS["lora"].shapes), PROBLEMS["lora"].elements) == (1000, 8_192_000)
    assert set(PROBLEMS["lora"].shapes) == {(1024, 8), (8, 1024)}
