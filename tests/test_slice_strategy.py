"""The program of one replica of a slice: its collectives, in XLA's text and as XLA computes them."""

import importlib.util
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from pipeline.sharding.slice_strategy import SliceStrategy
from tests import replicas

needs_jax = pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="takes the packages of requirements-tpu.txt")


def program(strategy: SliceStrategy, function, *arguments) -> str:
    """HLO of `function`, run by `strategy` on tensors."""
    compiled = tf.function(lambda *tensors: strategy.run(function, args=tensors), jit_compile=True, autograph=False)
    return compiled.experimental_get_compiler_ir(*arguments)(stage="hlo")


def all_reduces(text: str) -> list[str]:
    """Type of the result and groups of each all-reduce, in order of their types."""
    return sorted(re.findall(r"= (\w+\[[\d,]*\])\S* all-reduce\(.*?replica_groups=(\S+),", text))


@pytest.mark.parametrize("count", [2, 3, 16])
def test_all_reduce_of_a_nest(count):
    strategy = SliceStrategy(count)

    def sums(x):
        context = tf.distribute.get_replica_context()
        return context.all_reduce("SUM", {"x": x, "more": [tf.cast(x, tf.int32), tf.cast(x[:2], tf.bfloat16)]})

    assert strategy.num_replicas_in_sync == count
    groups = f"{{{{{','.join(map(str, range(count)))}}}}}"
    text = program(strategy, sums, tf.zeros([5]))
    assert all_reduces(text) == [(dtype, groups) for dtype in ("bf16[2]", "f32[5]", "s32[5]")]


def test_each_replica_has_its_number():
    text = program(SliceStrategy(4), lambda: tf.distribute.get_replica_context().replica_id_in_sync_group)
    assert " replica-id()" in text


def test_the_gradient_of_a_sum_over_replicas_is_another():
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.distribute.get_replica_context().all_reduce("SUM", x**2)
        return tape.gradient(total, x)

    assert len(all_reduces(program(SliceStrategy(4), step, tf.zeros([5])))) == 2


def test_an_optimizer_sums_each_gradient_and_updates_this_replicas_variables():
    strategy = SliceStrategy(4)
    with strategy.scope():
        weights = [tf.Variable(tf.ones([3, 2])), tf.Variable(tf.ones([2]))]
        optimizer = tf_keras.optimizers.SGD(0.1, momentum=0.9, jit_compile=False)
        optimizer.build(weights)

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((x @ weights[0] + weights[1]) ** 2)
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    text = program(strategy, step, tf.zeros([4, 3]))
    assert [dtype for dtype, _ in all_reduces(text)] == ["f32[2]", "f32[3,2]"]


@needs_jax
def test_four_replicas_compute_what_numpy_does():
    """Each gradient is summed over replicas, whose weights stay equal; each adds its own number to its result."""
    strategy, generator = SliceStrategy(4), np.random.default_rng(0)
    start = [generator.normal(size=shape).astype(np.float32) for shape in ([3, 2], [2])]
    with strategy.scope():
        weights = [tf.Variable(value) for value in start]
        optimizer = tf_keras.optimizers.SGD(0.1, momentum=0.9, jit_compile=False)
        optimizer.build(weights)

    def step(x):
        context = tf.distribute.get_replica_context()
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((x @ weights[0] + weights[1]) ** 2)
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        numbered = tf.cast(context.replica_id_in_sync_group, tf.float32) + tf.reduce_sum(x)
        mean, count = context.all_reduce("MEAN", numbered), context.all_reduce("SUM", tf.constant(1))
        return mean, count, [weight.read_value() for weight in weights]

    x = generator.normal(size=[4, 5, 3]).astype(np.float32)
    compiled = tf.function(lambda x: strategy.run(step, args=(x,)), jit_compile=True, autograph=False)
    concrete = compiled.get_concrete_function(tf.constant(x[0]))
    values = {id(variable.handle): variable.numpy() for variable in concrete.variables}
    state = [np.stack([values[id(captured)]] * 4) for captured in concrete.captured_inputs]
    hlo = compiled.experimental_get_compiler_ir(tf.constant(x[0]))(stage="hlo_serialized")
    mean, count, *updated = replicas.run(hlo, [x, *state])[:4]

    examples = x.reshape(20, 3)
    error = 2 * (examples @ start[0] + start[1])
    for result, value, gradient in zip(updated, start, (examples.T @ error, error.sum(0)), strict=True):
        np.testing.assert_allclose(result, [value - 0.1 * gradient] * 4, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, [(0 + 1 + 2 + 3 + x.sum()) / 4] * 4, rtol=1e-5)
    np.testing.assert_array_equal(count, [4] * 4)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="slice of 0 replicas"):
        SliceStrategy(0)
    gather = lambda x: tf.distribute.get_replica_context().all_gather(x, axis=0)  # noqa: E731
    with pytest.raises(NotImplementedError, match="all_gather"):
        program(SliceStrategy(4), gather, tf.zeros([2]))
