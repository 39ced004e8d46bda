"""The arithmetic of `tpu_check` on a recorded compilation, and what it says where a step does not fit.

tests/data/tpu_v4_pico.*: NFNet-pico, 48 pixels, 32 images, 100 classes, gin/f0_jft.gin, compiled for v4:2x2x1 (legacy)
by libtpu 0.0.51. Of the program's text the entry computation alone is kept, without its windows and paths.
"""

import dataclasses
import functools
import gzip
import io
import json
import pathlib
import re
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipeline.data.augment import Augmentation
from pipeline.tpu import check, chips, compiler, estimate, hlo, program, report

DATA = pathlib.Path(__file__).parent / "data"
RUN = estimate.Run(global_batch=4096, epochs=0.5, repeats=2, images=1_000_000)
WHAT = {"train_size": 48, "classes": 100, "precision": "mixed_bfloat16"}
OUT_OF_MEMORY = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (40.50G) exceeds available HBM (15.25G). HLO module: step."
)


@functools.cache
def recorded() -> tuple[program.Program, compiler.Compilation]:
    facts = json.loads((DATA / "tpu_v4_pico.json").read_text())
    text = gzip.decompress((DATA / "tpu_v4_pico.hlo.gz").read_bytes()).decode()
    traced = program.Program(hlo=b"", **facts.pop("program"))
    return traced, compiler.Compilation(hlo=text, **(facts | {"memory": compiler.Memory(**facts["memory"])}))


def recorded_estimate(topology="v4:2x2x1", **changes) -> estimate.Estimate:
    traced, compiled = recorded()
    found = estimate.estimate(traced, compiled, chips.topology(topology), RUN, **WHAT)
    return dataclasses.replace(found, **changes)


def refused(batch=32, **changes) -> estimate.Estimate:
    traced = dataclasses.replace(recorded()[0], batch=batch)
    answer = compiler.Compilation(9.0, compiler.TESTED, OUT_OF_MEMORY, *compiler.used_and_limit(OUT_OF_MEMORY))
    return dataclasses.replace(estimate.estimate(traced, answer, chips.topology("v4:2x2x1"), RUN, **WHAT), **changes)


def experiment(parts=1, repeats=1, batch=4096):
    data = SimpleNamespace(augmentation=Augmentation(repeats=repeats), batch=batch)
    return SimpleNamespace(data=data, accumulation_steps=parts)


def test_cycles_are_the_sum_over_the_entry_computation():
    text = recorded()[1].hlo
    expected = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text[text.index("\nENTRY") :])))
    assert hlo.cycles(hlo.instructions(text)) == expected == 948_039


def test_estimate_by_hand():
    found = recorded_estimate()
    assert found.fits
    seconds = 948_039 / 1.05e9
    assert found.step_seconds == pytest.approx(seconds)
    assert found.images_per_second_per_core == pytest.approx(32 / seconds)
    assert found.images == 1_000_000  # half an epoch, two views of each example
    assert found.core_hours == pytest.approx(1_000_000 / (32 / seconds) / 3600)
    assert found.chip_hours == pytest.approx(found.core_hours / 2)
    assert found.dollars == pytest.approx(found.chip_hours * 3.22)
    assert found.mfu == pytest.approx(found.flops / seconds / (275e12 / 2))
    assert found.flops_bound_seconds == pytest.approx(found.flops / 137.5e12)
    assert found.hbm_bound_seconds == pytest.approx(found.hbm_bytes_accessed / 0.614e12)
    parts = found.argument_bytes + found.output_bytes + found.temporary_bytes + found.code_bytes
    assert found.needed_bytes == parts
    known = found.parameter_bytes + found.average_bytes + found.optimizer_bytes + found.batch_bytes
    assert 0.3 * found.argument_bytes < known < found.argument_bytes  # small variables are padded to tiles
    assert found.gradient_bytes == 4 * found.parameters


def test_a_replica_of_two_cores_has_both_in_its_numbers():
    one, two = recorded_estimate(), estimate.estimate(*recorded(), chips.topology("v4:2x2x1", "megacore"), RUN, **WHAT)
    assert two.images_per_second_per_core == pytest.approx(one.images_per_second_per_core / 2)
    assert two.mfu == pytest.approx(one.mfu / 2)
    assert two.core_hours == pytest.approx(2 * one.core_hours)


def test_most_expensive_lines():
    found = recorded_estimate()
    assert len(found.most_expensive) == 10
    cycles = [line.cycles for line in found.most_expensive]
    assert cycles == sorted(cycles, reverse=True)
    assert 0.5 * found.estimated_cycles < sum(cycles) <= found.estimated_cycles
    assert re.fullmatch(r"pipeline/model/\w+\.py:\d+ \w+(, gradient)?", found.most_expensive[0].source)
    everything = hlo.by_source(hlo.instructions(recorded()[1].hlo), {}, 10_000)
    assert sum(line.cycles for line in everything) == found.estimated_cycles


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
    found = {}
    for instruction in hlo.instructions(text):
        found[instruction.operation] = found.get(instruction.operation, 0) + instruction.cycles
    expected = {"fused_op": 1000, "looped": 400, "compared": 4, "on_left": 40, "on_right": 60, "in_call": 5}
    assert found == expected
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
    with pytest.raises(ValueError, match="no HLO module"):
        hlo.instructions("nothing")


