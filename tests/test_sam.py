import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from pipeline.train import ema, optimizer, sam
from tests import tiny_runs

DATA = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
TARGETS = np.random.default_rng(1).normal(size=8).astype(np.float32)
START = np.array([0.5, -1.0, 2.0], np.float32)
RHO = 0.3


def _gradient(w, rows):
    """Of the share of `rows` in the mean of the squared errors, in NumPy."""
    x, y = DATA[rows].astype(np.float64), TARGETS[rows]
    return 2 * x.T @ (x @ w - y) / len(DATA)


def _sam_gradient(w, rows, direction):
    return _gradient(w + RHO * direction / np.linalg.norm(direction), rows)


def _replica_gradients(strategy, settings):
    """The gradient on each replica, and the variable."""
    with strategy.scope():
        w = tf.Variable(START, name="w")
    halves = np.split(np.arange(8), strategy.num_replicas_in_sync)
    rows = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(halves[context.replica_id_in_sync_group])
    )

    def replica(rows):
        def compute(_):
            with tf.GradientTape() as tape:
                errors = tf.linalg.matvec(tf.gather(DATA, rows), w) - tf.gather(TARGETS, rows)
                loss = tf.reduce_sum(errors**2) / len(DATA)
            return tape.gradient(loss, [w]), loss

        gradients, loss = settings.gradients(compute, [w])
        return gradients[0], loss

    gradients, losses = tf.function(lambda: strategy.run(replica, args=(rows,)))()
    results = strategy.experimental_local_results
    return [g.numpy() for g in results(gradients)], [loss.numpy() for loss in results(losses)], w, halves


@pytest.mark.parametrize("scope", sam.SCOPES)
def test_one_replica_gives_the_gradient_at_the_perturbed_weights(scope):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    (gradient,), (loss,), w, _ = _replica_gradients(strategy, sam.SAM(RHO, scope))
    rows = np.arange(8)
    np.testing.assert_allclose(gradient, _sam_gradient(START, rows, _gradient(START, rows)), rtol=1e-5)
    assert loss == pytest.approx(np.mean((DATA @ START - TARGETS) ** 2), rel=1e-5), "reported at the current weights"
    np.testing.assert_array_equal(w, START)


@pytest.mark.parametrize("scope", sam.SCOPES)
def test_replicas_perturb_by_their_own_or_by_the_global_gradient(two_replicas, scope):
    gradients, _, w, halves = _replica_gradients(two_replicas, sam.SAM(RHO, scope))
    for gradient, rows in zip(gradients, halves, strict=True):
        direction = _gradient(START, rows if scope == "replica" else np.arange(8))
        np.testing.assert_allclose(gradient, _sam_gradient(START, rows, direction), rtol=1e-4)
    for copy in two_replicas.experimental_local_results(w):
        np.testing.assert_array_equal(copy, START)


def test_it_composes_with_agc_ema_and_mixed_precision(two_replicas):
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        with two_replicas.scope():
            model = tiny_runs.TinyNet(4)
            averaged = ema.AveragedModel(model, tiny_runs.TinyNet(4), decay=0.9)
            sgd = optimizer.SGD(0.05, clipping=0.1)
            sgd.build(model.trainable_variables)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    images = tf.random.stateless_normal([8, 32, 32, 3], [1, 2])
    labels = tf.constant([0, 1, 2, 3, 0, 1, 2, 3])
    settings = sam.SAM(0.05)

    @tf.function
    def step():
        def replica():
            def compute(_):
                with tf.GradientTape() as tape:
                    logits = tf.cast(model(images, training=True, seed=tf.constant([1, 2])), tf.float32)
                    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
                    loss = tf.reduce_mean(losses) / 2
                return tape.gradient(loss, model.trainable_variables), loss

            gradients, loss = settings.gradients(compute, model.trainable_variables)
            sgd.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            averaged.update(sgd.iterations)
            return loss

        return two_replicas.reduce("SUM", two_replicas.run(replica), axis=None)

    losses = [float(step()) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    for variable in [*model.variables, *averaged.model.variables]:
        np.testing.assert_array_equal(*two_replicas.experimental_local_results(variable))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"rho": 0.0}, "SAM.rho is 0.0.*leave SAM out"), ({"scope": "all"}, "SAM.scope is 'all'")],
)
def test_settings_without_a_meaning_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sam.SAM(**arguments)
