"""The arithmetic of `tpu_check` on a recorded compilation, and its advice where a step does not fit.

tests/data/tpu_v4_pico.*: NFNet-pico, 48 pixels, 32 images, 100 classes, gin/f0_jft.gin, compiled for the 8 replicas of
v4:2x2x1 (legacy) by libtpu 0.0.51. Of the program's text the entry computation alone is kept, without its windows and
paths.
"""

import collections
import dataclasses
import functools
import gzip
import io
import json
import pathlib
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipeline.data.augment import Augmentation
from pipeline.tpu import check, chips, compiler, estimate_table, hlo, largest_batch, program
from pipeline.tpu.estimate import Estimate, LargestBatch, estimate
from pipeline.tpu.largest_batch import FittingBatch

DATA = pathlib.Path(__file__).parent / "data"
OUT_OF_MEMORY = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (40.50G) exceeds available HBM (15.25G). HLO module: step."
)


JSON_FIELDS = """
    model train_size classes precision parameters topology chip_config replicas cores_per_replica replica_batch
    global_batch fits hbm_bytes needed_bytes argument_bytes output_bytes temporary_bytes code_bytes parameter_bytes
    average_bytes optimizer_bytes other_bytes state_bytes batch_bytes largest_replica_batch largest_is_verified
    estimated_cycles collective_cycles collectives flops hbm_bytes_accessed step_seconds images_per_second_per_core
    mfu flops_bound_seconds hbm_bound_seconds images steps core_hours chip_hours dollars price_source most_expensive
    compile_seconds versions date refusal
"""


@functools.cache
def recorded() -> tuple[program.Program, compiler.Compilation]:
    content = json.loads((DATA / "tpu_v4_pico.json").read_text())
    step, compilation = content["program"], content["compilation"]
    text = gzip.decompress((DATA / "tpu_v4_pico.hlo.gz").read_bytes()).decode()
    workload, arguments = program.Workload(**step["workload"]), program.ArgumentBytes(**step["arguments"])
    compilation["memory"] = compiler.Memory(**compilation["memory"])
    traced = program.Program(b"", step["replicas"], workload, arguments, step["sources"])
    return traced, compiler.Compilation(hlo=text, **compilation)


def changed(whole, **changes):
    """`whole` with other values of fields of its parts, named as in the JSON."""
    parts = {name: part for name, part in vars(whole).items() if dataclasses.is_dataclass(part)}
    for field, value in changes.items():
        (name,) = (name for name, part in parts.items() if field in vars(part))
        parts[name] = dataclasses.replace(parts[name], **{field: value})
    return dataclasses.replace(whole, **parts)


def estimated(configuration=None, **changes) -> Estimate:
    """The estimate of the recorded compilation; all its fields can be changed."""
    return changed(estimate(*recorded(), chips.topology("v4:2x2x1", configuration)), **changes)


def refused(batch=32, **changes) -> Estimate:
    traced = changed(recorded()[0], replica_batch=batch)
    answer = compiler.Refusal(9.0, compiler.TESTED, OUT_OF_MEMORY, *compiler.used_and_limit(OUT_OF_MEMORY))
    return changed(estimate(traced, answer, chips.topology("v4:2x2x1")), **changes)


def experiment(parts=1, repeats=1, batch=4096):
    data = SimpleNamespace(augmentation=Augmentation(repeats=repeats), batch=batch)
    return SimpleNamespace(data=data, accumulation_steps=parts)


def test_cycles_are_the_sum_over_the_entry_computation():
    text = recorded()[1].hlo
    expected = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text[text.index("\nENTRY") :])))
    assert hlo.cycles(hlo.instructions(text)) == expected == 972_365


