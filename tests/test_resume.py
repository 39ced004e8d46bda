"""Interrupted runs end in the bits of undisturbed ones; what does not fit is refused."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline import report
from pipeline.data import manifest, shard
from pipeline.data.augment import Augmentation
from pipeline.data.randaugment import RandAugment
from pipeline.model import nfnet
from pipeline.train import checkpoint, distribution, ledger, run
from pipeline.train.journal import Journal, Preempted
from pipeline.train.run_config import Loop, RunContext
from tests import record_sets, tiny_runs

LOOP = Loop(strategy="one_device", steps_per_loop=2, checkpoint_every=4, evaluate_every_epochs=1, keep=2)
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    record_sets.make(path, examples=100, validation=20)
    return path


@pytest.fixture(scope="module")
def experiment(records):
    return tiny_runs.experiment(records)


@pytest.fixture(scope="module")
def undisturbed(experiment, tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed")
    run.train(RunContext(str(path)), experiment, LOOP)
    return path


def result(model_dir):
    """All that a run leaves, but for times: every variable of its last checkpoint, its metrics, its summary."""
    saved = checkpoint.latest(str(model_dir / "checkpoints"))
    arrays = {
        f"{g}/{k}": v for g in ("model", "optimizer", "ema", "ledger") for k, v in checkpoint.arrays(saved, g).items()
    }
    summary = json.loads((model_dir / "run.json").read_text())
    summary = {name: value for name, value in summary.items() if name not in ("seconds", "images_per_second")}
    best = checkpoint.latest(str(model_dir / "best"))
    return saved.step, arrays, report.read_metrics(str(model_dir)), summary, best and best.step


def assert_same(model_dir, other):
    (step, arrays, metrics, summary, best), expected = result(model_dir), result(other)
    assert (step, best, summary) == (expected[0], expected[4], expected[3])
    assert metrics == expected[2]
    assert arrays.keys() == expected[1].keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(value, expected[1][name], err_msg=name)


def test_the_undisturbed_run_has_all_that_the_others_are_compared_by(undisturbed):
    step, arrays, metrics, summary, best = result(undisturbed)
    assert step == 18 and best is not None
    assert {name.split("/")[0] for name in arrays} == {"model", "optimizer", "ema", "ledger"}
    assert any(name.startswith("optimizer/") and np.any(value) for name, value in arrays.items())
    assert [line["step"] for line in metrics if "loss" in line] == [2, 4, 6, 7, 8, 10, 12, 14, 16, 18]
    assert [line["step"] for line in metrics if "validation_loss" in line] == [7, 14, 18]
    assert [entry["exactly_once"] for entry in summary["ledger"]] == [True, True, True]
    assert [entry["examples"] for entry in summary["ledger"]] == [100, 100, 50]


def test_dropout_and_stochastic_depth_and_augmentation_are_on(experiment, undisturbed, tmp_path):
    """Or bit-exactness would prove little: other noise, other weights."""
    loop = dataclasses.replace(LOOP, evaluate_every_epochs=None)
    short = {"max_steps": 4, "epochs": 2.5}
    digest = run.train(RunContext(str(tmp_path / "a")), dataclasses.replace(experiment, **short), loop)[
        "weights_digest"
    ]
    plain = tiny_runs.experiment(experiment.data.directory, augmentation=Augmentation(1, 1, 1, 1, flip=False), **short)
    assert run.train(RunContext(str(tmp_path / "b")), plain, loop)["weights_digest"] != digest
    still = tiny_runs.experiment(experiment.data.directory, model=tiny_runs.without_noise, **short)
    assert run.train(RunContext(str(tmp_path / "c")), still, loop)["weights_digest"] != digest


class Killed(Exception):
    """Ends a run at a chosen place, with nothing tidied up."""


@pytest.mark.parametrize(
    ("place", "steps"),
    [
        ("before the books", [8]),
        ("after the books", [6, 16]),
        ("in the evaluation", [14]),
        ("before an evaluation is booked", [7]),
    ],
)
def test_interrupted_anywhere_ends_in_the_same_bits(experiment, undisturbed, tmp_path, monkeypatch, place, steps):
    """No orderly stop: what the run did since its last checkpoint is lost and done again."""
    pending = list(steps)

    def dies_at(original, before):
        def method(self, *args):
            if not before:
                original(self, *args)
            if pending and self._state.step == pending[0]:
                pending.pop(0)
                raise Killed
            if before:
                original(self, *args)

        return method

    name, before = {
        "before the books": ("after_loop", True),
        "after the books": ("after_loop", False),
        "in the evaluation": ("after_evaluation_step", True),
        "before an evaluation is booked": ("after_evaluation", True),
    }[place]
    monkeypatch.setattr(Journal, name, dies_at(getattr(Journal, name), before))
    for _ in steps:
        with pytest.raises(Killed):
            run.train(RunContext(str(tmp_path)), experiment, LOOP)
    run.train(RunContext(str(tmp_path)), experiment, LOOP)
    assert not pending
    assert_same(tmp_path, undisturbed)


def test_sigterm_saves_stops_and_goes_on_in_the_same_bits(experiment, undisturbed, tmp_path, monkeypatch):
    """At a step that is no checkpoint's, and in an evaluation."""
    signals = [6, 14]

    def signalling(original):
        def method(self, *args):
            if signals and self._state.step == signals[0]:
                signals.pop(0)
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *args)

        return method

    loop = dataclasses.replace(LOOP, steps_per_loop=1)  # of two evaluation steps, the first is a look too
    plain = tmp_path / "plain"
    run.train(RunContext(str(plain)), experiment, loop)
    interrupted = tmp_path / "interrupted"
    monkeypatch.setattr(Journal, "after_loop", signalling(Journal.after_loop))
    with pytest.raises(Preempted, match=r"stopped at step 6 of 18; the checkpoint in .* is whole"):
        run.train(RunContext(str(interrupted)), experiment, loop)
    assert checkpoint.latest(str(interrupted / "checkpoints")).step == 6
    monkeypatch.undo()
    monkeypatch.setattr(Journal, "after_evaluation_step", signalling(Journal.after_evaluation_step))
    with pytest.raises(Preempted, match="stopped at step 14 of 18"):
        run.train(RunContext(str(interrupted)), experiment, loop)
    assert not any(line["step"] == 14 and "validation_loss" in line for line in report.read_metrics(str(interrupted)))
    run.train(RunContext(str(interrupted)), experiment, loop)
    assert_same(interrupted, plain)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_nfnet_resumes_in_the_same_bits(records, tmp_path, monkeypatch):
    """The model, the policy and the parts of the real recipes."""
    experiment = tiny_runs.experiment(
        records,
        model=functools.partial(nfnet.create, "nano", dropout_rate=0.2, stochastic_depth_rate=0.2),
        augmentation=Augmentation(randaugment=RandAugment(2, 5)),
        max_steps=4,
    )
    loop = Loop(strategy="one_device", steps_per_loop=2, checkpoint_every=2)
    run.train(RunContext(str(tmp_path / "whole")), experiment, loop)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000004")
    (tmp_path / "cut/run.json").unlink()
    run.train(RunContext(str(tmp_path / "cut")), experiment, loop)
    assert_same(tmp_path / "cut", tmp_path / "whole")


