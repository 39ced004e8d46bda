import functools
import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from pipeline import registry
from pipeline.data import augment, record
from pipeline.data.input import Data
from pipeline.model import nfnet
from pipeline.train import checkpoint, experiment, few_shot, optimizer, public_weights, run_config, schedule
from tests import record_sets, tiny_runs


def _clusters(rng, count, spread):
    """Features [3 * count, 6] of three classes, numbered 2, 5 and 9."""
    centres = np.eye(3, 6) * 4
    labels = np.repeat([2, 5, 9], count)
    return (centres.repeat(count, 0) + spread * rng.normal(size=(3 * count, 6))).astype(np.float32), labels


def test_ridge_separates_what_can_be_separated():
    rng = np.random.default_rng(0)
    features, labels = _clusters(rng, 5, 0.5)
    queries, expected = _clusters(rng, 50, 0.5)
    np.testing.assert_array_equal(few_shot.ridge(features, labels, queries), expected)


@pytest.mark.parametrize(("examples", "channels"), [(12, 40), (60, 5)])
def test_the_leave_one_out_error_is_that_of_leaving_one_out(examples, channels):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(examples, channels))
    x -= x.mean(0)
    y = rng.normal(size=(examples, 3))
    y -= y.mean(0)
    errors = []
    for i in range(examples):
        keep = np.arange(examples) != i
        xm, ym = x[keep].mean(0), y[keep].mean(0)
        xc, yc = x[keep] - xm, y[keep] - ym
        w = np.linalg.solve(xc.T @ xc + 0.7 * np.eye(channels), xc.T @ yc)
        errors.append((y[i] - ym - (x[i] - xm) @ w) ** 2)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    assert few_shot._leave_one_out(u, s, y, 0.7) == pytest.approx(np.mean(errors), rel=1e-6)


def test_chosen_examples_are_k_a_class_and_nested():
    labels = np.random.default_rng(2).integers(0, 4, 100)
    few, more = few_shot.choose(labels, 3, seed=7), few_shot.choose(labels, 8, seed=7)
    assert [int(np.sum(labels[more] == each)) for each in range(4)] == [8, 8, 8, 8]
    assert set(few) <= set(more)
    assert len(set(more)) == 32
    assert set(few) != set(few_shot.choose(labels, 3, seed=8))
    with pytest.raises(ValueError, match=r"50 examples a class are asked for; class \d has \d+"):
        few_shot.choose(labels, 50, seed=7)


def test_a_checkpoint_is_evaluated_on_classes_it_was_not_trained_on(tmp_path, capsys):
    record_sets.make(tmp_path / "records", examples=60, validation=30, classes=3)
    tf_keras.utils.set_random_seed(0)  # the features of some random networks tell 24 of the 30 images, of most all
    public_weights.save(nfnet.create("femto", 11), str(tmp_path / "run"), "none")
    setup = experiment.Experiment(
        model=functools.partial(nfnet.create, "femto"),
        data=Data(str(tmp_path / "records"), batch=16, train_size=32, eval_size=32),
        optimizer=optimizer.SGD,
        schedule=schedule.cosine,
        epochs=1,
    )
    results = few_shot.few_shot(run_config.RunContext(str(tmp_path / "run")), setup, shots=(1, 15))
    # Classes differ in brightness, which random features tell.
    assert results["few_shot_15"] > 0.8
    assert json.loads((tmp_path / "run" / "few_shot.json").read_text())["few_shot_15"] == results["few_shot_15"]
    assert "few_shot_15" in capsys.readouterr().out
    with pytest.raises(ValueError, match="class 0 has 20"):
        few_shot.few_shot(run_config.RunContext(str(tmp_path / "run")), setup, shots=(21,))
    with pytest.raises(checkpoint.CheckpointError, match="holds no whole checkpoint"):
        few_shot.few_shot(run_config.RunContext(str(tmp_path)), setup)


@pytest.mark.parametrize("replicas", [1, 2])
def test_features_come_by_id_and_only_once(tmp_path, two_replicas, replicas):
    strategy = two_replicas if replicas == 2 else tf.distribute.OneDeviceStrategy("/cpu:0")
    record_sets.make(tmp_path / "records", examples=37, validation=10, classes=3)
    data = Data(str(tmp_path / "records"), batch=16, train_size=32, eval_size=32)
    setup = experiment.Experiment(nfnet.create, data, optimizer.SGD, schedule.cosine, 1)
    with strategy.scope():
        model = tiny_runs.TinyNet(3)
    features, labels = few_shot.extract(strategy, model, setup, data.training_records())

    shards = sorted(str(path) for path in (tmp_path / "records").glob("*train*.tfrecord-*-of-?????"))
    records = [record.decode(serialized.numpy()) for serialized in tf.data.TFRecordDataset(shards)]
    records.sort(key=lambda example: example["id"])
    assert labels.tolist() == [example["label"] for example in records]
    views = tf.stack([augment.evaluation_view(tf.constant(example["image"]), 32) for example in records])
    np.testing.assert_allclose(features, model.features(augment.normalize(views)), rtol=1e-4, atol=1e-4)


def test_gin_can_run_it(tmp_path, monkeypatch):
    record_sets.make(tmp_path / "records", examples=60, validation=30, classes=3)
    public_weights.save(nfnet.create("nano", 11), str(tmp_path / "run"), "none")
    params = ["RUN=@few_shot", f'DATA_DIR="{tmp_path / "records"}"', "few_shot.shots=(2,)", "EVAL_SIZE=32"]
    registry.run_configured(["gin/quickstart_pretrain.gin"], params, str(tmp_path / "run"))
    assert "few_shot_2" in json.loads((tmp_path / "run" / "few_shot.json").read_text())
