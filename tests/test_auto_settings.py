"""Settings that follow from the data, and gin/finetune_own.gin, which uses them."""

import dataclasses
import functools
import itertools
import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from beam import launch
from pipeline import configure, registry, report
from pipeline.data import manifest, reader, statistics
from pipeline.data.input import Data
from pipeline.data.order import EpochBudget
from pipeline.objective import SOFTMAX
from pipeline.train import auto_settings, checkpoint, schedule
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.train import stops_early, train
from tests import ingest_images, tiny_runs

SIZES = (100, 300, 1_000, 5_000, 30_000, 300_000, 1_000_000)
FAST = ("MODEL=@nfnet", 'nfnet.variant="pico"', "TRAIN_SIZE=32", "EVAL_SIZE=32")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes of unlike size: stripes along either axis, and none."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, count in (("across", 80), ("down", 40), ("plain", 20)):
        for number in range(count):
            pixels = rng.integers(0, 90, (60, 60, 3))
            if name != "plain":
                pixels[::8] += 160
            if name == "down":
                pixels = pixels.transpose(1, 0, 2)[:48]
            picture = Image.fromarray(pixels.astype(np.uint8))
            ingest_images.write(folder / name / f"{number}.png", ingest_images.encode(picture, "PNG"))
    return folder


@pytest.fixture(scope="module")
def records(images, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("records") / "set")
    arguments = [f"--input={images}", f"--output_dir={folder}", "--validation_fraction=0.2"]
    assert launch.main(arguments) == 0
    return folder


def test_the_side_and_the_classes_are_those_of_the_images(images, records):
    counted = statistics.read(records)
    assert 48 / 1.2 <= counted.median_side <= 60
    made = manifest.read(records)
    assert sum(counted.images_per_class["train"]) == made.splits["train"].written
    total = np.sum(list(counted.images_per_class.values()), axis=0)
    assert dict(zip(made.classes, total, strict=True)) == {"across": 80, "down": 40, "plain": 20}


@pytest.mark.parametrize("trained_size", [None, 224])
def test_more_images_mean_fewer_epochs_of_more_images_in_all(trained_size):
    chosen = [auto_settings.rules(images, 100, trained_size) for images in SIZES]
    for less, more in itertools.pairwise(chosen):
        assert less["EPOCHS"] >= more["EPOCHS"]
    seen = [images * each["EPOCHS"] for images, each in zip(SIZES, chosen, strict=True)]
    assert seen == sorted(seen)
    for each in chosen:
        assert 0 < each["MIN_AREA"] < 1 and 0 < each["EMA_DECAY"] < 1 and each["WARMUP_EPOCHS"] < each["EPOCHS"]


def test_what_the_user_sets_decides_the_rest():
    ten, thirty = (auto_settings.rules(5_000, 100, epochs=epochs) for epochs in (10, 30))
    assert (ten["EPOCHS"], thirty["EPOCHS"]) == (10, 30)
    assert ten["WARMUP_EPOCHS"] < thirty["WARMUP_EPOCHS"] and ten["EMA_DECAY"] < thirty["EMA_DECAY"]
    assert auto_settings.rules(5_000, 100, size=80)["EVAL_SIZE"] == 80
    small = auto_settings.rules(5_000, 100, batch=16)
    assert small["LEARNING_RATE"] == pytest.approx(auto_settings.rules(5_000, 100)["LEARNING_RATE"] / 2)


def test_a_part_of_the_images_has_the_settings_of_as_many(records, tmp_path, capsys):
    whole = auto_settings.choose(str(records))
    part = auto_settings.choose(str(records), train_examples=5_000)
    side = statistics.read(str(records)).median_side
    assert part.values == auto_settings.rules(5_000, side) != whole.values
    params = [f'DATA_DIR="{records}"', "Data.train_examples=60", *FAST]
    registry.bindings(["gin/finetune_own.gin"], params, say=print)
    assert "For 60 images of 3 classes" in capsys.readouterr().out


