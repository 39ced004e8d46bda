import numpy as np
import pytest
import tensorflow as tf

from pipeline.model import nfnet
from pipeline.train import ema


class Counter(tf.Module):
    """Stands in for a model: two weights and a count."""

    def __init__(self):
        super().__init__("counter")
        self.w = tf.Variable([1.0, 2.0])
        self.b = tf.Variable(3.0)
        self.count = tf.Variable(0, dtype=tf.int64, trainable=False)


def test_the_average_follows_the_formula():
    trained = Counter()
    averaged = ema.AveragedModel(trained, Counter(), decay=0.9)
    expected = trained.w.numpy().astype(np.float64)
    rng = np.random.default_rng(0)
    for t in range(200):
        value = rng.normal(size=2)
        trained.w.assign(value)
        trained.count.assign_add(5)
        averaged.update(tf.constant(t + 1, tf.int64))
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * value
        np.testing.assert_allclose(averaged.model.w, expected, rtol=1e-5, atol=1e-6)
    assert int(averaged.model.count) == 1000


def test_decays_close_to_one_keep_their_digits():
    trained = Counter()
    averaged = ema.AveragedModel(trained, Counter(), decay=0.99999)
    trained.b.assign(1e5)
    averaged.model.b.assign(0.0)
    averaged.update(10**8)
    assert float(averaged.model.b) == pytest.approx(1.0, rel=1e-5)


def test_weights_that_stand_still_are_averaged_without_a_change_of_one_bit():
    trained = nfnet.create("nano", 3)
    averaged = ema.AveragedModel(trained, nfnet.create("nano", 3), decay=0.999)
    before = [v.numpy() for v in trained.variables]
    for step in range(1, 4):
        averaged.update(step)
    for raw, average, value in zip(trained.variables, averaged.model.variables, before, strict=True):
        np.testing.assert_array_equal(raw, value)
        np.testing.assert_array_equal(average, value)


def test_reset_copies_exactly():
    trained = Counter()
    averaged = ema.AveragedModel(trained, Counter(), decay=0.9)
    trained.w.assign([0.1, -7.3])
    averaged.reset()
    np.testing.assert_array_equal(averaged.model.w, trained.w)


def test_every_replica_holds_the_same_average(two_replicas):
    with two_replicas.scope():
        trained = Counter()
        averaged = ema.AveragedModel(trained, Counter(), decay=0.9)
    trained.w.assign([5.0, 7.0])

    @tf.function
    def step(done):
        two_replicas.run(averaged.update, args=(done,))

    for done in range(1, 4):
        step(tf.constant(done, tf.int64))
    copies = two_replicas.experimental_local_results(averaged.model.w)
    assert len(copies) == 2
    expected = np.array([1.0, 2.0])
    for t in range(3):
        expected += 9 / (10 + t) * (np.array([5.0, 7.0]) - expected)
    for copy in copies:
        np.testing.assert_allclose(copy, expected, rtol=1e-6)


@pytest.mark.parametrize("decay", [0, 1, 1.5])
def test_a_decay_outside_zero_and_one_is_refused(decay):
    with pytest.raises(ValueError, match=f"is {decay}; expected a number between 0 and 1"):
        ema.AveragedModel(Counter(), Counter(), decay)


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="cannot hold their average"):
        ema.AveragedModel(nfnet.create("nano", 3), nfnet.create("nano", 4), 0.9)