def test_estimate_by_hand():
    fields = SimpleNamespace(**estimated().as_dict())
    assert fields.fits
    # The ledger's counts and all gradients go over two links of 50 GB/s: 2 x 2 chips are no ring.
    moved = 4 * (fields.parameters + 5)
    assert fields.collectives == (
        {"kind": "all-reduce", "count": 2, "size": moved, "cycles": fields.collective_cycles},
    )
    assert fields.collective_cycles == pytest.approx(2 * 3 / 4 * moved / 100e9 * 1.05e9, abs=1)
    seconds = (972_365 + fields.collective_cycles) / 1.05e9
    assert fields.step_seconds == pytest.approx(seconds)
    assert fields.images_per_second_per_core == pytest.approx(32 / seconds)
    assert fields.core_hours == pytest.approx(1_000_000 / (32 / seconds) / 3600)
    assert fields.chip_hours == pytest.approx(fields.core_hours / 2)
    assert fields.dollars == pytest.approx(fields.chip_hours * 3.22)
    assert fields.mfu == pytest.approx(fields.flops / seconds / (275e12 / 2))
    assert fields.flops_bound_seconds == pytest.approx(fields.flops / 137.5e12)
    assert fields.hbm_bound_seconds == pytest.approx(fields.hbm_bytes_accessed / 0.614e12)
    parts = fields.argument_bytes + fields.output_bytes + fields.temporary_bytes + fields.code_bytes
    assert fields.needed_bytes == parts
    assert fields.state_bytes == fields.parameter_bytes + fields.optimizer_bytes + fields.other_bytes
    arguments = fields.state_bytes + fields.batch_bytes
    assert 0.3 * fields.argument_bytes < arguments < fields.argument_bytes  # small variables are padded to tiles
    assert fields.parameter_bytes == 4 * fields.parameters


def test_a_replica_of_two_cores_has_both_in_its_numbers():
    one, two = (SimpleNamespace(**estimated(configuration).as_dict()) for configuration in ("legacy", "megacore"))
    for fields in (one, two):  # whose collectives differ
        fields.images_per_core = fields.images_per_second_per_core * fields.step_seconds
        fields.part_of_peak = fields.mfu * fields.step_seconds
        fields.hours_per_second = fields.core_hours / fields.step_seconds
    assert two.images_per_core == pytest.approx(one.images_per_core / 2)
    assert two.part_of_peak == pytest.approx(one.part_of_peak / 2)
    assert two.hours_per_second == pytest.approx(2 * one.hours_per_second)


def test_json_is_flat_and_has_every_field_whether_the_step_fits_or_not():
    for result in (estimated(), refused()):
        fields = json.loads(json.dumps(result.as_dict()))
        assert sorted(fields) == sorted(JSON_FIELDS.split())
        assert not any(isinstance(value, dict) for name, value in fields.items() if name != "versions")
    unknown = {name for name, value in fields.items() if value is None}
    assert unknown == {
        *("argument_bytes", "output_bytes", "temporary_bytes", "code_bytes", "largest_replica_batch"),
        *(
            "estimated_cycles",
            "collective_cycles",
            "flops",
            "hbm_bytes_accessed",
            "step_seconds",
            "images_per_second_per_core",
            "mfu",
        ),
        *("flops_bound_seconds", "hbm_bound_seconds", "core_hours", "chip_hours", "dollars"),
    }
    assert fields["most_expensive"] == fields["collectives"] == [] and fields["fits"] is False


def test_most_expensive_lines():
    time = estimated().time
    assert len(time.most_expensive) == 10
    cycles = [line.cycles for line in time.most_expensive]
    assert cycles == sorted(cycles, reverse=True)
    assert 0.5 * time.estimated_cycles < sum(cycles) <= time.estimated_cycles
    lines = [
        re.fullmatch(r"pipeline/(model|train)/\w+\.py:\d+ \w+(, gradient)?", line.source)
        for line in time.most_expensive
    ]
    assert all(lines) and any(line[2] for line in lines)
    everything = hlo.by_source(hlo.instructions(recorded()[1].hlo), {}, 10_000)
    assert sum(line.cycles for line in everything) == time.estimated_cycles


