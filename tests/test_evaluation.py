"""What `--task=evaluate` leaves: the files of a split's evaluation, read back and computed again by hand."""

import csv
import dataclasses
import json
import os
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import report
from pipeline.data import augment, manifest, record
from pipeline.evaluation import split_report
from pipeline.evaluation.collector import Collector
from pipeline.evaluation.metrics import ClassCounts
from pipeline.evaluation.predictions import Predictions
from pipeline.train import checkpoint, public_weights
from pipeline.train.evaluate import evaluate
from pipeline.train.evaluator import Evaluator
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.trained_model import load_model
from tests import record_sets, tiny_runs

LOOP = Loop(strategy="one_device")
NAMES = ("<script>alert(1)</script>", "a" * 20_000, "猫, $x_1$", "=1+1", 'quo"ted\nlines', "&amp;", *"defg")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A set of single labels and one of several, of classes with awkward names."""
    path = tmp_path_factory.mktemp("records")
    for kind in record.LABEL_KINDS:
        made = record_sets.make(path / kind, examples=37, validation=50, label_kind=kind)
        manifest.write(dataclasses.replace(made, classes=NAMES), str(path / kind))
    return path


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A run's folder with the checkpoint of random weights that tell some classes apart."""
    path = tmp_path_factory.mktemp("run")
    model = tiny_runs.TinyNet(10)
    model.linear.kernel.assign(4 * tf.random.stateless_normal(model.linear.kernel.shape, [1, 2]))
    public_weights.save(model, str(path), "none")
    return path


@pytest.fixture(scope="module")
def evaluated(records, model_dir):
    """Experiment and metrics of an evaluation of the training split."""
    what = tiny_runs.experiment(records / "single")
    return what, evaluate(RunContext(str(model_dir)), what, LOOP, split="train")


def by_hand(what, model_dir, split="train"):
    """Records of a split and their logits, image by image."""
    model = load_model(checkpoint.find(str(model_dir)), what.create_evaluation_model)
    shards = sorted(entry.path for entry in os.scandir(what.data.directory) if f"-{split}.tfrecord-" in entry.name)
    shards = [path for path in shards if not path.endswith(".index")]
    examples = [record.decode(serialized.numpy()) for serialized in tf.data.TFRecordDataset(shards)]
    views = tf.stack([augment.evaluation_view(tf.constant(example["image"]), 32) for example in examples])
    return examples, model(augment.normalize(views)).numpy().astype(np.float64)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_pictures(page):
    return re.sub(r"base64,[^\"]*", "", page)


def test_its_files_are_what_the_model_says_of_each_record(evaluated, model_dir):
    what, metrics = evaluated
    folder = model_dir / "evaluation" / "train"
    examples, logits = by_hand(what, model_dir)
    labels, predicted = np.array([example["label"] for example in examples]), logits.argmax(1)
    probabilities = softmax(logits)
    assert 0 < np.mean(labels == predicted) < 1

    cells = {(row["true"], row["predicted"]): int(row["count"]) for row in rows(folder / "confusion.csv")}
    assert sum(cells.values()) == len(examples) == 37
    for (true, said), count in cells.items():
        assert count == np.sum((labels == NAMES.index(true)) & (predicted == NAMES.index(said)))

    classes = rows(folder / "classes.csv")
    assert [row["class"] for row in classes] == list(NAMES)
    for label, row in enumerate(classes):
        assert int(row["examples"]) == np.sum(labels == label)
        assert int(row["predicted"]) == np.sum(predicted == label)
        assert int(row["correct"]) == np.sum((labels == label) & (predicted == label))
    scores = [float(row["F1"]) for row in classes if row["F1"]]
    assert metrics["macro_f1"] == pytest.approx(np.mean(scores), abs=1e-5)
    assert metrics["top1"] == np.mean(labels == predicted)
    losses = -np.log(probabilities[np.arange(37), labels])
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-4)

    wrong = np.flatnonzero(labels != predicted)
    worst = wrong[np.argsort(-probabilities.max(1)[wrong], kind="stable")]
    mistakes = rows(folder / "mistakes.csv")
    assert [row["key"] for row in mistakes] == [examples[i]["key"].decode() for i in worst[:40]]
    for i, row in zip(worst, mistakes, strict=True):
        assert (row["true"], row["predicted"]) == (NAMES[labels[i]], NAMES[predicted[i]])
        assert float(row["probability_of_predicted"]) == pytest.approx(probabilities[i, predicted[i]], abs=1e-4)
        assert float(row["probability_of_true"]) == pytest.approx(probabilities[i, labels[i]], abs=1e-4)

    bins = rows(folder / "calibration.csv")
    assert sum(int(row["examples"]) for row in bins) == 37
    gaps = [
        int(row["examples"]) * abs(float(row["accuracy"]) - float(row["confidence"])) for row in bins if row["accuracy"]
    ]
    assert metrics["calibration_error"] == pytest.approx(sum(gaps) / 37)
    values = json.loads((folder / "metrics.json").read_text())
    assert (values["split"], values["step"], values["examples"]) == ("train", 0, 37)
    assert values["top5"] == metrics["top5"]


