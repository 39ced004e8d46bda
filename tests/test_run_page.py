"""The page of a run, and what TensorBoard shows of a run that was interrupted."""

import json
import re
import shutil
import time
import types

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from pipeline import report
from pipeline.data import statistics
from pipeline.evaluation import run_page
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.tensorboard import Summaries
from pipeline.train.train import stops_early, train
from tests import record_sets, tiny_runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder with its records, trained and evaluated on the way."""
    path = tmp_path_factory.mktemp("finished")
    record_sets.make(path / "records", examples=64, validation=20)
    what = tiny_runs.experiment(path / "records", epochs=2.0)
    bindings = {"Experiment.epochs": "2.0", "Data.directory": repr(str(path / "records")), "note": "'<b>bold</b>'"}
    loop = Loop(strategy="one_device", steps_per_loop=2, checkpoint_every=4, evaluate_every_epochs=1)
    train(RunContext(str(path / "run"), config="# the configuration", bindings=bindings), what, loop)
    return path


def text_of(path):
    return re.sub(r"base64,[^\"]*", "", (path / "report.html").read_text())


def test_a_finished_run_has_a_page(finished):
    text = text_of(finished / "run")
    summary = report.find_summary(str(finished / "run"))
    assert f"{summary['validation_top1']:.2%}" in text
    assert "2 of 2 epochs consumed each example exactly once" in text
    assert "Experiment.epochs" in text and "# the configuration" in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text and "<b>bold" not in text
    assert "10 classes" in text and "data:image/png" in text
    assert not re.search(r"https?:", text)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda path: (path / "run" / "run.json").unlink(), "Not finished: metrics up to step 8"),
        (lambda path: shutil.rmtree(path / "records"), "The record set cannot be read: No record set at"),
        (lambda path: record_sets.make(path / "records", examples=40), "is not what the run was trained on"),
        (lambda path: (path / "run" / "metrics.jsonl").unlink(), "2 of 2 epochs"),
        (lambda path: (path / "records" / "report_images.jpg").write_bytes(b"picture"), "A sample of its images"),
        (
            lambda path: statistics.write(str(path / "records"), statistics.Statistics({"train": [3, 0, 61]}, {}, {})),
            "smallest class",
        ),
    ],
    ids=["unfinished", "no records", "other records", "no metrics", "pictures", "counts"],
)
def test_the_page_shows_what_is_there(finished, tmp_path, change, expected):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    run_page.write(str(tmp_path / "run"), str(tmp_path / "records"))
    assert expected in text_of(tmp_path / "run")


def test_an_epoch_that_does_not_add_up_is_named(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    summary = report.find_summary(str(tmp_path / "run"))
    summary["ledger"][1].update(examples=63, exactly_once=False)
    report.write_summary(str(tmp_path / "run"), summary)
    run_page.write(str(tmp_path / "run"), str(tmp_path / "records"))
    text = text_of(tmp_path / "run")
    assert "1 of 2 epochs consumed each example exactly once" in text and "<td>NO</td>" in text


def test_a_run_is_not_lost_where_its_page_cannot_be_written(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"step": 1}))
    run_page.write_or_warn(str(tmp_path / "run"), str(tmp_path / "records"))
    assert "Report:" not in capsys.readouterr().out


def scalars(folder):
    """(step, value) of each tag, as TensorBoard reads them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def test_tensorboard_shows_no_step_twice_after_a_resume(tmp_path):
    step = tf.Variable(0, dtype=tf.int64)
    for start, end in ((0, 6), (3, 9)):  # killed at 6; the checkpoint was of step 3
        step.assign(start)
        summaries = Summaries(str(tmp_path), step)
        while step < end:
            step.assign_add(1)
            summaries.write_summaries({"loss": float(start + 1)})
        time.sleep(1.1)  # a new process starts later: TensorBoard's files are named, and read, by the second
    assert scalars(tmp_path) == {"loss": [*((s, 1.0) for s in (1, 2, 3)), *((s, 4.0) for s in range(4, 10))]}


def test_an_evaluation_by_hand_does_not_stop_a_run():
    budget = types.SimpleNamespace(epoch_of_step=lambda step: step / 10)
    run, experiment = types.SimpleNamespace(budget=budget), types.SimpleNamespace(patience=1.0)
    own = [{"step": 10, "validation_loss": 1.0}]
    assert not stops_early(experiment, run, [*own, {"step": 20, "split": "validation", "validation_loss": 2.0}])
    assert stops_early(experiment, run, [*own, {"step": 20, "validation_loss": 2.0}])
