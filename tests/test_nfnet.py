import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from pipeline.model import layers, nfnet, variants, weights
from tests import golden_model, parameter_count


@pytest.fixture(scope="module")
def golden():
    """The golden description and values, and F0 with the golden weights; tests must not change them."""
    return *golden_model.load(), golden_model.f0()


def test_logits_and_pool_equal_the_authors(golden):
    description, values, model = golden
    images, _ = golden_model.batch(description)
    np.testing.assert_allclose(model(images), values["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.features(images), values["pool"], rtol=1e-4, atol=1e-4)


def test_first_loss_and_gradients_equal_the_authors(golden):
    description, values, model = golden
    images, labels = golden_model.batch(description)
    targets = tf.one_hot(labels, description["classes"]) * 0.9 + 0.1 / description["classes"]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, model(images, training=True)))
    variables = weights.named(model)
    gradients = dict(zip(variables, tape.gradient(loss, list(variables.values())), strict=True))
    theirs = weights.their_names(variables, "deepmind")
    by_key = {theirs[name]: gradient.numpy() for name, gradient in gradients.items()}
    keys = golden_model.keys(description)
    np.testing.assert_allclose(loss, values["losses"][0], rtol=1e-5)
    norms = np.array([np.linalg.norm(by_key[key]) for key in keys])
    np.testing.assert_allclose(norms, values["grad_l2"], rtol=1e-3)
    sums = np.array([by_key[key].sum() for key in keys])
    np.testing.assert_array_less(np.abs(sums - values["grad_sum"]), 1e-3 * values["grad_l2"] + 1e-4)


def test_activation_keeps_the_variance_of_a_normal_input():
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    assert np.var(layers.activation(tf.constant(x))) == pytest.approx(1, abs=0.01)


def test_standardized_kernels_have_no_mean_and_gain_over_fan_in_variance():
    rng = np.random.default_rng(0)
    kernel = rng.normal(3, 0.2, (3, 3, 8, 5)).astype(np.float32)
    gain = np.array([1, 2, -1, 0.5, 0], np.float32)
    out = layers.standardize(tf.constant(kernel), tf.constant(gain)).numpy()
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(out.std((0, 1, 2)), np.abs(gain) / np.sqrt(72), rtol=1e-4)
    flat = layers.standardize(tf.ones([1, 1, 8, 2]), tf.ones([2]))
    assert np.all(np.isfinite(flat)), "a constant kernel must not divide by zero"


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (75, 51)])
def test_any_resolution_gives_float32_logits(size):
    logits = nfnet.create("nano", 7)(tf.random.stateless_normal([2, *size, 3], [1, 2]))
    assert logits.shape == (2, 7)
    assert logits.dtype == tf.float32


@pytest.mark.slow
@pytest.mark.parametrize("variant", variants.VARIANTS)
def test_every_variant_gives_logits_in_training(variant):
    with tf.Graph().as_default():  # where variables take no memory
        model = nfnet.create(variant, 7, stochastic_depth_rate=0.1)
        logits = model(tf.zeros([2, 64, 64, 3]), training=True)
    assert logits.shape == (2, 7)
    assert parameter_count.parameters(variant, 7) == sum(
        each.shape.num_elements() for each in model.trainable_variables
    )


def test_feature_maps_have_the_widths_and_strides_of_the_stages():
    maps = nfnet.create("nano", 7).trunk(tf.zeros([1, 64, 64, 3]))
    *first, last = variants.get("nano").widths
    assert [tuple(each.shape[1:]) for each in maps] == [
        (64 // stride, 64 // stride, width) for stride, width in zip((4, 8, 16, 32), (*first, 2 * last), strict=True)
    ]


def test_variables_stand_in_the_order_and_under_the_path_of_the_network():
    names = list(weights.named(nfnet.create("nano", 7)))
    assert names[:3] == ["stem/conv0/kernel", "stem/conv0/gain", "stem/conv0/bias"]
    assert names[-2:] == ["linear/kernel", "linear/bias"]
    assert "stage2/block1/squeeze_excite/fc0/kernel" in names
    assert len(names) == len(set(names))


def test_noise_is_a_function_of_the_seed():
    model = _noisy()
    images = tf.random.stateless_normal([8, 32, 32, 3], [1, 2])
    first = model(images, training=True, seed=tf.constant([1, 2]))
    np.testing.assert_array_equal(first, model(images, training=True, seed=tf.constant([1, 2])))
    assert not np.allclose(first, model(images, training=True, seed=tf.constant([1, 3])))
    assert not np.allclose(first, model(images, training=False))


def test_without_a_seed_each_training_call_draws_its_own():
    model = _noisy()
    images = tf.random.stateless_normal([8, 32, 32, 3], [1, 2])
    step = tf.function(lambda: model(images, training=True), autograph=False)
    assert not np.allclose(step(), step())


def test_evaluation_ignores_noise_rates():
    images = tf.random.stateless_normal([2, 32, 32, 3], [1, 2])
    noisy, plain = _noisy(), nfnet.create("nano", 7)
    for ours, theirs in zip(noisy.variables, plain.variables, strict=True):
        theirs.assign(ours)
    np.testing.assert_array_equal(noisy(images), plain(images))


def test_stochastic_depth_drops_whole_examples_without_rescaling():
    branch = tf.ones([10_000, 2, 2, 3])
    out = layers.stochastic_depth(branch, 0.25, tf.constant([3, 4])).numpy()
    assert set(np.unique(out)) == {0.0, 1.0}
    np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1, :1, :1], out.shape))
    assert out[:, 0, 0, 0].mean() == pytest.approx(0.75, abs=0.02)


