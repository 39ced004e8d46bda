import numpy as np
import pytest
import tensorflow as tf

from pipeline.model import weights
from pipeline.train import freezing, ledger, optimizer, sam, step
from tests import tiny_runs

BATCH = {
    "image": tf.random.stateless_normal([8, 32, 32, 3], [1, 2]),
    "labels": tf.constant([[i % 4] for i in range(8)], tf.int64),
    "label_weights": tf.ones([8, 1]),
    "weight": tf.constant([1.0] * 7 + [0.0]),
    "id": tf.range(8, dtype=tf.int64),
    "epoch": tf.zeros([8], tf.int32),
}


def _step_once(start=None, frozen=(), **settings):
    """One step of a tiny model from `start`: its variables before and after, and the step's loss and examples."""
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = tiny_runs.without_noise(4)
        freezing.freeze(model, frozen)
        sgd = optimizer.SGD(0.1, clipping=None)
        sgd.build(model.trainable_variables)
        training = step.TrainingStep(model, sgd, ledger.Ledger(1), **settings)
    variables = weights.named(model)
    for name, value in (start or {}).items():
        variables[name].assign(value)
    before = {name: variable.numpy() for name, variable in variables.items()}

    @tf.function
    def run():
        output = strategy.run(training, args=(BATCH,))
        return output.loss, output.examples

    output = run()
    return before, {name: variable.numpy() for name, variable in variables.items()}, output


@pytest.fixture(scope="module")
def plain():
    return _step_once()


def test_accumulated_gradients_step_as_the_whole_batch_does(plain):
    before, after, output = plain
    _, accumulated, accumulated_output = _step_once(before, accumulation_steps=4)
    for name, value in after.items():
        np.testing.assert_allclose(accumulated[name], value, rtol=1e-3, atol=1e-6, err_msg=name)
    assert float(accumulated_output[0]) == pytest.approx(float(output[0]), rel=1e-5)
    assert float(accumulated_output[1]) == float(output[1]) == 7


def test_sam_steps_elsewhere_and_reports_the_loss_where_it_stands(plain):
    before, after, output = plain
    _, sharp, sharp_output = _step_once(before, sam=sam.SAM(0.5), accumulation_steps=2)
    assert not np.allclose(sharp["linear/kernel"], after["linear/kernel"], rtol=1e-3)
    assert float(sharp_output[0]) == pytest.approx(float(output[0]), rel=1e-5)


def test_frozen_variables_stay_and_the_others_move(plain):
    before, after, _ = plain
    _, partly, _ = _step_once(before, frozen=["stem/*", "block/*"])
    for name in before:
        expected = after if name.startswith("linear/") else before
        np.testing.assert_allclose(partly[name], expected[name], rtol=1e-4, atol=1e-7, err_msg=name)
