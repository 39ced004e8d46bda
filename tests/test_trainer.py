"""The inner loops against plain NumPy and Keras arithmetic."""

import functools
import math
import types

import numpy as np
import orbit
import pytest
import tensorflow as tf

from pipeline import report
from pipeline.data import augment
from pipeline.data.input import Data
from pipeline.model import nfnet
from pipeline.train import components, controller, distribution, experiment, optimizer, run_config, schedule
from pipeline.train.evaluator import Evaluator
from pipeline.train.step import TrainingStep
from pipeline.train.train import evaluation_steps, train
from pipeline.train.trainer import Trainer
from tests import record_sets, tiny_runs

SIZE = 32


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    record_sets.make(path, examples=48, validation=21)
    return str(path)


def make_experiment(directory, **changes):
    data = Data(directory, batch=16, train_size=SIZE, eval_size=SIZE)
    values = {
        "model": functools.partial(nfnet.create, "nano", dropout_rate=0.0),
        "data": data,
        "optimizer": optimizer.SGD,
        "schedule": lambda steps, steps_per_epoch: schedule.constant(steps, steps_per_epoch, peak=0.1),
        "epochs": 1.0,
    }
    return experiment.Experiment(**{**values, **changes})


def evaluate(found, batch):
    strategy = distribution.create("one_device")
    records = found.data.validation_records()
    with strategy.scope():
        model = found.model(num_classes=10)
        model.linear.kernel.assign(tf.random.stateless_normal(model.linear.kernel.shape, [1, 2]))
    evaluator = Evaluator(strategy, found, records, model, batch)
    controller = orbit.Controller(global_step=tf.Variable(0, dtype=tf.int64), evaluator=evaluator, strategy=strategy)
    return model, controller.evaluate(evaluator.steps)


def test_evaluation_is_exact_over_a_padded_last_batch(directory):
    found = make_experiment(directory, label_smoothing=0.1)  # which evaluation leaves out
    tf.random.set_seed(0)
    model, metrics = evaluate(found, batch=8)
    records = found.data.validation_records()
    logits, labels = [], []
    for example in tf.data.TFRecordDataset(f"{directory}/demo-validation.tfrecord-00000-of-00001"):
        parsed = tf.train.Example.FromString(example.numpy()).features.feature
        view = augment.evaluation_view(tf.constant(parsed["image"].bytes_list.value[0]), SIZE)
        logits.append(model(augment.normalize(view)[None])[0].numpy())
        labels.append(parsed["label"].int64_list.value[0])
    logits, labels = np.array(logits, np.float64), np.array(labels)
    assert len(labels) == records.examples == 21
    own = logits[np.arange(21), labels]
    ranks = (logits > own[:, None]).sum(1)
    losses = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - own
    assert metrics["validation_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert metrics["validation_top1"] == (ranks < 1).mean()
    assert metrics["validation_top5"] == (ranks < 5).mean()


def test_the_step_is_the_gradient_of_the_mean_over_real_examples(directory):
    """One step on a batch with empty slots equals plain SGD on its examples alone."""
    plain = lambda learning_rate: optimizer.SGD(  # noqa: E731
        learning_rate, momentum=0.0, nesterov=False, weight_decay=0.0, clipping=None
    )
    data = Data(directory, 64, SIZE, SIZE, augment.Augmentation(min_area=1.0, flip=False))
    found = make_experiment(directory, data=data, optimizer=plain, label_smoothing=0.1)
    run = components.assemble(run_config.RunContext("nowhere"), found, run_config.Loop(strategy="one_device"))
    state = run.state
    step = TrainingStep(model=state.model, optimizer=state.optimizer, ledger=state.ledger, label_smoothing=0.1)
    loop = Trainer(found, run, step)
    loop.train_loop_begin()
    batch = next(iter(loop.train_dataset))
    assert batch["weight"].numpy().sum() == 48
    real = batch["weight"].numpy() > 0
    variables = state.model.trainable_variables
    before = [variable.numpy() for variable in variables]
    with tf.GradientTape() as tape:
        logits = state.model(augment.normalize(batch["image"][real]))
        targets = tf.one_hot(batch["labels"][:, 0], 10)[real] * 0.9 + 0.1 / 10
        loss = tf.reduce_mean(-tf.reduce_sum(targets * tf.nn.log_softmax(logits), 1))
    expected = tape.gradient(loss, variables)
    output = run.strategy.run(tf.function(step), args=(batch,))
    assert float(output.examples) == 48
    assert float(output.loss) / 48 == pytest.approx(float(loss), rel=1e-5)
    for old, variable, gradient in zip(before, variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), old - 0.1 * gradient.numpy(), rtol=1e-3, atol=1e-6)
    assert state.ledger.examples.numpy().tolist() == [48]


def test_training_lowers_the_loss_and_the_ledger_is_exact(directory, tmp_path):
    found = make_experiment(directory, model=tiny_runs.TinyNet, epochs=6.0, ema_decay=0.9)
    context = run_config.RunContext(str(tmp_path))
    summary = train(context, found, run_config.Loop(strategy="one_device", steps_per_loop=6, checkpoint_every=6))
    losses = [line["loss"] for line in report.read_metrics(str(tmp_path)) if "loss" in line]
    assert losses[-1] < losses[0]
    assert [entry["exactly_once"] for entry in summary["ledger"]] == [True] * 6


@pytest.mark.parametrize(
    ("every", "steps"), [(None, [12]), (1.0, [3, 6, 9, 12]), (0.5, [2, 4, 6, 8, 10, 12]), (3.0, [9, 12]), (9.0, [12])]
)
def test_evaluation_comes_every_so_many_epochs_and_at_the_end(directory, every, steps):
    found = make_experiment(directory, epochs=4.0)
    records = found.data.training_records()
    budget = found.budget(records.examples, records.manifest.digest)
    assert evaluation_steps(budget, budget.steps, every) == steps


@pytest.mark.parametrize(
    ("settings", "step", "step_seconds", "expected"),
    [
        ({"steps_per_loop": 20}, 0, 9.0, 20),
        ({"steps_per_loop": 20}, 27, 9.0, 13),  # to the next multiple
        ({"steps_per_loop": 20}, 95, 9.0, 5),
        ({}, 0, math.inf, 1),  # before the first loop
        ({}, 1, 1.6, 12),  # F7+ on a slice
        ({}, 1, 60.0, 1),
        ({}, 1, 0.001, 50),  # a hundredth of the run
        ({}, 90, 1.6, 10),  # to the checkpoint
    ],
)
def test_a_loop_takes_about_20_seconds_unless_its_steps_are_set(settings, step, step_seconds, expected):
    loop = run_config.Loop(**{"checkpoint_every": 100, **settings})
    run = types.SimpleNamespace(last_step=5000, strategy=tf.distribute.OneDeviceStrategy("/cpu:0"))
    trainer = types.SimpleNamespace(step_seconds=step_seconds)
    assert controller.inner_loop(loop, run, trainer)(step) == expected


def test_without_settings_a_short_run_reports_every_hundredth(directory, tmp_path):
    train(
        run_config.RunContext(str(tmp_path)),
        make_experiment(directory, model=tiny_runs.TinyNet, max_steps=3),
        run_config.Loop(strategy="one_device"),
    )
    steps = [line["step"] for line in report.read_metrics(str(tmp_path)) if "loss" in line]
    assert steps == [1, 2, 3]
