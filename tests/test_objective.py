import numpy as np
import pytest
import tensorflow as tf

from pipeline import objective

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 6)).astype(np.float32)


def log_softmax(logits):
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def dense(labels, weights):
    return objective.dense_targets(tf.constant(labels, tf.int64), tf.constant(weights, tf.float32), 6)


def loss(labels, weights, kind="softmax", smoothing=0.0):
    """The loss of records' labels and weights, through all that an objective says."""
    chosen = objective.get(kind)
    shares = tf.stack([chosen.normalize_weights(tf.constant(row, tf.float32)) for row in weights])
    return objective.metrics(chosen, tf.constant(labels, tf.int64), shares, tf.constant(LOGITS), smoothing)["loss"]


def test_single_labels_with_smoothing():
    labels = np.array([[0], [3], [5], [3]])
    targets = np.eye(6)[labels[:, 0]] * 0.9 + 0.1 / 6
    expected = -(targets * log_softmax(LOGITS)).sum(1)
    np.testing.assert_allclose(loss(labels, np.ones((4, 1)), smoothing=0.1), expected, rtol=1e-5)


def test_several_weighted_labels_are_normalised():
    expected = -(0.75 * log_softmax(LOGITS)[:, 1] + 0.25 * log_softmax(LOGITS)[:, 2])
    np.testing.assert_allclose(loss([[1, 2]] * 4, [[3.0, 1.0]] * 4), expected, rtol=1e-5)


def test_an_empty_slot_has_a_finite_loss():
    assert np.isfinite(loss([[0]] * 4, [[0.0]] * 4).numpy()).all()


def test_sigmoid_is_the_sum_of_binary_losses():
    """As big_vision's `sigmoid_xent`: -sum over classes of y log p + (1 - y) log(1 - p)."""
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    truth = np.array([0, 1, 1, 0, 0, 0])
    expected = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(loss([[1, 2]] * 4, [[1.0, 1.0]] * 4, "sigmoid"), expected, rtol=1e-5)


@pytest.mark.parametrize("classes", [10, 30_000])
def test_a_sigmoid_gradient_does_not_depend_on_the_number_of_classes(classes):
    logits = tf.Variable(tf.zeros([1, classes]))
    with tf.GradientTape() as tape:
        loss = objective.metrics(objective.SIGMOID, tf.constant([[3]]), tf.ones([1, 1]), logits)["loss"]
    expected = np.full(classes, 0.5)  # p - y at p = 1/2
    expected[3] = -0.5
    np.testing.assert_allclose(tape.gradient(loss, logits)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_hits_look_at_the_k_best(k):
    labels = np.array([[0], [3], [5], [3]])
    ranks = [(row > row[label]).sum() for row, label in zip(LOGITS, labels[:, 0], strict=True)]
    expected = [float(rank < k) for rank in ranks]
    assert objective.hits(dense(labels, np.ones((4, 1))), LOGITS, k).numpy().tolist() == expected


def test_any_label_of_several_is_a_hit():
    best = LOGITS.argmax(1)
    labels = np.stack([(best + 1) % 6, best], 1)
    assert objective.hits(dense(labels, np.full((4, 2), 0.5)), LOGITS, 1).numpy().tolist() == [1.0] * 4


def test_sigmoid_keeps_the_weights_of_a_record_and_smooths_each_class():
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    truth = np.array([0, 0.5, 1, 0, 0, 0]) * 0.8 + 0.1
    expected = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(loss([[1, 2]] * 4, [[0.5, 3.0]] * 4, "sigmoid", 0.2), expected, rtol=1e-5)


def test_outputs_are_what_the_loss_takes_them_for():
    softmax, sigmoid = (objective.get(name).activation(LOGITS).numpy() for name in ("softmax", "sigmoid"))
    np.testing.assert_allclose(softmax, np.exp(log_softmax(LOGITS)), rtol=1e-5)
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-LOGITS)), rtol=1e-5)


def test_an_unknown_objective_names_those_there_are():
    with pytest.raises(ValueError, match="'hinge'; expected one of softmax, sigmoid"):
        objective.get("hinge")
