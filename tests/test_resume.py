"""Interrupted runs end in the bits of undisturbed ones; what does not fit is refused."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

from pipeline import report
from pipeline.data import manifest, shard
from pipeline.data.augment import Augmentation
from pipeline.data.randaugment import RandAugment
from pipeline.model import nfnet
from pipeline.train import checkpoint, components, distribution, ledger
from pipeline.train.actions import MetricsLog
from pipeline.train.evaluate import evaluate
from pipeline.train.evaluator import Evaluator
from pipeline.train.preemption import Preempted, Preemption
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.train import train
from tests import record_sets, tiny_runs
from tests.run_results import assert_same, result

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
    train(RunContext(str(path)), experiment, LOOP)
    return path


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
    digest = train(RunContext(str(tmp_path / "a")), dataclasses.replace(experiment, **short), loop)["weights_digest"]
    plain = tiny_runs.experiment(experiment.data.directory, augmentation=Augmentation(1, 1, 1, 1, flip=False), **short)
    assert train(RunContext(str(tmp_path / "b")), plain, loop)["weights_digest"] != digest
    still = tiny_runs.experiment(experiment.data.directory, model=tiny_runs.without_noise, **short)
    assert train(RunContext(str(tmp_path / "c")), still, loop)["weights_digest"] != digest


class Killed(Exception):
    """Ends a run at a chosen place, with nothing tidied up."""


@pytest.fixture
def current_step(monkeypatch):
    """The step at which the newest run of this test stands."""
    runs, original = [], components.assemble

    def assemble(*args):
        runs.append(original(*args))
        return runs[-1]

    monkeypatch.setattr(components, "assemble", assemble)
    return lambda: runs[-1].state.step


def test_interrupted_anywhere_ends_in_the_same_bits(experiment, undisturbed, tmp_path, monkeypatch, current_step):
    """No orderly stop: what the run did since its last checkpoint, of every fourth step or an evaluation's, is lost."""
    pending = {
        6: "after the last action",
        7: "before an evaluation is written",
        8: "before the metrics are written",
        14: "in the evaluation",
        16: "after the last action",
    }

    def dies(original, place, before):
        def method(self, *args):
            done = None if before else original(self, *args)
            if pending.get(current_step()) == place:
                del pending[current_step()]
                raise Killed
            return original(self, *args) if before else done

        return method

    for place, owner, name, before in (
        ("before the metrics are written", MetricsLog, "__call__", True),
        ("after the last action", Preemption, "__call__", False),
        ("in the evaluation", Evaluator, "eval_reduce", True),
        ("before an evaluation is written", MetricsLog, "after_evaluation", True),
    ):
        monkeypatch.setattr(owner, name, dies(getattr(owner, name), place, before))
    for _ in list(pending):
        with pytest.raises(Killed):
            train(RunContext(str(tmp_path)), experiment, LOOP)
    train(RunContext(str(tmp_path)), experiment, LOOP)
    assert not pending
    assert_same(tmp_path, undisturbed)


def test_sigterm_and_ctrl_c_save_stop_and_continue_in_the_same_bits(
    experiment, undisturbed, tmp_path, monkeypatch, current_step
):
    """At a step that is no checkpoint's, and in an evaluation."""
    signals = {6: signal.SIGTERM, 14: signal.SIGINT}

    def signalling(original):
        def method(self, *args):
            if number := signals.pop(current_step(), None):
                os.kill(os.getpid(), number)
            return original(self, *args)

        return method

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    original = MetricsLog.__call__
    monkeypatch.setattr(MetricsLog, "__call__", signalling(original))
    with pytest.raises(Preempted, match=r"stopped at step 6 of 18; the checkpoint in .* is whole") as stop:
        train(RunContext(str(tmp_path)), experiment, LOOP)
    assert stop.value.exit_code == 143
    assert checkpoint.latest(str(tmp_path / "checkpoints")).step == 6
    monkeypatch.setattr(MetricsLog, "__call__", original)
    monkeypatch.setattr(Evaluator, "eval_reduce", signalling(Evaluator.eval_reduce))
    with pytest.raises(Preempted, match="stopped at step 14 of 18") as stop:
        train(RunContext(str(tmp_path)), experiment, LOOP)
    assert stop.value.exit_code == 130
    assert not any(line["step"] == 14 and "validation_loss" in line for line in report.read_metrics(str(tmp_path)))
    train(RunContext(str(tmp_path)), experiment, LOOP)
    assert_same(tmp_path, undisturbed)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["plain", "cpu"])