def test_its_pictures_show_something(evaluated, model_dir):
    folder = model_dir / "evaluation" / "train"
    names = {path.name for path in folder.iterdir()}
    assert {"confusion.png", "calibration.png", "mistakes.jpg", "confused_1.jpg", "report.html"} <= names
    for path in folder.glob("*.[jp][pn]g"):
        assert np.asarray(Image.open(path).convert("L")).std() > 5, path.name
        assert max(Image.open(path).size) < 2500, path.name


def test_the_page_is_whole_escaped_and_needs_no_network(evaluated, model_dir):
    page = (model_dir / "evaluation" / "train" / "report.html").read_text()
    text = without_pictures(page)
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&amp;amp;" in text and "aaaa…aaaa" in text
    assert not re.search(r"https?:|//[a-z]|@import|<link", text)
    assert "src=" not in re.sub(r'src="data:image/(png|jpeg);', "", text)
    assert "Guessing the class frequencies has a loss of 2." in text
    assert len(text) < 100_000 and len(page) < 3_000_000
    assert page.count("data:image/jpeg") == len(list((model_dir / "evaluation" / "train").glob("*.jpg")))


def test_its_numbers_are_those_of_the_evaluator_alone(records, model_dir, evaluated):
    what, metrics = evaluated
    strategy = LOOP.create_strategy()
    with strategy.scope():
        model = load_model(checkpoint.find(str(model_dir)), what.create_evaluation_model)
    evaluator = Evaluator(strategy, what, what.data.training_records(), model)
    values = evaluator.evaluate(tf.constant(evaluator.steps))
    for name in ("loss", "top1", "top5"):
        assert metrics[name] == values[f"validation_{name}"]