def test_loops_calls_and_branches_count_as_often_as_they_run():
    def line(name, cycles, opcode="fusion", more=""):
        config = f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
        return (
            f'  %{name} = f32[8,128]{{1,0:T(8,128)S(1)}} {opcode}(%p), {more}metadata={{op_name="{name}"}}, {config}\n'
        )

    text = (
        "HloModule m\n\n%fused (p: f32[]) -> f32[] {\n" + line("inside", 7) + "}\n\n"
        "%body.1 (p: f32[]) -> f32[] {\n" + line("looped", 100) + "}\n\n"
        "%cond.1 (p: f32[]) -> pred[] {\n" + line("compared", 1) + "}\n\n"
        "%left (p: f32[]) -> f32[] {\n" + line("on_left", 20) + "}\n\n"
        "%right (p: f32[]) -> f32[] {\n" + line("on_right", 30) + "}\n\n"
        "%called (p: f32[]) -> f32[] {\n" + line("in_call", 5) + "}\n\n"
        "ENTRY %main (p: f32[]) -> f32[] {\n"
        + line("fused_op", 1000, more="calls=%fused, ")
        + "  %w = (f32[], s32[]) while(%t), condition=%cond.1, body=%body.1, "
        + 'backend_config={"known_trip_count":{"n":"4"}}\n'
        + "  %c = f32[] conditional(%i, %a, %b), branch_computations={%left, %right}\n"
        + "  %d = f32[] conditional(%i, %a, %b), true_computation=%left, false_computation=%right\n"
        + "  ROOT %k = f32[] call(%c), to_apply=%called\n}\n"
    )
    cycles = collections.Counter()
    for instruction in hlo.instructions(text):
        cycles[instruction.operation] += instruction.cycles
    expected = {"fused_op": 1000, "looped": 400, "compared": 4, "on_left": 40, "on_right": 60, "in_call": 5}
    assert cycles == expected
    assert hlo.cycles(hlo.instructions(text)) == sum(expected.values())
    limited = text.replace(', backend_config={"known_trip_count":{"n":"4"}}', "").replace(
        "%cond.1 (p: f32[]) -> pred[] {\n",
        "%cond.1 (p: f32[]) -> pred[] {\n  %limit = s32[]{:T(128)} constant(3)\n"
        "  ROOT %l = pred[]{:T(512)} compare(%i, %limit), direction=LT\n",
    )
    assert hlo.loops(text) == [("body.1", 4)]
    assert hlo.loops(limited) == [("body.1", 3)]
    assert hlo.cycles(hlo.instructions(limited)) == sum(expected.values()) - 101
    alone = hlo.with_entry(text, "body.1")
    assert hlo.cycles(hlo.instructions(alone)) == 100
    assert "%main" not in alone and "%fused" in alone
    for function in (hlo.instructions, hlo.loops):
        with pytest.raises(ValueError, match="no HLO module"):
            function("nothing")


def test_a_refusal_is_an_answer():
    fit = refused().fit
    assert not fit.fits and fit.refusal == OUT_OF_MEMORY
    assert (fit.needed_bytes, fit.hbm_bytes) == (round(40.5 * 2**30), round(15.25 * 2**30))
    assert compiler.used_and_limit("Used 17.5G of 15.48G hbm. Exceeded") == (17.5 * 2**30, round(15.48 * 2**30))
    assert compiler.used_and_limit("RESOURCE_EXHAUSTED") == (None, None)


def test_advice_names_bindings():
    assert check.advice(estimated(), experiment()) == []
    text = "\n".join(check.advice(refused(512), experiment()))
    assert "Experiment.accumulation_steps=4" in text  # 40.5 GiB of 15.25 is 2.7 times too much
    assert "nfnet.recompute_stages" in text and "GLOBAL_BATCH" in text and "--replica_batch=192" in text
    assert "accumulation_steps" not in "\n".join(check.advice(refused(6), experiment()))  # four parts do not divide it
    alone = "\n".join(check.advice(refused(parameter_bytes=15 * 2**30), experiment()))
    assert "megacore" in alone and "accumulation_steps" not in alone