def test_a_user_of_the_file_gets_an_evaluated_exported_best_model(records, tmp_path, capsys):
    run, moved = str(tmp_path / "run"), tmp_path / "records"
    shutil.copytree(records, moved)
    registry.run_configured(["gin/finetune_own.gin"], [f'DATA_DIR="{moved}"', "EPOCHS=6", *FAST], run)
    printed = capsys.readouterr().out
    assert re.search(
        r"For 1\d\d images of 3 classes, about 45 pixels, from random weights: GLOBAL_BATCH = 32,", printed
    )
    assert " EPOCHS" not in printed and "learned nothing" not in printed
    lines = [line for line in report.read_metrics(run) if "validation_loss" in line]
    assert len(lines) == 6 and lines[-1]["validation_top1"] > 0.8
    best = min(lines, key=lambda line: line["validation_loss"])
    assert checkpoint.find(run, checkpoint.BEST).step == best["step"]
    assert f"validation, step {best['step']} of {run}: loss {best['validation_loss']:.4g}" in printed
    assert tf.io.gfile.exists(f"{run}/evaluation/validation/report.html")
    other = auto_settings.choose(str(moved), initial_checkpoint=run)
    assert other.values["TRAIN_SIZE"] == other.values["EVAL_SIZE"] == 32 and run in other.reason
    with pytest.raises(checkpoint.CheckpointError, match="nothing"):
        auto_settings.choose(str(moved), initial_checkpoint=f"{tmp_path}/nothing")
    with open(f"{run}/saved_model/1/assets.extra/metadata.json") as file:  # what it was evaluated with
        assert json.load(file)["eval_view"] == registry.configured([f"{run}/config.gin"], []).data.eval_view
    shutil.rmtree(moved)  # what was chosen is part of the run's configuration
    registry.run_configured([], [], run, task="export")
    assert sorted(tf.io.gfile.listdir(f"{run}/saved_model")) == ["1", "2"]


def test_training_ends_where_the_validation_loss_no_longer_falls(records, tmp_path, capsys):
    frozen = functools.partial(schedule.constant, peak=1e-30)  # nothing is learned
    setup = tiny_runs.experiment(records, epochs=20, patience=2, ema_decay=None)
    setup = dataclasses.replace(setup, schedule=frozen)
    loop, context = Loop(evaluate_every_epochs=1), RunContext(str(tmp_path))
    summary = train(context, setup, loop)
    printed = capsys.readouterr()
    assert "No lower validation loss for 2 epochs: stopped after step" in printed.err
    assert re.search(r"WARNING: this model has learned nothing: its loss, \S+, is not below 0\.\d+", printed.out)
    evaluated = [line for line in report.read_metrics(str(tmp_path)) if "validation_loss" in line]
    assert 3 <= len(evaluated) < 20 and summary["step"] == evaluated[-1]["step"]
    assert train(context, setup, loop) == summary
    assert "is finished" in capsys.readouterr().out


def test_early_stopping_counts_epochs_since_the_lowest_loss():
    class Budget:
        def epoch_of_step(self, step):
            return step / 10

    class Setup:
        patience = 3.0

    class Run:
        budget = Budget()

    losses = [1.0, 0.8, 0.9, 0.85, 0.81]
    lines = [{"step": 10 * (i + 1), "validation_loss": loss} for i, loss in enumerate(losses)]
    assert [stops_early(Setup(), Run(), lines[:count]) for count in range(6)] == [False] * 5 + [True]


def test_rare_classes_count_as_much_as_frequent_ones(records):
    data = Data(records, batch=8, train_size=32, eval_size=32, balance_classes=True)
    examples = data.training_records()
    view = data.training_view(0, SOFTMAX)
    budget = EpochBudget(examples.order(8, seed=0), 8, 1)
    totals = np.zeros(3)
    for batch in reader.dataset(examples, budget, view).as_numpy_iterator():
        np.add.at(totals, batch["labels"][:, 0], batch["label_weights"][:, 0] * batch["weight"])
    np.testing.assert_allclose(totals, totals.mean(), rtol=1e-5)
    assert totals.sum() == pytest.approx(examples.examples, rel=1e-5)


def test_records_of_an_older_version_are_named(records, tmp_path):
    for name in tf.io.gfile.listdir(records):
        if name != statistics.FILE:
            tf.io.gfile.copy(f"{records}/{name}", f"{tmp_path}/{name}")
    with pytest.raises(manifest.ManifestError, match=r"summary\.json is missing, damaged or of an older version"):
        auto_settings.choose(str(tmp_path))


def test_a_run_without_records_says_what_is_missing(tmp_path):
    with pytest.raises(configure.ConfigurationError, match="DATA_DIR must be set"):
        registry.run_configured(["gin/finetune_own.gin"], [], str(tmp_path))
