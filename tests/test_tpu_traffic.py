"""What the collectives of a program move and how long the step waits for them, against sums by hand."""

import pytest

from pipeline.tpu import chips, hlo, traffic

CLOCK = 1.05e9  # of a v4
CUBE = chips.topology("v4:2x2x2")  # 16 replicas on 8 chips, which are no rings: three links of 50 GB/s
EVERY = "replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}"
MIB = 2**20
FULL, SHARD = "f32[2048,128]{1,0:T(8,128)S(3)}", "f32[128,128]{1,0:T(8,128)}"  # 1 MiB; a sixteenth of it


def fusion(name: str, cycles: int) -> str:
    return f'  %{name} = {FULL} fusion(%p), kind=kLoop, calls=%f, backend_config={{"estimated_cycles":"{cycles}"}}'


def measured(*lines: str, before: str = "", topology: chips.Topology = CUBE) -> tuple[dict, int]:
    """Kind to its traffic, and the cycles of waiting, of a program with these lines."""
    text = "HloModule m\n\n" + before + "ENTRY %main (p: f32[]) -> f32[] {\n" + "\n".join(lines) + "\n}\n"
    found, waited = traffic.of_step(hlo.instructions(text), text, topology, topology.replicas)
    return {each.kind: each for each in found}, waited


def cycles(size: float, passes: int = 1, chips: int = 8, links: int = 3) -> float:
    """Each chip sends `chips - 1` of as many parts of `size` bytes, `passes` times."""
    return passes * (chips - 1) / chips * size / (links * 50e9) * CLOCK


@pytest.mark.parametrize("groups", [EVERY, "replica_groups={}", "replica_groups=[1,16]<=[16]"])
def test_an_all_reduce_of_all_replicas(groups):
    moved, waited = measured(f"  %a = {FULL} all-reduce(%x), {groups}, to_apply=%add")
    assert moved["all-reduce"] == traffic.Traffic("all-reduce", 1, MIB, round(cycles(MIB, passes=2)))
    assert waited == round(cycles(MIB, passes=2))


def test_arrays_of_a_tuple_are_moved_together():
    types = (
        "(f32[3,5]{1,0:T(8,128)}, bf16[8]{0:T(256)(128)(2,1)}, /*index=2*/s32[]{:T(128)}, pred[7]{0}, f8e4m3fn[2]{0})"
    )
    moved, _ = measured(f"  %a = {types} all-reduce(%x, %y, %z), {EVERY}, to_apply=%add")
    assert moved["all-reduce"].size == 4 * 15 + 2 * 8 + 4 + 7 + 2


@pytest.mark.parametrize(
    ("groups", "among"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", 1),  # the cores of a chip
        ("{{0,2,4,6},{1,3,5,7}}", 4),
        ("[8,2]<=[16]", 1),
        ("[2,8]<=[8,2]T(1,0)", 8),
        ("[4,4]<=[2,2,4]T(1,0,2)", 2),
    ],
)
def test_chips_of_a_group(groups, among):
    moved, waited = measured(f"  %a = {FULL} all-reduce(%x), replica_groups={groups}, to_apply=%add")
    assert moved["all-reduce"].cycles == waited == round(cycles(MIB, passes=2, chips=among))


@pytest.mark.parametrize(
    ("line", "kind", "expected"),
    [
        (f"  %a = {FULL} all-gather(%x), {EVERY}, dimensions={{0}}", "all-gather", cycles(MIB)),
        (f"  %a = {SHARD} reduce-scatter(%x), {EVERY}, to_apply=%add", "reduce-scatter", cycles(MIB)),
        (f"  %a = {FULL} all-to-all(%x), {EVERY}", "all-to-all", cycles(MIB)),
    ],
)
def test_other_collectives_take_one_pass(line, kind, expected):
    moved, waited = measured(line)
    assert moved == {kind: traffic.Traffic(kind, 1, MIB, round(expected))}
    assert waited == round(expected)


def test_a_permutation_takes_one_link_between_chips():
    line = f"  %a = {FULL} collective-permute(%x), source_target_pairs="
    assert measured(line + "{{0,1},{1,2}}")[1] == round(MIB / 50e9 * CLOCK)
    assert measured(line + "{{0,1},{2,3}}")[1] == 0  # from a core of a chip to the other


def test_rings_have_twice_the_links():
    torus = chips.topology("v4:4x4x4")
    line = f"  %a = {FULL} all-reduce(%x), replica_groups={{}}, to_apply=%add"
    assert measured(line, topology=torus)[1] == round(cycles(MIB, passes=2, chips=64, links=6))