def test_predictions_of_the_largest_batch():
    gib = 2**30
    memory = {"argument_bytes": 3 * gib, "output_bytes": 0, "temporary_bytes": 4 * gib, "code_bytes": 0}
    whole = estimated(hbm_bytes=15 * gib, batch_bytes=0, replica_batch=64, **memory)
    batch = FittingBatch.of(whole)
    assert batch == FittingBatch(images=64, needed_bytes=7 * gib, growing_bytes=4 * gib, hbm_bytes=15 * gib)
    assert largest_batch.from_one(batch, 8) == 192  # 3 GiB stay, 12 are left at 1/16 GiB an image
    assert largest_batch.from_one(batch, 80) == 160
    assert largest_batch.predict(whole, 80) == LargestBatch(160, False)
    assert largest_batch.predict(whole, 256) == LargestBatch(64, False)  # which fits
    assert largest_batch.predict(refused(), 8) == LargestBatch(None, False)
    half = batch._replace(images=32, needed_bytes=int(5.5 * gib))
    assert largest_batch.from_two(half, batch, 8) == (15 - 4) * 32 / 1.5 // 8 * 8


@pytest.mark.parametrize("first", [16, 64, 200, 4096])
@pytest.mark.parametrize("slope", [0.031, 0.11])
def test_search_against_a_compiler_whose_memory_is_known(first, slope):
    """Memory grows by `slope` GiB an image, which the search is not told; 3 GiB stay."""
    tried, gib, hbm = [], 2**30, 15.25

    def attempt(size):
        tried.append(size)
        needed = 3 + slope * size
        if needed > hbm:
            return refused(size)
        return estimated(
            replica_batch=size,
            argument_bytes=2 * gib,
            output_bytes=0,
            code_bytes=0,
            temporary_bytes=round((1 + slope * size) * gib),
            batch_bytes=0,
            hbm_bytes=round(hbm * gib),
        )

    largest = largest_batch.search(attempt(first), 8, attempt)
    assert len(tried) <= 1 + largest_batch.ATTEMPTS
    fitting = [size for size in tried if 3 + slope * size <= hbm]
    assert largest == LargestBatch(max(fitting, default=0), True)
    best = int((hbm - 3) / slope) // 8 * 8
    if first <= best:
        assert largest.largest_replica_batch >= best - 16


def test_the_default_batch_is_the_replicas_share():
    with pytest.raises(
        program.ProgramError, match=r"4096 images does not divide among the 12 replicas.*--replica_batch"
    ):
        check.share_of_replica(experiment(), chips.topology("v5e:3x4"))
    assert check.share_of_replica(experiment(), chips.topology("v4:4x4x4")) == 32
    assert check.batch_multiple(experiment(parts=3, repeats=4)) == 24


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_names_each_stage(terminal):
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
    with estimate_table.stage("Compiling F0", console):
        started = console.file.getvalue()
    assert terminal or started == "Compiling F0 ...\n"
    assert re.search(r"Compiling F0 .*0:00:00", console.file.getvalue())


def test_report_shows_what_matters():
    def shown(result, advice=()):
        console = Console(file=io.StringIO(), width=120)
        estimate_table.show(result, list(advice), console)
        return console.file.getvalue()

    text = shown(estimated(largest_replica_batch=4000))
    for expected in (
        "pico, 0.1M parameters",
        "32 images on 1 core of v4:2x2x1 (legacy), compiled for 8 replicas",
        "fits: 23.3 MiB of 15.25 GiB (arguments 2.4 MiB, temporaries 9.8 MiB, ",
        "0.6 MiB per replica (parameters 0.3 MiB, optimiser 0.3 MiB, others 0.0 MiB); its batch 0.2 MiB",
        "2 all-reduce of 0.3 MiB, 0.00M cycles",
        "4000 images per replica (predicted",
        "0.93 ms (0.97M cycles by the compiler, 0.00M of waiting for collectives)",
        "34,385.0 images/s per core",
        "0.0081 core-hours, 0.004 chip-hours, $0.013",
        "libtpu 0.0.51",
        "Conv2DBackpropInput",
    ):
        assert expected in text
    assert "Untested" not in text
    assert "Untested versions: jax 9 (tested: 0.10.2)" in shown(estimated(versions={"jax": "9"}))
    text = shown(refused(), ["change this"])
    assert "DOES NOT FIT: 40.50 GiB of 15.25 GiB" in text
    assert "change this" in text and "Ran out of memory" in text and "images/s" not in text