def scalars(folder):
    """(tag, step) of everything that TensorBoard reads of one run."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(tag, event.step) for tag in events.Tags()["tensors"] for event in events.Tensors(tag)]


def test_evaluating_a_checkpoint_again_replaces_its_metrics(records, model_dir, evaluated):
    what, metrics = evaluated
    named = {f"train_{name}": value for name, value in metrics.items()}
    before = report.read_metrics(str(model_dir))
    again = evaluate(RunContext(str(model_dir)), what, LOOP, split="train")
    assert again == metrics
    assert report.read_metrics(str(model_dir)) == before == [{"step": 0, "split": "train", **named}]
    assert sorted(scalars(model_dir / "tensorboard" / "train")) == sorted((name, 0) for name in named)


def collected(strategy, what, model_dir, several_labels, objective="softmax", batch=16):
    what = dataclasses.replace(what, loss=objective)
    with strategy.scope():
        model = load_model(checkpoint.find(str(model_dir)), what.create_evaluation_model)
    collector = Collector(what.objective, several_labels)
    evaluator = Evaluator(strategy, what, what.data.training_records(), model, batch, collector=collector)
    evaluator.evaluate(tf.constant(evaluator.steps))
    return collector.result(10)


def test_predictions_come_in_the_order_of_the_records_on_every_number_of_replicas(records, model_dir, two_replicas):
    what = tiny_runs.experiment(records / "single")
    one, two = (collected(strategy, what, model_dir, False) for strategy in (LOOP.create_strategy(), two_replicas))
    examples, logits = by_hand(what, model_dir)
    for predictions in (one, two):
        np.testing.assert_array_equal(predictions.position, np.arange(37))
        np.testing.assert_array_equal(predictions.label, [example["label"] for example in examples])
        np.testing.assert_array_equal(predictions.predicted, logits.argmax(1))
        np.testing.assert_allclose(predictions.confidence, softmax(logits).max(1), atol=1e-4)


def test_of_several_labels_each_class_is_counted_by_itself(records, model_dir, tmp_path):
    what = tiny_runs.experiment(records / "multiple", loss="sigmoid")
    predictions = collected(LOOP.create_strategy(), what, model_dir, True, "sigmoid")
    examples, logits = by_hand(what, model_dir)
    likely = 1 / (1 + np.exp(-logits)) >= 0.5
    labelled = np.zeros_like(likely)
    for i, example in enumerate(examples):
        labelled[i, example["labels"]] = True
    np.testing.assert_array_equal(predictions.class_counts.labelled, labelled.sum(0))
    np.testing.assert_array_equal(predictions.class_counts.predicted, likely.sum(0))
    np.testing.assert_array_equal(predictions.class_counts.correct, (labelled & likely).sum(0))
    np.testing.assert_array_equal(predictions.top1, labelled[np.arange(37), logits.argmax(1)])

    context = RunContext(str(tmp_path))
    public_weights.save(load_model(checkpoint.find(str(model_dir)), what.create_model), str(tmp_path), "none")
    metrics = evaluate(context, what, LOOP, split="train")
    folder = tmp_path / "evaluation" / "train"
    assert not list(folder.glob("conf*"))
    assert "Not defined: an example may have several labels" in (folder / "report.html").read_text()
    assert all("; " in row["true"] for row in rows(folder / "mistakes.csv"))
    precision, recall = ((labelled & likely).sum(0) / np.maximum(each.sum(0), 1) for each in (likely, labelled))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    assert metrics["macro_f1"] == pytest.approx(f1[(labelled | likely).any(0)].mean())

    # Under softmax they share a probability, and no class is predicted or not: nothing is said of it.
    metrics = evaluate(context, dataclasses.replace(what, loss="softmax"), LOOP, split="train")
    assert metrics.keys() == {"loss", "top1", "top5"}
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "mistakes.csv", "mistakes.jpg", "report.html"}


def test_a_split_that_is_not_there_is_refused_with_those_that_are(records, model_dir):
    what = tiny_runs.experiment(records / "single")
    with pytest.raises(
        manifest.ManifestError, match=r"No split 'tset' in .*: it has train, validation[.] .*--test_input"
    ):
        evaluate(RunContext(str(model_dir)), what, LOOP, split="tset")


def test_outputs_that_are_not_finite_are_refused(records, model_dir, tmp_path):
    what = tiny_runs.experiment(records / "single")
    model = load_model(checkpoint.find(str(model_dir)), what.create_model)
    model.linear.kernel.assign(model.linear.kernel * np.nan)
    public_weights.save(model, str(tmp_path), "none")
    with pytest.raises(ValueError, match="not finite for 37 of 37 images"):
        evaluate(RunContext(str(tmp_path)), what, LOOP, split="train")
    assert not (tmp_path / "evaluation").exists()


def made_up(count, classes):
    """Predictions for `count` records of `classes` classes, which are those of a record set."""
    rng = np.random.default_rng(count)
    labels = (np.arange(count) % classes).astype(np.int32)
    predicted = np.where(rng.random(count) < 0.5, labels, rng.integers(0, classes, count)).astype(np.int32)
    counts = [np.bincount(each, minlength=classes) for each in (labels, predicted, labels[labels == predicted])]
    top1, confidence = labels == predicted, rng.random(count).astype(np.float32)
    label_probabilities = np.where(top1, confidence, confidence / 2)[:, None]
    arrays = (np.arange(count), labels[:, None], np.ones((count, 1)), label_probabilities, predicted, confidence)
    return Predictions(*arrays, top1, top1, classes, ClassCounts(*counts), False, True)


@pytest.mark.parametrize(("count", "classes"), [(1, 1), (60, 1), (600, 1500)])
def test_few_and_many_examples_and_classes(tmp_path, count, classes):
    made = record_sets.make(tmp_path / "records", examples=count, validation=1, classes=classes)
    what = tiny_runs.experiment(tmp_path / "records")
    predictions = made_up(count, classes)
    values = {"loss": 1.0, "top1": 0.5, "top5": 0.5, **split_report.of_predictions(predictions)}
    evaluation = split_report.Evaluation(str(tmp_path / "run"), 7, "train", what.data.directory, values)
    path = split_report.write(evaluation, predictions, made.classes, what.data.training_records())
    with open(path) as file:
        page = file.read()
    assert len(page) < 3_000_000
    assert len(rows(tmp_path / "run" / "evaluation" / "train" / "classes.csv")) == classes
    picture = Image.open(tmp_path / "run" / "evaluation" / "train" / "confusion.png")
    assert max(picture.size) < 2000
