"""What `tpu_check` traces, its errors, and (slow) the TPU compiler itself."""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf
import tf_keras
from tensorflow.compiler.xla.service import hlo_pb2

from pipeline import registry
from pipeline.data.augment import Augmentation
from pipeline.data.mixing import Mixing
from pipeline.model import cost
from pipeline.tpu import check, chips, compiler, program
from pipeline.train.sam import SAM
from tests import record_sets, tiny_runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = "pipeline/tpu_check.py"
DATASET = program.DatasetInfo(classes=10, images=1000)
SMALL = ('nfnet.variant="nano"', "TRAIN_SIZE=48", "Experiment.num_classes=100")


def has_compiler() -> bool:
    try:
        return not compiler.untested(compiler.versions())
    except compiler.CompilerError:
        return False


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="takes the packages of requirements-tpu.txt")


@pytest.fixture(autouse=True)
def float32_afterwards():
    yield
    tf_keras.mixed_precision.set_global_policy("float32")


def run(*flags, **environment):
    command = [sys.executable, PROGRAM, *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


NEED_DATA = {"finetune_own.gin"}  # whose settings follow from it


@pytest.mark.parametrize("file", sorted({path.name for path in (ROOT / "gin").glob("*_*.gin")} - NEED_DATA))
def test_gin_files_tell_what_it_takes_without_data(file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no data are, whatever this checkout has
    experiment = registry.configured([str(ROOT / "gin" / file)], [])
    if "_jft" in file:
        assert program.dataset_info(experiment) == program.DatasetInfo(30_000, 4_000_000_000)
    elif "_imagenet" in file:
        assert program.dataset_info(experiment) == program.DatasetInfo(1000, 1_281_167)
    else:
        with pytest.raises(program.ProgramError):
            program.dataset_info(experiment)
    assert program.dataset_info(dataclasses.replace(experiment, num_classes=3), images=7) == program.DatasetInfo(3, 7)


def test_what_records_tell(tmp_path):
    record_sets.make(tmp_path, examples=40, classes=5)
    assert program.dataset_info(tiny_runs.experiment(tmp_path)) == program.DatasetInfo(classes=5, images=40)
    wide = tiny_runs.experiment(tmp_path, num_classes=8, data={"images": 1})
    assert program.dataset_info(wide) == program.DatasetInfo(classes=8, images=40)  # the records are believed first


def test_what_is_missing_without_data(tmp_path):
    with pytest.raises(program.ProgramError) as error:
        program.dataset_info(tiny_runs.experiment(tmp_path / "none"))
    for expected in ("no records in", "Experiment.num_classes=N", "--images=N"):
        assert expected in str(error.value)
    with pytest.raises(program.ProgramError) as error:
        program.dataset_info(tiny_runs.experiment(tmp_path / "none", num_classes=3))
    assert "num_classes" not in str(error.value)


def test_a_batch_must_suit_the_experiment(tmp_path):
    with pytest.raises(program.ProgramError, match=r"batch is 0 images"):
        program.check_batch(tiny_runs.experiment(tmp_path), 0)
    repeated = tiny_runs.experiment(tmp_path, augmentation=Augmentation(repeats=4))
    with pytest.raises(program.ProgramError, match=r"cannot take 6 images.*4 views of each example"):
        program.check_batch(repeated, 6)
    with pytest.raises(program.ProgramError, match=r"8 images, which cannot be taken in 3 parts"):
        program.check_batch(tiny_runs.experiment(tmp_path, accumulation_steps=3), 8)


def test_the_step_is_the_experiments_own(tmp_path):
    """Every setting of the experiment reaches the step, and large variables are not written."""
    experiment = tiny_runs.experiment(
        tmp_path,
        sam=SAM(0.1),
        accumulation_steps=2,
        loss="sigmoid",
        seed=3,
        augmentation=Augmentation(repeats=2, mixing=Mixing()),
        epochs=3,
    )
    step, budget = program.training_step(experiment, DATASET)
    assert (step.sam, step.accumulation_steps, step.objective.name) == (SAM(0.1), 2, "sigmoid")
    assert (step.seed, step.repeats) == (3, 2)
    assert step.label_smoothing == experiment.label_smoothing
    assert budget.examples == 3000 and budget.batch == tiny_runs.BATCH // 2
    batch = program.example_batch(experiment, DATASET, 8)
    assert batch["image"].shape == (8, 32, 32, 3)
    assert batch["labels"].shape == batch["label_weights"].shape == (8, 2)  # mixing
    output = step(batch | {"weight": tf.ones([8])})
    assert output.examples.numpy() == 8


def test_an_error_of_keras_reaches_the_caller(monkeypatch):
    """Its class, made where it is raised, cannot be sent from the process that traces."""

    def fail(*_):
        raise type("ValueError", (ValueError,), {})('Exception encountered when calling layer "conv2d"')

    monkeypatch.setattr(program, "trace", fail)
    with pytest.raises(program.ProgramError, match="when calling layer"):
        check._trace(lambda: None, DATASET, 8, 1)


def test_trace(tmp_path):
    experiment = tiny_runs.experiment(tmp_path, ema_decay=0.9, augmentation=Augmentation(repeats=2))
    traced = program.trace(experiment, DATASET, 4, replicas=16)
    weights = 3 * 3 * 3 * 16 + 16 + 16 + 3 * 3 * 16 * 16 + 16 + 16 + 16 * 10 + 10
    assert traced.workload == program.Workload(
        model="tinynet",
        train_size=32,
        classes=10,
        precision="float32",
        parameters=weights,
        replica_batch=4,
        global_batch=tiny_runs.BATCH,
        images=2 * 2500,
        steps=125 + 125 + 63,  # two epochs of 8 examples per step, and half of one
    )
    sizes = traced.arguments
    assert sizes.parameter_bytes == sizes.average_bytes == 4 * weights
    assert 4 * weights < sizes.optimizer_bytes < 4 * weights + 100  # one momentum each, steps and rate
    assert sizes.batch_bytes == 4 * (32 * 32 * 3 + 8 + 4 + 4 + 8 + 4)  # the image in uint8
    assert sizes.other_bytes >= 2 * 3 * 8  # the ledger's counts and checksums
    assert traced.replicas == 16
    sums = set(re.findall(rb"all-reduce\.\d+", traced.hlo))
    assert len(sums) == 1 + 8  # the ledger's counts, and the gradients: two layers of kernel, gain and bias, a last one
    for computation in hlo_pb2.HloModuleProto.FromString(
        traced.hlo
    ).computations:  # what a reader reserves goes by these
        assert [instruction.id for instruction in computation.instructions] == list(
            range(len(computation.instructions))
        )
    lines = set(traced.sources.values())
    assert any(line.startswith("pipeline/model/layers.py:") and line.endswith(" call, gradient") for line in lines)
    assert any(line.startswith("pipeline/train/optimizer.py:") for line in lines)
    assert any(line.startswith("pipeline/train/ema.py:") for line in lines)
    assert not any(line.startswith("pipeline/tpu/") for line in lines)


def test_large_variables_take_no_memory_until_they_are_written(tmp_path):
    """Uninitialised, not drawn: the same shapes as the trainer's, whatever their values."""
    experiment = tiny_runs.experiment(tmp_path)
    unset, drawn = (program.training_step(experiment, DATASET, unset=unset)[0] for unset in (True, False))
    shapes = [[(v.name, v.shape, v.dtype) for v in step.model.variables] for step in (unset, drawn)]
    assert shapes[0] == shapes[1]


def test_a_missing_compiler_is_named(monkeypatch):
    def version(package):
        if package == "libtpu":
            raise importlib.metadata.PackageNotFoundError(package)
        return "0.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(compiler.CompilerError) as error:
        compiler.versions()
    assert "package libtpu" in str(error.value) and "pip install -r requirements-tpu.txt" in str(error.value)


def test_tested_versions_are_the_pinned_ones():
    pinned = dict(line.split("==") for line in (ROOT / "requirements-tpu.txt").read_text().split() if "==" in line)
    assert pinned == compiler.TESTED
    assert compiler.untested(compiler.TESTED) == ""
    assert compiler.untested(compiler.TESTED | {"jax": "1.0"}) == "jax 1.0 (tested: 0.10.2)"


def test_a_bad_topology_is_refused_before_any_work():
    done = run("--gin_file=gin/f0_jft.gin", "--topology=v4:2x2")
    assert done.returncode == 1
    assert "TopologyError: 'v4:2x2' is no topology: chips of v4 have 3 axes" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--json=none/such/estimate.json", "none/such/estimate.json cannot be written: its folder does not exist"),
        ("--replica_batch=0", "replica_batch"),
        ("--replicas=0", "replicas"),
        ("--images=-3", "images"),
    ],
)
def test_bad_flags_are_refused_before_any_work(flag, words):
    done = run("--gin_file=gin/f0_jft.gin", "--topology=v4:2x2x1", flag)
    assert done.returncode == 1
    assert words in done.stderr and "Tracing" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("signal", "words"),
    [("ABRT", r"exit code -6 .* for v4:2x2x1: Check failed: no such chip"), ("KILL", "killed after .* lack of memory")],
)
def test_a_compiler_that_dies_is_reported(monkeypatch, tmp_path, signal, words):
    """Its last words and its exit code, whatever ended it."""
    dying = tmp_path / "python"
    dying.write_text(f"#!/bin/sh\necho 'Check failed: no such chip' >&2\nkill -{signal} $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    monkeypatch.setattr(compiler, "versions", lambda: compiler.TESTED)
    with pytest.raises(compiler.CompilerError, match=words):
        compiler.compile_hlo(b"", "v4:2x2x1", "legacy")


@pytest.mark.parametrize("replicas", [9, -1])
def test_replicas_that_the_topology_does_not_have_are_refused_before_any_work(tmp_path, replicas):
    topology, experiment = chips.topology("v4:2x2x1", "legacy"), tiny_runs.experiment(tmp_path, num_classes=3)
    with pytest.raises(program.ProgramError, match=rf"v4:2x2x1 \(legacy\) has 8 replicas.*compiled for {replicas}:"):
        check.check(experiment, killed, topology, replica_batch=8, images=100, replicas=replicas)


@pytest.mark.parametrize("flag", ["--rehearse", "--report=nowhere"])
def test_a_run_is_taken_on_all_replicas(flag):
    done = run("--gin_file=gin/f0_jft.gin", "--topology=v4:2x2x1", "--replicas=2", flag)
    assert done.returncode == 1
    assert re.search(r"takes the run as it is.* without .*--replicas", done.stderr)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_tracing_process_that_dies_is_reported(tmp_path):
    topology, experiment = chips.topology("v4:2x2x1", "legacy"), tiny_runs.experiment(tmp_path, num_classes=3)
    with pytest.raises(compiler.CompilerError, match="traces the step was killed, very likely for lack of memory"):
        check.check(experiment, killed, topology, replica_batch=8, images=100)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["Tracing", "Compiling"])