def test_a_refusal_is_an_answer():
    found = refused()
    assert not found.fits
    assert (found.needed_bytes, found.hbm_bytes) == (round(40.5 * 2**30), round(15.25 * 2**30))
    assert found.estimated_cycles is found.core_hours is found.images_per_second_per_core is None
    assert compiler.used_and_limit("Used 17.5G of 15.48G hbm. Exceeded") == (17.5 * 2**30, round(15.48 * 2**30))
    assert compiler.used_and_limit("RESOURCE_EXHAUSTED") == (None, None)
    assert json.loads(report.as_json(found))["fits"] is False


def test_advice_names_bindings():
    assert check.advice(recorded_estimate(), experiment()) == []
    text = "\n".join(check.advice(refused(512), experiment()))
    assert "Experiment.accumulation_steps=4" in text  # 40.5 GiB of 15.25 is 2.7 times too much
    assert "nfnet.recompute_stages" in text and "GLOBAL_BATCH" in text and "--replica_batch=192" in text
    assert "accumulation_steps" not in "\n".join(check.advice(refused(6), experiment()))  # four parts do not divide it
    alone = "\n".join(check.advice(refused(parameter_bytes=15 * 2**30), experiment()))
    assert "megacore" in alone and "accumulation_steps" not in alone


def test_predictions_of_the_largest_batch():
    gib = 2**30
    found = recorded_estimate(
        hbm_bytes=15 * gib, needed_bytes=7 * gib, temporary_bytes=4 * gib, batch_bytes=0, replica_batch=64
    )
    assert estimate.predicted_largest_batch(found, 8) == 192  # 3 GiB stay, 12 are left at 1/16 GiB an image
    assert estimate.predicted_largest_batch(found, 80) == 160
    assert estimate.predicted_largest_batch(refused(), 8) is None
    half = dataclasses.replace(found, replica_batch=32, needed_bytes=int(5.5 * gib))
    assert estimate.fitted_largest_batch(half, found, 8) == (15 - 4) * 32 / 1.5 // 8 * 8


@pytest.mark.parametrize("first", [16, 64, 200, 4096])
@pytest.mark.parametrize("slope", [0.031, 0.11])
def test_search_against_a_compiler_whose_memory_is_known(first, slope):
    """Memory grows by `slope` GiB an image, of which the search knows nothing; 3 GiB stay."""
    tried, gib, hbm = [], 2**30, 15.25

    def attempt(size):
        tried.append(size)
        needed = 3 + slope * size
        if needed > hbm:
            return refused(size)
        return recorded_estimate(
            replica_batch=size,
            needed_bytes=round(needed * gib),
            temporary_bytes=round((1 + slope * size) * gib),
            batch_bytes=0,
            hbm_bytes=round(hbm * gib),
        )

    largest = check.largest_batch(attempt(first), 8, attempt)
    assert len(tried) <= 1 + check.ATTEMPTS
    fitting = [size for size in tried if 3 + slope * size <= hbm]
    assert largest == max(fitting, default=0)
    best = int((hbm - 3) / slope) // 8 * 8
    if first <= best:
        assert largest >= best - 16


def test_the_default_batch_is_the_replicas_share():
    with pytest.raises(
        program.ProgramError, match=r"4096 images does not divide among the 12 replicas.*--replica_batch"
    ):
        check._share(experiment(), chips.topology("v5e:3x4"))
    assert check._share(experiment(), chips.topology("v4:4x4x4")) == 32
    assert check.batch_multiple(experiment(parts=3, repeats=4)) == 24


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_names_each_stage(terminal):
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
    with report.Progress(console)("Compiling F0"):
        time.sleep(0.01)
    text = console.file.getvalue()
    assert "Compiling F0" in text
    assert re.search(r"0:00:0\d" if terminal else r"^  0 s$", text, re.MULTILINE)


def test_report_shows_what_matters():
    def shown(found, advice=()):
        console = Console(file=io.StringIO(), width=120)
        report.show(found, list(advice), console)
        return console.file.getvalue()

    text = shown(recorded_estimate(largest_replica_batch=4000))
    for expected in (
        "pico, 0.1M parameters",
        "32 images on 1 core of v4:2x2x1 (legacy, 8 replicas)",
        "fits: 26.9 MiB of 15.25 GiB",
        "4000 images a replica (predicted",
        "0.90 ms (0.95M cycles)",
        "35,441.6 images/s a core",
        "0.0078 core-hours, 0.0039 chip-hours, $0.013",
        "libtpu 0.0.51",
        "Conv2DBackpropInput",
    ):
        assert expected in text
    assert "Untested" not in text
    assert "Untested versions: jax 9 (tested: 0.10.2)" in shown(recorded_estimate(versions={"jax": "9"}))
    text = shown(refused(), ["change this"])
    assert "DOES NOT FIT: 40.50 GiB of 15.25 GiB" in text
    assert "change this" in text and "Ran out of memory" in text and "images/s" not in text
