import numpy as np
import pytest
import tensorflow as tf

from pipeline.train import accumulation
from tests import tiny_runs


def test_parts_sum_to_the_whole_batches_gradient():
    model = tiny_runs.without_noise(5)
    batch = {
        "image": tf.random.stateless_normal([12, 32, 32, 3], [1, 2]),
        "label": tf.constant(list(range(4)) * 3),
    }
    variables = model.trainable_variables

    def compute(part, seed):
        with tf.GradientTape() as tape:
            logits = model(part["image"], training=True, seed=seed)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(part["label"], logits)) / 12
        return tape.gradient(loss, variables), loss

    @tf.function
    def gradients(parts):
        zeros = [tf.zeros_like(v) for v in variables], tf.constant(0.0)
        return accumulation.sum_over_parts(compute, batch, tf.constant([3, 4]), parts, zeros)

    (whole, whole_loss), (summed, summed_loss) = gradients(1), gradients(4)
    assert float(summed_loss) == pytest.approx(float(whole_loss), rel=1e-5)
    for one, other in zip(whole, summed, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6)


def test_parts_are_taken_in_order_each_with_its_own_seed():
    batch = {"x": tf.range(6)}
    seen = []

    def compute(part, seed):
        seen.append(part["x"].shape)
        return tf.tensor_scatter_nd_add(
            tf.zeros([6, 3], tf.int32), part["x"][:, None], tf.tile(tf.concat([part["x"][:1], seed], 0)[None], [2, 1])
        )

    sums = accumulation.sum_over_parts(compute, batch, tf.constant([1, 2]), 3, tf.zeros([6, 3], tf.int32)).numpy()
    np.testing.assert_array_equal(sums[:, 0], [0, 0, 2, 2, 4, 4])
    assert len({tuple(row) for row in sums[::2, 1:]}) == 3
    assert set(map(tuple, seen)) == {(2,)}