@pytest.fixture
def half_done(undisturbed, tmp_path):
    """A run of which steps 17 and 18 are missing."""
    path = tmp_path / "half"
    shutil.copytree(undisturbed, path)
    shutil.rmtree(path / "checkpoints/step-00000018")
    (path / "run.json").unlink()
    return path


def test_a_changed_configuration_is_refused_with_the_difference(experiment, half_done, tmp_path):
    facts = json.loads((half_done / "checkpoints/step-00000016/checkpoint.json").read_text())
    facts["facts"]["bindings"] = {"Experiment.seed": "0", "cosine.peak": "0.2", "sgd.momentum": "0.9"}
    (half_done / "checkpoints/step-00000016/checkpoint.json").write_text(json.dumps(facts))
    context = RunContext(str(half_done), bindings={"Experiment.seed": "1", "cosine.peak": "0.2", "Data.block": "8"})
    with pytest.raises(checkpoint.CheckpointError) as error:
        run.train(context, experiment, LOOP)
    text = str(error.value)
    assert "Experiment.seed: 0 then, 1 now" in text
    assert "sgd.momentum: 0.9 then, not set now" in text
    assert "Data.block: not set then, 8 now" in text
    assert "cosine.peak" not in text
    assert "--force_resume" in text
    run.train(dataclasses.replace(context, force_resume=True), experiment, LOOP)
    assert json.loads((half_done / "run.json").read_text())["step"] == 18


def test_other_data_is_refused(half_done, tmp_path):
    other = tmp_path / "other"
    record_sets.make(other, examples=100, validation=20, shards=2)
    with pytest.raises(checkpoint.CheckpointError, match=r"records in .*other are not the ones it was trained on"):
        run.train(RunContext(str(half_done)), tiny_runs.experiment(other), LOOP)


def test_a_truncated_checkpoint_costs_its_steps_and_no_more(experiment, undisturbed, half_done, capfd):
    data = half_done / "checkpoints/step-00000016/variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(checkpoint.CheckpointError, match="holds no whole checkpoint"):
        run.evaluate(RunContext(str(half_done)), experiment, LOOP)
    run.train(RunContext(str(half_done)), experiment, LOOP)  # from the start: it was the only one left
    assert_same(half_done, undisturbed)


