"""What an experiment is told, what it makes of records, and what it refuses."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from pipeline import objective
from pipeline.data import reader
from pipeline.data.augment import EVAL_VIEWS, Augmentation
from pipeline.data.input import Data
from pipeline.data.mixing import Mixing
from pipeline.train import components
from pipeline.train.run_config import Loop, RunContext
from tests import record_sets, tiny_runs

CLASSES = 6


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    record_sets.make(path, examples=64, validation=8, classes=CLASSES)
    return path


def data(batch=8, **settings):
    augmentation = Augmentation(**settings.pop("augmentation", {}))
    return Data("nowhere", batch, 16, 16, augmentation=augmentation, **settings)


def parsed(*label_sets):
    """Parsed records of one image each, as the reader gives them; an int is a single label."""
    rng = np.random.default_rng(0)
    images = [record_sets.jpeg(rng, mean=60 * (i + 1)) for i in range(len(label_sets))]

    def examples():
        for i, labels in enumerate(label_sets):
            common = {"image": images[i], "id": i, "position": i, "epoch": 0, "weight": 1.0}
            if isinstance(labels, int):
                yield {**common, "label": labels}
            else:
                yield {**common, "labels": list(labels), "label_weights": list(labels.values())}

    single = isinstance(label_sets[0], int)
    spec = {
        "image": tf.TensorSpec([], tf.string),
        "id": tf.TensorSpec([], tf.int64),
        "position": tf.TensorSpec([], tf.int64),
        "epoch": tf.TensorSpec([], tf.int32),
        "weight": tf.TensorSpec([], tf.float32),
        **({"label": tf.TensorSpec([], tf.int64)} if single else {}),
        **({} if single else {"labels": tf.TensorSpec([None], tf.int64)}),
        **({} if single else {"label_weights": tf.TensorSpec([None], tf.float32)}),
    }
    return tf.data.Dataset.from_generator(examples, output_signature=spec)


def dense(example):
    """Targets as the loss sees them, before it normalises."""
    labels, weights = example["labels"][None], example["label_weights"][None]
    return objective.dense_targets(labels, weights, CLASSES)[0].numpy()


# Two records whose weights add up to 1 and to 8, mixed with each other.
UNEQUAL = ({0: 1.0}, {1: 6.0, 2: 2.0})


def mixed_pairs(loss):
    view = data(2, augmentation={"mixing": Mixing(mixup_alpha=1.0, cutmix=False)}).training_view(0, objective.get(loss))
    return [dense(example) for example in view(parsed(*UNEQUAL))]


def test_in_a_mixed_softmax_target_each_record_has_the_share_of_its_image():
    first, second = mixed_pairs("softmax")
    # Own label and partner's: what is not the one's is the other's, in the partner's own proportion of 6 to 2.
    for target in (first, second):
        assert target.sum() == pytest.approx(1)
        assert target[1] == pytest.approx(3 * target[2])
    # Without normalisation the heavier record would have had eight times its share.
    (raw_first, raw_second), shares = mixed_pairs("sigmoid"), (first[0], 1 - second[0])
    for raw, own, record in ((raw_first, shares[0], 0), (raw_second, shares[1], 1)):
        weights = [own, 1 - own] if record == 0 else [1 - own, own]
        np.testing.assert_allclose(raw[:3], [weights[0], 6 * weights[1], 2 * weights[1]], rtol=1e-5)


def test_sigmoid_keeps_the_weights_of_a_record():
    (example,) = data(1).training_view(0, objective.SIGMOID)(parsed({1: 0.5, 2: 1.0, 4: 0.75}))
    np.testing.assert_array_equal(dense(example), [0, 0.5, 1, 0, 0.75, 0])


def test_softmax_targets_without_mixing_sum_to_one_and_a_record_without_weight_stays_empty():
    heavy, empty = data(1).training_view(0, objective.SOFTMAX)(parsed({1: 3.0, 2: 1.0}, {3: 0.0}))
    np.testing.assert_allclose(dense(heavy), [0, 0.75, 0.25, 0, 0, 0])
    np.testing.assert_array_equal(dense(empty), np.zeros(CLASSES))


def test_a_single_label_weighs_one_in_training_and_in_evaluation():
    for view in (data(1).training_view(0, objective.SOFTMAX), data(1).evaluation_view(objective.SOFTMAX)):
        (example,) = view(parsed(4))
        assert example["labels"].numpy().tolist() == [4]
        assert example["label_weights"].numpy().tolist() == [1.0]


def test_labels_are_padded_to_one_length_and_cut_after_the_first_ones():
    few, many = data(1, max_labels=3).evaluation_view(objective.SIGMOID)(
        parsed({5: 2.0}, {1: 1.0, 2: 0.5, 3: 0.25, 4: 9.0})
    )
    assert few["labels"].numpy().tolist() == [5, 0, 0]
    assert few["label_weights"].numpy().tolist() == [2.0, 0.0, 0.0]  # class 0 gets nothing from the padding
    np.testing.assert_array_equal(dense(few), [0, 0, 0, 0, 0, 2])
    assert many["labels"].numpy().tolist() == [1, 2, 3]
    assert many["label_weights"].numpy().tolist() == [1.0, 0.5, 0.25]


def test_labels_beyond_max_labels_take_no_share_of_a_softmax_target():
    (example,) = data(1, max_labels=2).training_view(0, objective.SOFTMAX)(parsed({1: 1.0, 2: 3.0, 3: 100.0}))
    np.testing.assert_allclose(dense(example), [0, 0.25, 0.75, 0, 0, 0])


def test_a_view_depends_on_seed_epoch_and_record_alone():
    def images(seed):
        return [example["image"].numpy() for example in data(1).training_view(seed, objective.SOFTMAX)(parsed(1, 1))]

    first, again, other = images(0), images(0), images(1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_run_is_refused_before_any_work_where_a_replica_would_cut_a_group(records, monkeypatch):
    experiment = tiny_runs.experiment(records, augmentation=Augmentation(repeats=4))
    monkeypatch.setattr(Loop, "create_strategy", lambda self: tf.distribute.MirroredStrategy(["CPU:0"]))
    monkeypatch.setattr(tf.distribute.MirroredStrategy, "num_replicas_in_sync", 8)
    with pytest.raises(
        ValueError, match=r"batch of 16 images.*each of 8 replicas 2 images.*groups of 4.*multiple of 32"
    ):
        components.assemble(RunContext("nowhere"), experiment, Loop())


def test_hosts_and_replicas_together_see_the_images_of_one(records):
    settings = {"mixing": Mixing(), "repeats": 2}
    experiment = tiny_runs.experiment(records, augmentation=Augmentation(**settings), epochs=1)
    opened = experiment.data.training_records()
    budget = experiment.budget(opened.examples, opened.manifest.digest)
    assert (budget.batch, experiment.data.batch) == (8, 16)

    def images(host, hosts, replica_batch):
        view = experiment.data.training_view(experiment.seed, experiment.objective)
        made = reader.dataset(opened, budget, view, host=host, hosts=hosts, replica_batch=replica_batch)
        batches = [(batch["image"].numpy(), batch["id"].numpy()) for batch in made]
        assert all(len(batch) == replica_batch for batch, _ in batches)
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    expected, ids = images(0, 1, 16)
    assert sorted(ids[::2]) == sorted(set(ids))
    assert len(set(ids)) == 64
    shares = [images(host, 2, 8) for host in range(2)]
    by_step = [share.reshape(-1, 8, *share.shape[1:]) for share, _ in shares]
    np.testing.assert_array_equal(np.concatenate(by_step, 1).reshape(expected.shape), expected)


def test_classes_are_the_record_sets_or_more(records):
    experiment = tiny_runs.experiment(records)
    assert experiment.classes(CLASSES) == CLASSES
    assert dataclasses.replace(experiment, num_classes=1000).classes(CLASSES) == 1000
    assert dataclasses.replace(experiment, num_classes=CLASSES).classes(CLASSES) == CLASSES


def test_too_few_classes_are_refused(records):
    experiment = tiny_runs.experiment(records, num_classes=CLASSES - 1)
    with pytest.raises(ValueError, match=f"has {CLASSES} classes, but num_classes is {CLASSES - 1}"):
        experiment.classes(CLASSES)


def test_an_evaluation_view_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"Data\.eval_view is 'squash'; expected one of crop_resize, resize_crop"):
        data(eval_view="squash")


def test_evaluation_takes_the_view_that_is_set(records):
    images = []
    for view in EVAL_VIEWS:
        what = data(eval_view=view).evaluation_view(objective.SOFTMAX)(parsed(0, 1))
        images.append(next(what.as_numpy_iterator())["image"])
    for one, other in itertools.combinations(images, 2):
        assert np.abs(one.astype(float) - other).mean() > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "hinge"}, r"Experiment.loss is 'hinge'; expected one of softmax, sigmoid"),
        ({"precision": "float16"}, "Experiment.precision is 'float16'"),
        ({"eval_precision": "float16"}, "Experiment.eval_precision is 'float16'"),
        ({"accumulation_steps": 0}, "Experiment.accumulation_steps is 0; expected 1 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_runs.experiment("nowhere", **settings)
