"""The implementation for a CPU against the plain one: same variables, same function."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from pipeline.model import cpu_layers, layers, nfnet, variants
from pipeline.train.state import create_state
from tests import implementations, tiny_runs
from tests.implementations import difference, loss_gradients

# One block with a transition and a stride, one with neither; two groups.
SMALL = variants.Variant((32, 48, 48, 48), (1, 2, 1, 1), 0.0, 16, (16, 16, 32, 32))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(variants.VARIANTS, "small", SMALL)


pair = functools.partial(implementations.pair, "small", "cpu")
traced_loss_gradients = tf.function(loss_gradients, autograph=False)  # as in a training step


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((35, 50), {"stochastic_depth_rate": 0.5, "recompute_stages": (1, 2)}),
        pytest.param((48, 80), {"stochastic_depth_rate": 0.5}, marks=pytest.mark.slow),
        pytest.param((35, 50), {"recompute_stages": (1, 2)}, marks=pytest.mark.slow),
    ],
)
def test_logits_and_gradients_equal_the_plain_ones(size, settings):
    images = tf.random.stateless_normal([4, *size, 3], [1, 2])
    plain, ours = pair(**settings)
    plain, plain_gradients = loss_gradients(plain, images)
    logits, gradients = traced_loss_gradients(ours, images)
    np.testing.assert_allclose(logits, plain, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients, plain_gradients, strict=True):
        assert difference([ours], [theirs]) < 2e-5


@pytest.mark.slow
def test_bfloat16_is_as_near_to_float32_as_the_plain_one(request):
    images = tf.random.stateless_normal([4, 64, 64, 3], [1, 2])
    exact = loss_gradients(pair()[0], images)
    request.addfinalizer(lambda: tf_keras.mixed_precision.set_global_policy("float32"))
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    plain, ours = pair()
    plain, ours = loss_gradients(plain, images), traced_loss_gradients(ours, images)
    for of_plain, of_ours, truth in zip(plain, ours, exact, strict=True):
        error, error_of_plain = (_mean_difference(values, truth) for values in (of_ours, of_plain))
        assert 0 < error < 1.1 * error_of_plain


def _mean_difference(values, truth):
    """The mean over tensors of each one's difference."""
    pairs = zip(tf.nest.flatten(values), tf.nest.flatten(truth), strict=True)
    return np.mean([difference([ours], [theirs]) for ours, theirs in pairs])


def test_batch_may_be_unknown_when_traced():
    plain, ours = pair()
    call = tf.function(ours, input_signature=[tf.TensorSpec([None, 32, 32, 3])], autograph=False)
    for batch in (1, 3):
        images = tf.random.stateless_normal([batch, 32, 32, 3], [batch, 2])
        np.testing.assert_allclose(call(images), plain(images), rtol=1e-4, atol=1e-5)


def test_long_runs_on_a_cpu_take_it_and_what_is_evaluated_or_exported_does_not():
    run = tiny_runs.experiment("records", model=functools.partial(nfnet.create, "small"), epochs=10)
    chosen = {}
    for examples in (16 * 99, 16 * 100):  # in batches of 16: 990 and 1,000 steps
        for device in (None, "tpu"):
            models = create_state(run, 3, run.budget(examples), device)
            assert models.model.trunk.implementation == models.evaluated.trunk.implementation
            chosen[examples // 16 * 10, device] = models.model.trunk.implementation
    assert chosen == {(990, None): "plain", (1000, None): "cpu", (990, "tpu"): "tpu", (1000, "tpu"): "tpu"}
    told = dataclasses.replace(run, model=functools.partial(nfnet.create, "small", implementation="cpu"))
    assert create_state(told, 3, told.budget(16)).model.trunk.implementation == "cpu"
    assert told.create_model(3).trunk.implementation == "plain"


@pytest.mark.parametrize("shape", [(3, 3, 3, 16), (1, 1, 40, 8), (3, 3, 8, 24), (1, 1, 1, 4)])
def test_standardization_and_its_gradients_equal_the_plain_ones(shape):
    rng = np.random.default_rng(0)
    # The second channel is constant: its deviation is the floor, and so no function of the kernel.
    kernel = tf.constant(rng.normal(1.0, 0.3, shape) * (np.arange(shape[-1]) != 1), tf.float32)
    gain, upstream = (
        tf.constant(rng.normal(size=shape[-1:]), tf.float32),
        tf.constant(rng.normal(size=shape), tf.float32),
    )
    results = []
    for function in (layers.standardize, lambda kernel, gain: cpu_layers.standardize(kernel, gain, tf.float32)):
        with tf.GradientTape() as tape:
            tape.watch([kernel, gain])
            result = function(kernel, gain)
        results.append([result, *tape.gradient(result, [kernel, gain], upstream)])
    for ours, plain in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4 * float(tf.reduce_max(abs(plain))) + 1e-7)


def test_activation_takes_the_scale_into_its_pass():
    inputs = tf.linspace(-6.0, 6.0, 101)
    results = []
    for function in (lambda x: 0.7 * layers.activation(x), lambda x: cpu_layers.activation(x, 0.7)):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(inputs)
        results.append([outputs, tape.gradient(outputs, inputs)])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=5e-6)