def test_stochastic_depth_grows_linearly_with_the_block():
    fractions = [block.depth_fraction for block in variants.blocks(variants.get("F0"))]
    np.testing.assert_allclose(fractions, np.arange(12) / 12)


def test_recomputed_stages_give_the_same_gradients():
    images = tf.random.stateless_normal([4, 32, 32, 3], [1, 2])
    plain = nfnet.create("nano", 7, dropout_rate=0.2, stochastic_depth_rate=0.5)
    thrifty = nfnet.create("nano", 7, dropout_rate=0.2, stochastic_depth_rate=0.5, recompute_stages=(0, 2, 3))
    _set_skip_gains(plain)
    for ours, theirs in zip(plain.variables, thrifty.variables, strict=True):
        theirs.assign(ours)
    for ours, theirs in zip(_gradients(plain, images), _gradients(thrifty, images), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    counts = []
    for model in (plain, thrifty):
        traced = tf.function(functools.partial(_gradients, model), autograph=False)
        graph = traced.get_concrete_function(images).graph
        counts.append(sum(operation.type == "Conv2D" for operation in graph.get_operations()))
    recomputed = sum(len(b.convs) + bool(b.shortcut) for b in variants.blocks(variants.get("nano")) if b.stage != 1)
    assert counts[1] - counts[0] == recomputed


def test_mixed_bfloat16_keeps_float32_weights_and_logits():
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        mixed = nfnet.create("nano", 7)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    plain = nfnet.create("nano", 7)
    _set_skip_gains(plain)
    for ours, theirs in zip(plain.variables, mixed.variables, strict=True):
        assert theirs.dtype == tf.float32
        theirs.assign(ours)
    images = tf.random.stateless_normal([4, 32, 32, 3], [1, 2])
    assert mixed.trunk(images)[-1].dtype == tf.bfloat16
    assert mixed(images).dtype == tf.float32
    np.testing.assert_allclose(mixed(images), plain(images), atol=0.02 * float(tf.norm(plain(images))) + 1e-3)
    for gradient in _gradients(mixed, images):
        assert gradient.dtype == tf.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "F9"}, "Unknown variant 'F9'"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0"),
        ({"stochastic_depth_rate": -0.1}, "stochastic_depth_rate is -0.1"),
        ({"recompute_stages": (4,)}, r"recompute_stages names \[4\]"),
        ({"implementation": "quick"}, r"'quick'.*auto, plain, tpu, cpu"),
        ({"target_device": "npu"}, r"'npu'.*tpu, gpu, cpu, any"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        nfnet.create(**{"variant": "nano", "num_classes": 7, **arguments})


@pytest.mark.parametrize(
    ("implementation", "target_device", "chosen"),
    [
        ("auto", None, "plain"),
        ("auto", "tpu", "tpu"),
        ("auto", "cpu", "cpu"),
        ("auto", "gpu", "plain"),
        ("auto", "any", "plain"),
        ("cpu", None, "cpu"),
        ("plain", "tpu", "plain"),
        ("cpu", "any", "plain"),
    ],
)
def test_the_target_device_decides_where_gin_does_not_and_exports_are_always_plain(
    implementation, target_device, chosen
):
    assert nfnet.choose_implementation(implementation, target_device) == chosen


def _noisy():
    model = nfnet.create("nano", 7, dropout_rate=0.3, stochastic_depth_rate=0.5)
    _set_skip_gains(model)
    return model


def _set_skip_gains(model):
    # At their initial 0 no branch would show in the output.
    for name, variable in weights.named(model).items():
        if name.endswith("skip_gain"):
            variable.assign(0.7)


def _gradients(model, images):
    with tf.GradientTape() as tape:
        logits = model(images, training=True, seed=tf.constant([5, 6]))
        loss = tf.reduce_sum(logits**2)
    return tape.gradient(loss, model.trainable_variables)