def test_a_stopped_check_leaves_nothing_running(stage):
    params = [f"--gin_param={param}" for param in SMALL]
    command = [
        sys.executable,
        PROGRAM,
        "--gin_file=gin/f0_jft.gin",
        *params,
        "--topology=v4:2x2x1",
        "--replica_batch=8",
    ]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert any(line.startswith(stage) for line in process.stderr)
        process.terminate()
        process.stderr.read()  # ends when the last process that can write to it has ended
        assert process.wait() == 128 + signal.SIGTERM
    until = time.monotonic() + 30  # the dead stay listed until init has reaped them
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@needs_compiler
@pytest.mark.slow
def test_a_topology_that_the_compiler_does_not_know():
    with pytest.raises(compiler.CompilerError, match="v4:3x5x7"):
        compiler.compile_hlo(b"", "v4:3x5x7", "legacy")


@needs_compiler
@pytest.mark.slow
def test_nano_for_a_v4(tmp_path):
    """The whole command: a step that fits, with the fields that its users read."""
    params = [f"--gin_param={param}" for param in (*SMALL, "Experiment.shard_optimizer=False")]
    path = tmp_path / "nano.json"
    done = run("--gin_file=gin/f0_jft.gin", *params, "--topology=v4:2x2x1", "--replica_batch=32", f"--json={path}")
    assert done.returncode == 0, done.stderr
    fields = json.loads(path.read_text())
    assert fields["fits"] and fields["versions"] == compiler.TESTED
    assert (fields["model"], fields["replica_batch"], fields["chip_config"], fields["replicas"]) == (
        "nano",
        32,
        "legacy",
        8,
    )
    cycles = fields["estimated_cycles"] + fields["collective_cycles"]
    assert fields["images_per_second_per_core"] == pytest.approx(32 * chips.CHIPS["v4"].clock / cycles)
    # The gradients and the ledger's five numbers are summed, over two links of 50 GB/s.
    moved = 4 * (fields["parameters"] + 5)
    assert sum(each["size"] for each in fields["collectives"]) == pytest.approx(moved, rel=0.01)
    assert fields["collective_cycles"] <= math.ceil(2 * 3 / 4 * moved / 100e9 * 1.05e9 * 1.01)
    assert fields["core_hours"] == pytest.approx(4e9 / fields["images_per_second_per_core"] / 3600)
    parameters = fields["parameter_bytes"] + fields["optimizer_bytes"]
    assert parameters < fields["argument_bytes"] < fields["needed_bytes"] < fields["hbm_bytes"]
    # Three times the forward pass, and what is no convolution.
    convolutions = 32 * 6 * cost.multiply_adds("nano", 48, 100)
    assert 0.8 < fields["flops"] / convolutions < 2
    assert fields["hbm_bytes_accessed"] > fields["argument_bytes"]
    assert len(fields["most_expensive"]) == 10
    assert "images/s per core" in done.stdout and "Compiling nano" in done.stderr


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "file", sorted(path.name for path in (ROOT / "gin").glob("*_*.gin") if re.search("_jft|_imagenet", path.name))
)
def test_every_experiment_of_the_study_compiles(file):
    """Each with its own optimiser, average, SAM, mixing and repeats; a small model in the place of its own."""
    params = ('nfnet.variant="pico"', "TRAIN_SIZE=64")
    done = run(f"--gin_file=gin/{file}", *(f"--gin_param={one}" for one in params), "--topology=v4:4x4x4")
    assert done.returncode == 0, done.stderr
    assert "images/s per core" in done.stdout


@needs_compiler
@pytest.mark.slow
def test_the_largest_batch_is_found_by_compiling(tmp_path):
    """At the batch found the step fits, and a ninth more is more than memory holds."""
    params = ('nfnet.variant="pico"', "TRAIN_SIZE=224", "Experiment.num_classes=100")
    flags = ["--gin_file=gin/f0_jft.gin", *(f"--gin_param={one}" for one in params), "--topology=v5e:2x2"]
    path = tmp_path / "pico.json"
    assert run(*flags, "--replica_batch=256", "--search", f"--json={path}").returncode == 0
    fields = json.loads(path.read_text())
    largest = fields["largest_replica_batch"]
    assert fields["largest_is_verified"] and largest > 256
    assert run(*flags, f"--replica_batch={largest}").returncode == 0
    refused = run(*flags, f"--replica_batch={largest * 10 // 9}")
    assert refused.returncode == 2, refused.stdout + refused.stderr