def test_the_nfnet_resumes_in_the_same_bits(records, tmp_path, implementation):
    """The model, the policy and the parts of the real recipes."""
    experiment = tiny_runs.experiment(
        records,
        model=functools.partial(
            nfnet.create, "nano", dropout_rate=0.2, stochastic_depth_rate=0.2, implementation=implementation
        ),
        augmentation=Augmentation(randaugment=RandAugment(2, 5)),
        max_steps=4,
    )
    loop = Loop(strategy="one_device", steps_per_loop=2, checkpoint_every=2)
    train(RunContext(str(tmp_path / "whole")), experiment, loop)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000004")
    (tmp_path / "cut/run.json").unlink()
    train(RunContext(str(tmp_path / "cut")), experiment, loop)
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
        train(context, experiment, LOOP)
    text = str(error.value)
    assert "Experiment.seed: 0 then, 1 now" in text
    assert "sgd.momentum: 0.9 then, not set now" in text
    assert "Data.block: not set then, 8 now" in text
    assert "cosine.peak" not in text
    assert "--force_resume" in text
    train(dataclasses.replace(context, force_resume=True), experiment, LOOP)
    assert json.loads((half_done / "run.json").read_text())["step"] == 18


def test_other_data_is_refused(half_done, tmp_path):
    other = tmp_path / "other"
    record_sets.make(other, examples=100, validation=20, shards=2)
    with pytest.raises(checkpoint.CheckpointError, match=r"records in .*other are not the ones it was trained on"):
        train(RunContext(str(half_done)), tiny_runs.experiment(other), LOOP)


def test_a_truncated_checkpoint_costs_its_steps_and_no_more(experiment, undisturbed, half_done, capfd):
    data = half_done / "checkpoints/step-00000016/variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(checkpoint.CheckpointError, match="holds no whole checkpoint"):
        evaluate(RunContext(str(half_done)), experiment, LOOP)
    train(RunContext(str(half_done)), experiment, LOOP)  # from the start: it was the only one left
    assert_same(half_done, undisturbed)


def test_processes_that_see_different_checkpoints_are_refused(experiment, half_done, monkeypatch):
    """This process is not the chief, which has found a checkpoint of step 17."""
    monkeypatch.setattr(distribution, "is_chief", lambda: False)
    monkeypatch.setattr(distribution, "of_all_processes", lambda strategy, value: {value, 17} if value < 0 else {value})
    with pytest.raises(checkpoint.CheckpointError, match=r"step 17 in .*must be one folder that all"):
        train(RunContext(str(half_done)), experiment, LOOP)


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
        train(RunContext(str(tmp_path / "run")), tiny_runs.experiment(damaged), LOOP)


def test_a_masked_record_is_counted_and_named_also_after_an_interruption(records, tmp_path, monkeypatch, current_step):
    damaged = damaged_copy(records, tmp_path / "damaged", 7)
    experiment = tiny_runs.experiment(damaged, data={"on_damage": "mask"}, epochs=2)
    original = Preemption.__call__

    def dies(self, output=None):
        original(self, output)
        if current_step() == 12:
            raise Killed

    monkeypatch.setattr(Preemption, "__call__", dies)
    with pytest.raises(Killed):
        train(RunContext(str(tmp_path / "run")), experiment, LOOP)
    monkeypatch.undo()
    # The record's slot of the second epoch may lie before step 12: its name must have been kept.
    summary = train(RunContext(str(tmp_path / "run")), experiment, LOOP)
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
    summary = train(RunContext(str(tmp_path / "run")), experiment, LOOP)
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
        train(RunContext(str(tmp_path / "run")), tiny_runs.experiment(tmp_path / "lie"), LOOP)


def test_a_manifest_with_wrong_counts_is_refused(records, tmp_path):
    def one_more(split):
        split["shards"][0]["examples"] += 1
        split["listed"] += 1
        split["written"] += 1

    shutil.copytree(records, tmp_path / "lie")
    rewrite_manifest(tmp_path / "lie", one_more)
    with pytest.raises(ValueError, match=r"tfrecord-00000-of-00003.index has \d+ bytes; the index of 35 records has"):
        train(RunContext(str(tmp_path / "run")), tiny_runs.experiment(tmp_path / "lie"), LOOP)
