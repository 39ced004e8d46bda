"""The implementation for a TPU against the plain one: same variables, same function."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from pipeline.model import layers, tpu_layers, variants, weights
from pipeline.train import optimizer
from tests import golden_model, implementations
from tests.implementations import difference, loss_gradients

# Blocks of every kind: one group, several groups of 128 channels, with and without stride; both families' stems.
WIDE = variants.Variant((384, 512, 768, 768), (1, 2, 1, 1), 0.0, 128, (16, 32, 64, 192))


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setitem(variants.VARIANTS, "wide", WIDE)


pair = functools.partial(implementations.pair, implementation="tpu")


@pytest.mark.parametrize(
    ("variant", "size"),
    [("nano", (64, 64)), ("nano", (48, 80)), ("wide", (64, 64)), ("wide", (60, 60)), ("nano", (35, 50))],
)
def test_logits_and_gradients_equal_the_plain_ones(wide, variant, size):
    settings = {"dropout_rate": 0.2, "stochastic_depth_rate": 0.3}
    _assert_equal(pair(variant, **settings), tf.random.stateless_normal([4, *size, 3], [1, 2]))


def test_recomputed_stages_equal_the_plain_ones(wide):
    settings = {"dropout_rate": 0.2, "stochastic_depth_rate": 0.3, "recompute_stages": (0, 1, 2)}
    _assert_equal(pair("wide", **settings), tf.random.stateless_normal([2, 64, 64, 3], [1, 2]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "size"), [("F0", 192), ("F0", 480), ("F0+", 256), ("F1", 224), ("F3", 192), ("F3+", 192)]
)
def test_variants_of_the_family_equal_the_plain_ones_at_their_size(variant, size):
    _assert_equal(pair(variant, dropout_rate=0.2), tf.random.stateless_normal([1, size, size, 3], [1, 2]))


def _assert_equal(models, images):
    (plain, plain_gradients), (logits, gradients) = (loss_gradients(model, images) for model in models)
    np.testing.assert_allclose(logits, plain, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients, plain_gradients, strict=True):
        assert difference([ours], [theirs]) < 1e-4


@pytest.mark.parametrize("size", [192, 224, 256, 320, 384, 416, 480])
def test_the_stem_equals_the_plain_one_at_every_resolution_of_the_family(size):
    specs = variants.stem(variants.get("F0"))
    plain, ours = [layers.WSConv(spec) for spec in specs], [tpu_layers.WSConv(spec) for spec in specs]
    for number, (conv, other) in enumerate(zip(plain, ours, strict=True)):
        conv.bias.assign(tf.random.stateless_normal(conv.bias.shape, [number, 3]))
        for variable, value in zip(other.variables, conv.variables, strict=True):
            variable.assign(value)
    images = tf.random.stateless_normal([1, size, size, 3], [1, 2])
    np.testing.assert_allclose(tpu_layers.stem(ours, images), layers.stem(plain, images), rtol=1e-4, atol=1e-4)


def test_golden_logits_and_gradients_of_f0():
    description, values = golden_model.load()
    model = golden_model.f0("tpu")
    images, labels = golden_model.batch(description)
    np.testing.assert_allclose(model(images), values["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.features(images), values["pool"], rtol=1e-4, atol=1e-4)

    targets = tf.one_hot(labels, description["classes"]) * 0.9 + 0.1 / description["classes"]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, model(images, training=True)))
    variables = weights.named(model)
    theirs = weights.their_names(variables, "deepmind")
    gradients = zip(variables, tape.gradient(loss, list(variables.values())), strict=True)
    by_key = {theirs[name]: np.linalg.norm(gradient) for name, gradient in gradients}
    np.testing.assert_allclose(loss, values["losses"][0], rtol=1e-5)
    norms = [by_key[key] for key in golden_model.keys(description)]
    np.testing.assert_allclose(norms, values["grad_l2"], rtol=1e-3)


@pytest.mark.parametrize("variant", ["nano", pytest.param("wide", marks=pytest.mark.slow)])
def test_bfloat16_is_as_near_to_float32_as_the_plain_one(wide, variant):
    images = tf.random.stateless_normal([8, 64, 64, 3], [1, 2])
    exact = loss_gradients(pair(variant, dropout_rate=0.0)[0], images)
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        plain, ours = (loss_gradients(model, images) for model in pair(variant, dropout_rate=0.0))
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert difference([ours[0]], [exact[0]]) < 1.2 * difference([plain[0]], [exact[0]])
    assert difference(ours[1], exact[1]) < 1.2 * difference(plain[1], exact[1])


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "steps"), [("nano", 14), ("wide", 24)])
def test_a_short_training_run_ends_within_the_rounding_of_the_plain_one(wide, variant, steps):
    labels = tf.range(16) % 10
    colours = tf.gather(2 * tf.random.stateless_normal([10, 1, 1, 3], [3, 4]), labels)
    images = colours + tf.random.stateless_normal([16, 32, 32, 3], [1, 2])

    def train(model, policy):
        tf_keras.mixed_precision.set_global_policy(policy)
        sgd = optimizer.SGD(0.02, clipping=0.5)
        sgd.build(model.trainable_variables)

        def step():  # as a `tf.function` it would take longer to trace than to run
            with tf.GradientTape() as tape:
                logits = model(images, training=True, seed=tf.constant([1, 2]))
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            gradients = tape.gradient(loss, model.trainable_variables)
            sgd.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss

        return np.array([step().numpy() for _ in range(steps)])

    losses = {}
    try:
        for policy in ("float32", "mixed_bfloat16"):
            tf_keras.mixed_precision.set_global_policy(policy)
            plain, ours = pair(variant, dropout_rate=0.0)
            losses[policy] = train(plain, policy), train(ours, policy)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    exact, exact_ours = losses["float32"]
    assert exact[-1] < 0.9 * exact[0]
    np.testing.assert_allclose(exact_ours, exact, rtol=1e-3)
    rounding = [np.abs(values - exact).max() for values in losses["mixed_bfloat16"]]
    assert rounding[1] < 2 * rounding[0]


def test_standardization_keeps_its_digits_where_the_mean_is_far_above_the_deviation():
    kernel = tf.constant(np.random.default_rng(0).normal(100, 0.1, (3, 3, 16, 4)), tf.float32)
    gain = tf.constant([1.0, 2.0, 0.5, -1.0])
    ours = tpu_layers.standardize(kernel, gain, tf.constant(1.0))
    double = kernel.numpy().astype(np.float64)
    deviation = double.std((0, 1, 2)) * np.sqrt(9 * 16)
    np.testing.assert_allclose(ours, (double - double.mean((0, 1, 2))) / deviation * gain.numpy(), atol=1e-4)


def test_a_constant_kernel_has_the_plain_gradient():
    kernel, gain = tf.fill([3, 3, 8, 2], 0.25) + 1e-5 * tf.random.stateless_normal([3, 3, 8, 2], [1, 2]), tf.ones([2])
    upstream = tf.random.stateless_normal([3, 3, 8, 2], [3, 4])
    gradients = []
    for function in (layers.standardize, lambda k, g: tpu_layers.standardize(k, g, tf.constant(1.0))):
        with tf.GradientTape() as tape:
            tape.watch([kernel, gain])
            result = function(kernel, gain)
        gradients.append(tape.gradient(result, [kernel, gain], output_gradients=upstream))
    for plain, ours in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-3)
