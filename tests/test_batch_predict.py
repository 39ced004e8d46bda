"""Batch prediction as a user runs it: flags in, files of predictions or one clear message out."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf

from beam.errors import PredictionError
from beam.prediction import inference, inputs, job, launch, rows
from pipeline.data import manifest, record
from pipeline.serving import client
from pipeline.train import checkpoint, public_weights
from pipeline.train.evaluate import evaluate
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.trained_model import load_model
from tests import ingest_images, record_sets, served_model, tiny_runs

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served_model.export(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten good JPEGs, one of TIFF, which the model alone does not decode, and three that are no image."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(10):
        ingest_images.write(folder / f"{i % 2}" / f"{i}.jpg", served_model.encoded(25 * i))
    ingest_images.write(folder / "a.tiff", served_model.encoded(250, "TIFF"))
    ingest_images.write(folder / "b.jpg", b"words")
    ingest_images.write(folder / "c.png", b"")
    ingest_images.write(folder / "1" / "cut.jpg", served_model.encoded(9, size=(400, 300))[:1000])
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records") / "set"
    made = record_sets.make(folder, examples=20, validation=11, classes=3, shards=3)
    manifest.write(dataclasses.replace(made, classes=tuple(served_model.CLASSES)), str(folder))
    return folder


def predict(model, output, *flags) -> int:
    return launch.main([f"--saved_model={model}", f"--output={output}", "--batch_size=4", *flags])


def table(output) -> list[dict]:
    """The rows of all files of predictions, in order."""
    folder = pathlib.Path(output) / "predictions"
    if lists := sorted(folder.glob("*.jsonl")):
        return [json.loads(line) for path in lists for line in path.read_text().splitlines()]
    return pyarrow.parquet.read_table(folder).to_pylist()


def contents(output) -> dict[str, bytes]:
    """Path to bytes of all files."""
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def summary(output) -> dict:
    return json.loads((output / "summary.json").read_text())


@pytest.fixture(scope="module")
def predicted(model, images, tmp_path_factory):
    """The folder of a whole prediction with every column, which no test changes."""
    output = tmp_path_factory.mktemp("predicted") / "output"
    flags = [f"--images={images}", "--shard_images=5", "--probabilities", "--features"]
    assert predict(model, output, *flags) == 0
    return output


def test_every_image_has_its_row_in_order(predicted, images, model):
    files = [f"predictions/0000{i}-of-00003.parquet" for i in range(3)]
    assert sorted(contents(predicted)) == ["images.jsonl", "job.json", *files, "summary.json"]
    paths = sorted(str(path) for path in images.rglob("*.*"))
    found = table(predicted)
    assert [row["image"] for row in found] == paths
    saved_model = client.load(model)
    for row, expected in zip(found, client.predict(saved_model, paths), strict=True):
        assert row["top_classes"] == expected.classes, row
        np.testing.assert_allclose(row["top_probabilities"], expected.probabilities, rtol=1e-5)
        assert row["valid"] == (expected.error is None) == (row["error"] is None)
        assert len(row["probabilities"]) == (3 if row["valid"] else 0)
        assert len(row["features"]) == (1 if row["valid"] else 0)
    by_name = {os.path.basename(row["image"]): row for row in found}
    data = tf.constant([(images / "0" / "4.jpg").read_bytes()])
    answer = saved_model.signatures["predict_bytes"](image_bytes=data)
    np.testing.assert_allclose(by_name["4.jpg"]["probabilities"], answer["probabilities"][0], rtol=1e-6)
    assert by_name["a.tiff"]["top_classes"][0] == "bright"
    assert by_name["c.png"]["error"] == "the file is empty"
    assert summary(predicted) == {"in": 14, "predicted": 11, "invalid": 3, "dead": 0}


def test_both_formats_hold_the_same(predicted, images, model, tmp_path, capsys):
    flags = [f"--images={images}", "--shard_images=5", "--probabilities", "--features", "--format=jsonl"]
    assert predict(model, tmp_path / "output", *flags) == 0
    assert "14 images: 11 predicted, 3 invalid, 0 dead; 3 files" in capsys.readouterr().out
    for one, other in zip(table(tmp_path / "output"), table(predicted), strict=True):
        for name in ("probabilities", "features", "top_probabilities"):
            assert np.array_equal(np.float32(one.pop(name)), np.float32(other.pop(name)))
        assert one == other


def test_a_restart_does_what_is_missing_and_no_more(model, images, tmp_path, monkeypatch):
    flags, output = [f"--images={images}", "--shard_images=5"], tmp_path / "output"
    assert predict(model, output, *flags) == 0
    expected = contents(output)
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("predictions/*")}
    lost = output / "predictions" / "00001-of-00003.parquet"
    lost.rename(f"{lost}.partial-{'0' * 32}")  # as a killed worker leaves it
    original, shards = inference.ShardHandler.run_inference, []

    def noted(self, batch, *args):
        shards.append(batch.index)
        return original(self, batch, *args)

    monkeypatch.setattr(inference.ShardHandler, "run_inference", noted)
    assert predict(model, output, *flags) == 0
    assert shards == [1]
    assert contents(output) == expected
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("predictions/*")}
    assert {name for name in before if before[name] != after[name]} == {lost.name}


def test_an_image_that_cannot_be_read_is_dead_until_it_can(model, images, tmp_path, capsys):
    missing, output = tmp_path / "later.jpg", tmp_path / "output"
    (tmp_path / "list.txt").write_text(f"{missing}\n{images}/0/4.jpg\n{images}\n\n{missing}\n")
    flags = [f"--images={tmp_path}/list.txt"]
    assert predict(model, output, *flags) == 1
    message = capsys.readouterr().err
    assert "2 images could not be read" in message and "--max_dead=0" in message
    dead = {os.path.basename(row["image"]): row["error"] for row in table(output) if row["valid"] is None}
    assert dead == {"later.jpg": "No such file or directory", images.name: f"{images} is not a regular file"}
    assert summary(output) == {"in": 3, "predicted": 1, "invalid": 0, "dead": 2}
    missing.write_bytes(served_model.encoded(250))
    assert predict(model, output, *flags, "--max_dead=1") == 0
    assert summary(output) == {"in": 3, "predicted": 2, "invalid": 0, "dead": 1}
    assert {row["image"]: row["top_classes"][:1] for row in table(output)}[str(missing)] == ["bright"]


def test_of_a_batch_that_fails_each_image_is_tried_alone():
    calls = []

    def call(examples):
        calls.append(len(examples))
        if "bad" in examples:
            raise tf.errors.ResourceExhaustedError(None, None, "no room\n\t [[{{node x}}]]")
        return [{"valid": True, "name": example} for example in examples]

    good = [{"valid": True, "name": name} for name in "abc"]
    assert inference.tried(call, ["a", "b", "c"]) == good and calls == [3]
    assert inference.tried(call, ["a", "bad", "b", "c"]) == [good[0], "ResourceExhaustedError: no room", *good[1:]]
    assert calls == [3, 4, 1, 1, 1, 1]


class Failing:
    """A SavedModel whose signature fails for a batch that holds one image."""

    def __init__(self, saved_model, image):
        self._saved_model, self._image = saved_model, image
        self.signatures = {**saved_model.signatures, "predict_bytes": self._call}

    def _call(self, image_bytes):
        if self._image in image_bytes.numpy():
            raise tf.errors.InternalError(None, None, "cosmic ray")
        return self._saved_model.signatures["predict_bytes"](image_bytes=image_bytes)


def test_an_image_that_fails_in_the_model_leaves_its_neighbours_alone(model, images, predicted, tmp_path, monkeypatch):
    failing = Failing(client.load(model), (images / "0" / "4.jpg").read_bytes())
    monkeypatch.setattr(inference.ShardHandler, "load_model", lambda self: failing)
    flags, output = [f"--images={images}", "--shard_images=5"], tmp_path / "output"
    assert predict(model, output, *flags) == 1
    for row, expected in zip(table(output), table(predicted), strict=True):
        if row["image"].endswith("/4.jpg"):
            assert row["valid"] is None and row["error"] == "InternalError: cosmic ray" and row["top_classes"] == []
        else:
            assert row["top_classes"] == expected["top_classes"] and row["valid"] == expected["valid"]
    assert summary(output) == {"in": 14, "predicted": 10, "invalid": 3, "dead": 1}


def test_images_that_get_lost_fail_the_job(tmp_path):
    with pytest.raises(PredictionError, match=r"7 images went in, but 6 came out \(3 predicted, 2 invalid, 1 dead\)"):
        job.finish(str(tmp_path), 7, [rows.Counts(1, 2, 0), rows.Counts(2, 0, 1)])
    assert not (tmp_path / "summary.json").exists()


def test_records_have_a_file_a_shard_and_damage_is_named(model, records, tmp_path, capsys):
    damaged = tmp_path / "set"
    damaged.mkdir()
    for name, data in ingest_images.contents(records).items():
        if name == "demo-train.tfrecord-00001-of-00003":
            data = data[:-10] + b"x" * 10
        (damaged / name).write_bytes(data)
    assert predict(model, tmp_path / "output", f"--records={damaged}", "--split=train", "--features") == 1
    assert summary(tmp_path / "output") == {"in": 20, "predicted": 19, "invalid": 0, "dead": 1}
    found = table(tmp_path / "output")
    names = sorted(os.listdir(tmp_path / "output" / "predictions"))
    assert names == [f"0000{i}-of-00003.parquet" for i in range(3)]
    assert [row["valid"] for row in found].index(None) == 13
    assert "Record 6 of" in found[13]["error"] and "damaged" in found[13]["error"]
    for i, row in enumerate(found):
        if i != 13:
            assert row["key"] == f"class{i % 3}/train{i}.jpg" and row["id"] == record.record_id(row["key"])
            assert len(row["features"]) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--images={images}"], ["--saved_model is missing"]),
        (["--saved_model={model}"], ["--images=IMAGES or --records=RECORDS", "neither"]),
        (["--saved_model={model}", "--images={images}", "--records={records}"], ["both"]),
        (["--saved_model={model}", "--images={images}", "--evaluate"], ["--evaluate", "no labels"]),
        (["--saved_model={model}", "--images={images}", "--batch_size=0"], ["--batch_size=0", "1 or more"]),
        (["--saved_model={empty}", "--images={images}"], ["holds no SavedModel", "--task=export"]),
        (["--saved_model={other}", "--images={images}"], ["exported by something else", "metadata.json"]),
        (["--saved_model={model}", "--images={empty}"], ["is a folder without images"]),
        (["--saved_model={model}", "--images={empty}/*.jpg"], ["matches no image file"]),
        (["--saved_model={model}", "--images=/nowhere"], ["'/nowhere' does not exist"]),
        (["--saved_model={model}", "--images={list}"], ["is an empty list"]),
        (["--saved_model={model}", "--records={empty}"], ["No record set", "build_tfrecords.py"]),
        (["--saved_model={model}", "--records={records}", "--split=test"], ["No split 'test'", "'train'"]),
        (["--saved_model={model}", "--records={renamed}", "--evaluate"], ["3 classes", "'other'", "--classes_of"]),
    ],
)
def test_one_clear_message_and_no_output(model, images, records, tmp_path, capsys, flags, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("\n")
    (tmp_path / "renamed").mkdir()
    for name, data in ingest_images.contents(records).items():
        (tmp_path / "renamed" / name).write_bytes(data)
    other = dataclasses.replace(manifest.read(str(records)), classes=("dark", "middle", "other"))
    manifest.write(other, str(tmp_path / "renamed"))
    if "{other}" in flags[0]:
        tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    places = {"model": model, "images": images, "records": records, "list": tmp_path / "list.txt"}
    places |= {name: tmp_path / name for name in ("empty", "other", "renamed")}
    assert launch.main([*(flag.format(**places) for flag in flags), f"--output={tmp_path}/output"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("batch_predict.py: ") and all(word in message for word in words), message
    assert not (tmp_path / "output").exists()


def test_a_folder_of_another_job_is_left_as_it_is(model, images, predicted, records, tmp_path, capsys):
    before = contents(predicted)
    same = [f"--images={images}", "--shard_images=5", "--probabilities", "--features"]
    other = served_model.export(tmp_path, top=1)
    for flags, word in (
        ([f"--images={images}/0", *same[1:]], "images was"),
        (same[:-1], "outputs was ['probabilities', 'features'], and is ['probabilities']"),
        ([*same, "--format=jsonl"], "format was parquet, and is jsonl"),
        ([*same, "--batch_size=5"], "batch_size was 4, and is 5"),
        ([*same, "--shard_images=6"], "shard_images was 5, and is 6"),
        ([*same, f"--saved_model={other}"], "saved_model was"),
        ([f"--records={records}"], "split was not given, and is validation"),
    ):
        assert predict(model, predicted, *flags) == 1
        message = capsys.readouterr().err
        assert word in message and "predictions of another job" in message, message
    assert contents(predicted) == before
    (tmp_path / "1" / "notes.txt").write_text("mine")
    assert predict(model, tmp_path / "1", *same) == 1
    assert "not of a batch prediction" in capsys.readouterr().err


def test_a_mistyped_flag_is_an_error_that_suggests_the_right_one(capsys):
    with pytest.raises(SystemExit) as stop:
        launch.main(["--saved_models=x"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "batch_predict.py" in message and "did you mean --saved_model" in message


def assert_same_report(ours, theirs):
    """Tables and pictures in the same bytes; metrics and probabilities up to the rounding of float32."""
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    for path in theirs.iterdir():
        if path.name in ("classes.csv", "confusion.csv", "confusion.png"):
            assert (ours / path.name).read_bytes() == path.read_bytes(), path.name
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (ours, theirs))
    assert one.keys() == other.keys()
    for name in one.keys() - {"run", "step", "split", "data"}:
        assert one[name] == pytest.approx(other[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("label_kind", "loss"),
    [
        (record.SINGLE_LABEL, "softmax"),
        pytest.param(record.MULTI_LABEL, "sigmoid", marks=pytest.mark.slow),
        pytest.param(record.MULTI_LABEL, "softmax", marks=pytest.mark.slow),
    ],
)
def test_its_evaluation_is_that_of_the_checkpoint(label_kind, loss, tmp_path, capsys):
    record_set = record_sets.make(tmp_path / "set", examples=37, validation=1, label_kind=label_kind)
    what = tiny_runs.experiment(tmp_path / "set", loss=loss)
    network = tiny_runs.TinyNet(10)
    network.linear.kernel.assign(4 * tf.random.stateless_normal(network.linear.kernel.shape, [1, 2]))
    public_weights.save(network, str(tmp_path / "run"), "none")
    metrics = evaluate(RunContext(str(tmp_path / "run")), what, Loop(strategy="one_device"), split="train")
    trained = load_model(checkpoint.find(str(tmp_path / "run")), what.create_evaluation_model)
    settings = {"classes": record_set.classes, "size": 32, "objective": what.objective}
    exported = served_model.export(tmp_path / "model", trained, **settings)
    flags = [f"--records={tmp_path}/set", "--split=train", "--evaluate", "--format=jsonl"]
    assert predict(exported, tmp_path / "output", *flags) == 0
    assert "37 of 37 records: loss" in capsys.readouterr().out
    values = json.loads((tmp_path / "output" / "evaluation" / "train" / "metrics.json").read_text())
    assert metrics == {name: pytest.approx(values[name], rel=1e-5) for name in metrics}
    evaluated = tmp_path / "run" / "evaluation" / "train"
    assert_same_report(tmp_path / "output" / "evaluation" / "train", evaluated)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Six hundred images, some of them broken."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for i in range(600):
        image = record_sets.jpeg(rng, 200, 160, mean=rng.uniform(0, 255))
        ingest_images.write(folder / f"{i:03d}.jpg", image[: 600 if i % 50 == 0 else None])
    return folder


def command(model, images, output) -> list[str]:
    flags = [f"--saved_model={model}", f"--images={images}", f"--output={output}", "--shard_images=15", "--features"]
    return [sys.executable, "beam/batch_predict.py", *flags]


@pytest.fixture(scope="module")
def undisturbed(model, many, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    subprocess.run(command(model, many, output), cwd=ROOT, check=True)
    return contents(output)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_in_the_same_bytes(model, many, undisturbed, tmp_path):
    output, rng = tmp_path / "output", random.Random(0)
    done = []
    for _ in range(5):
        process = subprocess.Popen(command(model, many, output), cwd=ROOT)
        files = len(list(output.glob("predictions/*.parquet")))
        while process.poll() is None and len(list(output.glob("predictions/*.parquet"))) < files + rng.randint(1, 6):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        done.append(len(list(output.glob("predictions/*.parquet"))))
    print("files after each kill:", done)
    assert 0 < done[0] < done[-1] < 40 and done == sorted(set(done))
    assert not (output / "summary.json").exists()
    subprocess.run(command(model, many, output), cwd=ROOT, check=True)
    assert contents(output) == undisturbed


@pytest.mark.slow
def test_several_processes_write_the_same_bytes(model, many, undisturbed, tmp_path):
    flags = ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    subprocess.run([*command(model, many, tmp_path / "output"), *flags], cwd=ROOT, check=True)
    assert contents(tmp_path / "output") == undisturbed


@pytest.mark.slow
def test_its_evaluation_of_a_run_is_that_of_main(tmp_path):
    """As a user does: train, evaluate, export, predict."""
    record_sets.make(tmp_path / "set", examples=100, validation=60)
    (tmp_path / "tiny.gin").write_text(tiny_runs.GIN + f'DATA_DIR = "{tmp_path}/set"\n')
    main = [sys.executable, "pipeline/main.py", f"--gin_file={tmp_path}/tiny.gin", f"--model_dir={tmp_path}/run"]
    for task in ("train", "evaluate", "export"):
        subprocess.run([*main, f"--task={task}"], cwd=ROOT, check=True)
    flags = [f"--saved_model={tmp_path}/run/saved_model", f"--records={tmp_path}/set", f"--output={tmp_path}/output"]
    subprocess.run([sys.executable, "beam/batch_predict.py", *flags, "--evaluate"], cwd=ROOT, check=True)
    folders = (tmp_path / "output" / "evaluation" / "validation", tmp_path / "run" / "evaluation" / "validation")
    assert_same_report(*folders)


def test_shards_are_cut_at_the_same_places(tmp_path):
    paths = ["b.jpg", "new\nline.jpg", "\udcff.jpg", "é.jpg", "z.jpg"]
    content = inputs.listing(paths)
    (tmp_path / "images.jsonl").write_bytes(content)
    shards = inputs.image_shards(content, str(tmp_path / "images.jsonl"), 2)
    assert [len(shard) for shard in shards] == [2, 2, 1]
    names = [example.name["image"] for shard in shards for batch in shard.batches(1) for example in batch]
    assert names == ["b.jpg", "new\nline.jpg", "\\udcff.jpg", "é.jpg", "z.jpg"]