def test_processes_that_see_different_checkpoints_are_refused(experiment, half_done, monkeypatch):
    monkeypatch.setattr(distribution, "of_all_processes", lambda strategy, value: {value, -1})
    with pytest.raises(checkpoint.CheckpointError, match=r"steps \[-1, 16\].*must be one folder that all"):
        run.train(RunContext(str(half_done)), experiment, LOOP)


def damaged_copy(records, path, number, offset=30):
    """A copy of the record set of which one record of the middle shard has a flipped bit."""
    shutil.copytree(records, path)
    shard_path = path / "demo-train.tfrecord-00001-of-00003"
    start = int(shard.read_index(str(shard_path), 33)[number]) + offset
    content = bytearray(shard_path.read_bytes())
    content[start] ^= 1
    shard_path.write_bytes(content)
    return path


def test_a_damaged_record_stops_the_run_and_is_named(records, tmp_path):
    damaged = damaged_copy(records, tmp_path / "damaged", 7)
    with pytest.raises(shard.DamagedRecordError, match=r"00001-of-00003 record 7 at offset \d+ is damaged"):
        run.train(RunContext(str(tmp_path / "run")), tiny_runs.experiment(damaged), LOOP)


def test_a_masked_record_is_counted_and_named_also_after_an_interruption(records, tmp_path, monkeypatch):
    damaged = damaged_copy(records, tmp_path / "damaged", 7)
    experiment = tiny_runs.experiment(damaged, data={"on_damage": "mask"}, epochs=2)
    original = Journal.after_loop

    def after_loop(self, output):
        original(self, output)
        if self._state.step == 12:
            raise Killed

    monkeypatch.setattr(Journal, "after_loop", after_loop)
    with pytest.raises(Killed):
        run.train(RunContext(str(tmp_path / "run")), experiment, LOOP)
    monkeypatch.undo()
    # The record's slot of the second epoch may lie before step 12: its name must have been kept.
    summary = run.train(RunContext(str(tmp_path / "run")), experiment, LOOP)
    (name,) = summary["damaged_records"]
    assert "00001-of-00003 record 7 at offset" in name
    assert [(e["examples"], e["expected"], e["exactly_once"]) for e in summary["ledger"]] == [(99, 100, False)] * 2


def test_a_masked_record_of_the_validation_split_is_named_too(records, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(records, damaged)
    path = damaged / "demo-validation.tfrecord-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    experiment = tiny_runs.experiment(damaged, data={"on_damage": "mask"}, max_steps=1)
    summary = run.train(RunContext(str(tmp_path / "run")), experiment, LOOP)
    assert ["validation" in name for name in summary["damaged_records"]] == [True]
    assert summary["ledger"][0]["examples"] == 16


def rewrite_manifest(directory, change):
    path = pathlib.Path(directory) / manifest.FILE
    content = json.loads(path.read_text())
    change(content["splits"]["train"])
    path.write_text(json.dumps(content))


def test_a_manifest_with_a_wrong_checksum_is_found_at_the_epochs_end(records, tmp_path):
    shutil.copytree(records, tmp_path / "lie")
    rewrite_manifest(tmp_path / "lie", lambda split: split.update(id_checksum="0" * 16))
    with pytest.raises(ledger.LedgerError, match=r"epoch 0: NOT exactly once .* checksum differs"):
        run.train(RunContext(str(tmp_path / "run")), tiny_runs.experiment(tmp_path / "lie"), LOOP)


def test_a_manifest_with_wrong_counts_is_refused(records, tmp_path):
    def one_more(split):
        split["shards"][0]["examples"] += 1
        split["listed"] += 1
        split["written"] += 1

    shutil.copytree(records, tmp_path / "lie")
    rewrite_manifest(tmp_path / "lie", one_more)
    with pytest.raises(ValueError, match=r"tfrecord-00000-of-00003.index is not the index of 35 records"):
        run.train(RunContext(str(tmp_path / "run")), tiny_runs.experiment(tmp_path / "lie"), LOOP)


GIN = """
include 'gin/model/nano.gin'
include 'gin/run/pretrain.gin'
DATA_DIR = "{records}"
GLOBAL_BATCH = 16
TRAIN_SIZE = 32
EVAL_SIZE = 32
EPOCHS = 500
PRECISION = "float32"
Loop.steps_per_loop = 2
"""


def test_sigterm_ends_the_program_with_143_within_seconds(records, tmp_path):
    config, model_dir = tmp_path / "endless.gin", tmp_path / "run"
    config.write_text(GIN.format(records=records))
    command = [sys.executable, "pipeline/main.py", f"--gin_file={config}", f"--model_dir={model_dir}"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 180
        while not report.read_metrics(str(model_dir)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        process.terminate()
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "Preempted: stopped at step" in errors
    step = checkpoint.latest(str(model_dir / "checkpoints")).step
    assert step == report.read_metrics(str(model_dir))[-1]["step"]
