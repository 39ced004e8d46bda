"""What a rehearsal finds before the first step, and what a report says of a run."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from pipeline.tpu import chips, compiler, rehearsal, run_report
from pipeline.tpu.estimate import Placement, Provenance, StepTime
from pipeline.tpu.program import Workload
from pipeline.train.run_config import Loop
from tests import record_sets, tiny_runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
ONE_HOST, FOUR_HOSTS = chips.topology("v4:2x2x1"), chips.topology("v4:2x2x4")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    record_sets.make(path, examples=64, validation=20)
    return path


@pytest.fixture
def rehearsed(monkeypatch, records, tmp_path):
    """Rehearses all that needs neither the compiler nor a process of its own: what each check found, by name."""

    def no_compiler(*args, **kwargs):
        raise compiler.CompilerError("not asked")

    monkeypatch.setattr(rehearsal.check, "check", no_compiler)
    monkeypatch.setattr(rehearsal.check, "in_own_process", lambda function, *arguments: [])

    def rehearse(topology=ONE_HOST, loop=None, directory=records, model_dir=tmp_path / "run", batch=16, **settings):
        experiment = tiny_runs.experiment(directory, **settings)
        data = dataclasses.replace(experiment.data, batch=batch)
        experiment = dataclasses.replace(experiment, data=data)
        loop = loop or Loop()
        found, _ = rehearsal.rehearse(experiment, lambda: experiment, loop, str(model_dir), topology)
        assert not found.starts  # without the compiler
        return {finding.what: finding for finding in found.findings}

    return rehearse


def refused(findings):
    return {what for what, finding in findings.items() if not finding.passes and finding.found != "not asked"}


def test_a_run_on_one_host_passes_with_what_was_found(rehearsed, tmp_path):
    found = rehearsed()
    assert refused(found) == set()
    assert found["Slice"].found == "chips: 4, replicas: 8, hosts: 1"
    assert found["Batch"].found == "16 images, 2 a replica; 16 lanes, 16 a host"
    assert found["Records"].found == "64 to train on and 20 to evaluate on, 10 classes, in 4 shards, all there"
    assert found["Starts from"].found == "random weights"
    assert not (tmp_path / "run").exists()  # what was tried leaves nothing


def test_several_hosts_share_the_lanes_and_need_shared_folders(rehearsed):
    found = rehearsed(FOUR_HOSTS, batch=128)
    assert refused(found) == {"Records", "Run folder"}
    assert "4 hosts" in found["Records"].found and "Loop.shared_folders" in found["Records"].found
    assert found["Batch"].found == "128 images, 4 a replica; 64 lanes, 16 a host"
    assert refused(rehearsed(FOUR_HOSTS, Loop(shared_folders=True), batch=128)) == set()


@pytest.mark.parametrize(
    ("settings", "what", "message"),
    [
        ({"batch": 12}, "Batch", "divided over 8 replicas"),
        ({"batch": 8, "topology": chips.topology("v4:2x2x4", "megacore"), "accumulation_steps": 2}, "Batch", "16 repl"),
        ({"topology": chips.topology("v5e:4x6"), "batch": 96}, "Batch", "lanes, which 6 hosts cannot share"),
        ({"loop": Loop(eval_batch=20)}, "Evaluation", "divided over 8 replicas"),
        ({"directory": "nowhere"}, "Records", "No record set at 'nowhere'"),
        ({"model_dir": "/proc/run"}, "Run folder", "No such file or directory"),
        ({"initial_checkpoint": "nowhere"}, "Starts from", "nowhere does not exist"),
        ({"num_classes": 3}, "Records", "10 classes"),
    ],
)
def test_what_would_end_a_run_is_named(rehearsed, settings, what, message):
    found = rehearsed(**settings)
    assert what in refused(found) and message in found[what].found


def test_a_missing_shard_is_named(rehearsed, records, tmp_path):
    shutil.copytree(records, tmp_path / "records")
    (tmp_path / "records" / "demo-train.tfrecord-00001-of-00003").unlink()
    found = rehearsed(directory=tmp_path / "records")
    assert refused(found) == {"Records"} and "00001-of-00003" in found["Records"].found


@pytest.mark.parametrize(
    ("name", "hosts"),
    [
        ("v4:2x2x1", 1),
        ("v4:4x4x8", 32),
        ("v5e:2x2", 1),
        ("v5e:2x4", 1),
        ("v5e:4x4", 4),
        ("v5p:2x2x2", 2),
        ("v6e:8x8", 16),
    ],
)
def test_hosts_of_a_slice(name, hosts):
    assert chips.topology(name).hosts == hosts


def test_a_report_compares_the_run_with_its_estimate():
    lines = [
        {"step": step, "seconds": seconds, "loss": 5.0 - step / 10, "epochs_exactly_once": 0}
        for step, seconds in [(1, 60.0), (11, 62.0), (21, 64.0), (31, 68.0), (41, 70.0)]
    ]
    lines.insert(2, {"step": 11, "validation_loss": 4.0})
    time = StepTime(100, 0, (), 1e12, 1e9, 0.1, 10.0, 0.5, 0.01, 0.01, ())
    estimate = _estimate(time)
    found = run_report.numbers(lines, estimate, time)
    assert found["steps/s, median of the loops"] == pytest.approx(5)
    assert found["steps/s, slowest loop"] == pytest.approx(2.5)
    assert found["measured over estimated"] == pytest.approx(0.5) and found["MFU"] == pytest.approx(0.25)
    assert found["images/s per core"] == pytest.approx(64 * 5 / 8)
    assert found["seconds of the first loop, with compilation"] == 60
    assert found["loss of the last loop"] == pytest.approx(0.9)
    with pytest.raises(run_report.ReportError, match=r"holds 2 loops.*3 or more"):
        run_report.numbers(lines[:3], estimate, time)


def _estimate(time):
    @dataclasses.dataclass
    class Parts:
        workload = Workload("F0", 224, 10, "float32", 1, 8, 64, 1000, 100)
        placement = Placement("v4:2x2x1", "legacy", 8, 1)
        provenance = Provenance("", 1.0, {"jax": "1"}, "")

    return Parts()


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="takes the packages of requirements-tpu.txt")
def test_the_whole_command(records, tmp_path):
    def run(*flags):
        command = [sys.executable, "pipeline/tpu_check.py", "--gin_file=gin/quickstart_pretrain.gin", "--rehearse"]
        params = (f'DATA_DIR="{records}"', "GLOBAL_BATCH=64", "TRAIN_SIZE=48", "EVAL_SIZE=48")
        command += [*(f"--gin_param={param}" for param in params), f"--model_dir={tmp_path / 'run'}", *flags]
        return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600)

    done = run("--topology=v4:2x2x1", f"--json={tmp_path / 'found.json'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The first step would be taken." in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["starts"] and found["hosts"] == 1 and found["fits"]
    per_host = found["images_per_second_per_core"] * 8
    assert found["host_demand"]["images_per_second"] == pytest.approx(per_host)
    assert found["host_demand"]["bytes_per_second"] == pytest.approx(per_host * 3 * 48**2)
    assert "Under TPUStrategy" in {finding["what"] for finding in found["findings"] if finding["passes"]}
    refused = run("--topology=v4:2x2x4")
    assert refused.returncode == 1 and "end before its first step" in refused.stdout