SEND = cycles(MIB, passes=2)  # about 13 thousand cycles
START = f"  %s = {FULL} all-reduce-start(%x), {EVERY}, to_apply=%add"
DONE = f"  %d = {FULL} all-reduce-done(%s)"


@pytest.mark.parametrize(("between", "waited"), [(0, SEND), (5_000, SEND - 5_000), (100_000, 0)])
def test_only_what_is_between_start_and_done_overlaps(between, waited):
    assert measured(fusion("a", 9_000), START, fusion("b", between), DONE, fusion("c", 9_000))[1] == round(waited)


def test_a_start_has_the_size_of_its_done():
    start = f"  %s = ({SHARD}, {FULL}) all-gather-start(%x), {EVERY}, dimensions={{0}}"
    moved, waited = measured(start, f"  %d = {FULL} all-gather-done(%s)")
    assert moved["all-gather"].size == MIB and waited == round(cycles(MIB))


def test_any_collective_can_be_started_as_a_computation():
    body = f"%c (x: f32[]) -> f32[] {{\n  ROOT %r = {SHARD} reduce-scatter(%x), {EVERY}, to_apply=%add\n}}\n\n"
    start = f"  %s = (({FULL}), {SHARD}, u32[]) async-start(%x), calls=%c"
    moved, waited = measured(start, fusion("b", 1_000), f"  %d = {SHARD} async-done(%s)", before=body)
    assert moved["reduce-scatter"].size == MIB and waited == round(cycles(MIB) - 1_000)


def test_the_links_carry_one_transfer_after_the_other():
    second = [line.replace("%s", "%s2").replace("%d", "%d2") for line in (START, DONE)]
    assert measured(START, second[0], DONE, second[1])[1] == round(2 * SEND)
    busy = measured(START, f"  %a = {FULL} all-gather(%x), {EVERY}, dimensions={{0}}", fusion("b", 20_000), DONE)[1]
    assert busy == round(cycles(MIB))  # the sum went on while the program computed


def test_a_start_of_something_else_is_no_collective():
    copy = f"  %s = ({FULL}, {FULL}, u32[]) copy-start(%x)"
    assert measured(copy, fusion("b", 10), f"  %d = {FULL} copy-done(%s)") == ({}, 0)


def test_a_loop_repeats_its_collectives():
    body = f"%body (p: f32[]) -> f32[] {{\n  %a = {FULL} all-reduce(%x), {EVERY}, to_apply=%add\n}}\n\n"
    body += "%cond (p: f32[]) -> pred[] {\n}\n\n"
    loop = '  %w = f32[] while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    moved, waited = measured(loop, before=body)
    assert (moved["all-reduce"].count, moved["all-reduce"].size) == (3, 3 * MIB)
    assert waited == round(3 * SEND)


def test_fusions_of_the_compiler():
    """A scatter is written as a sum of the whole that is cut, a gather as one of zeros that are filled."""
    four = "replica_groups={{0,2,4,6},{1,3,5,7},{8,10,12,14},{9,11,13,15}}"
    before = (
        f"%all-reduce-scatter.1 (i: f32[]) -> f32[] {{\n  %i = {FULL} parameter(0)\n"
        f"  %r = {FULL} all-reduce(%i), {four}, to_apply=%add\n  %r2 = {FULL} all-reduce(%i), {four}, to_apply=%add\n"
        f"  ROOT %s = {SHARD} dynamic-slice(%r, %o)\n}}\n\n"
        f"%all-gather.2.clone (i: f32[]) -> f32[] {{\n  %i = {SHARD} parameter(0)\n"
        f"  ROOT %g = {FULL} all-reduce(%u), {four}, to_apply=%add\n}}\n\n"
        f"%all-reduce-fusion (i: f32[]) -> f32[] {{\n  %i = {SHARD} parameter(0)\n"
        f"  ROOT %g = {SHARD} all-reduce(%i), {EVERY}, to_apply=%add\n}}\n\n"
    )
    moved, waited = measured(
        f"  %f1 = {SHARD} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1",
        f"  %f2 = {SHARD} fusion(%f1), kind=kCustom, calls=%all-reduce-fusion",
        f"  %f3 = {FULL} fusion(%f2), kind=kCustom, calls=%all-gather.2.clone",
        before=before,
    )
    parts = {
        "reduce-scatter": (MIB, cycles(MIB, chips=4)),
        "all-reduce": (MIB // 16, cycles(MIB / 16, passes=2)),
        "all-gather": (MIB, cycles(MIB, chips=4)),
    }
    assert moved == {kind: traffic.Traffic(kind, 1, size, round(needed)) for kind, (size, needed) in parts.items()}
    assert waited == pytest.approx(sum(needed for _, needed in parts.values()), abs=1)
