import numpy as np
import pytest
import tensorflow as tf

from pipeline.train import loss

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 6)).astype(np.float32)


def log_softmax(logits):
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def dense(labels, weights):
    return loss.targets(tf.constant(labels, tf.int64), tf.constant(weights, tf.float32), 6)


def test_single_labels_with_smoothing():
    labels = np.array([[0], [3], [5], [3]])
    targets = np.eye(6)[labels[:, 0]] * 0.9 + 0.1 / 6
    expected = -(targets * log_softmax(LOGITS)).sum(1)
    np.testing.assert_allclose(loss.cross_entropy(dense(labels, np.ones((4, 1))), LOGITS, 0.1), expected, rtol=1e-5)


def test_several_weighted_labels_are_normalised():
    targets = dense([[1, 2]] * 4, [[3.0, 1.0]] * 4)
    expected = -(0.75 * log_softmax(LOGITS)[:, 1] + 0.25 * log_softmax(LOGITS)[:, 2])
    np.testing.assert_allclose(loss.cross_entropy(targets, LOGITS), expected, rtol=1e-5)


def test_an_empty_slot_has_a_finite_loss():
    assert np.isfinite(loss.cross_entropy(dense([[0]] * 4, [[0.0]] * 4), LOGITS).numpy()).all()


def test_sigmoid_is_the_mean_of_binary_losses():
    targets = dense([[1, 2]] * 4, [[1.0, 1.0]] * 4)
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    truth = np.array([0, 1, 1, 0, 0, 0])
    expected = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean(1)
    np.testing.assert_allclose(loss.cross_entropy(targets, LOGITS, kind="sigmoid"), expected, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_hits_look_at_the_k_best(k):
    labels = np.array([[0], [3], [5], [3]])
    ranks = [(row > row[label]).sum() for row, label in zip(LOGITS, labels[:, 0], strict=True)]
    expected = [float(rank < k) for rank in ranks]
    assert loss.hits(dense(labels, np.ones((4, 1))), LOGITS, k).numpy().tolist() == expected


def test_any_label_of_several_is_a_hit():
    best = LOGITS.argmax(1)
    labels = np.stack([(best + 1) % 6, best], 1)
    assert loss.hits(dense(labels, np.full((4, 2), 0.5)), LOGITS, 1).numpy().tolist() == [1.0] * 4
