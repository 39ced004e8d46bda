"""The program of one replica of a slice: its collectives, as XLA's text shows them."""

import re

import pytest
import tensorflow as tf
import tf_keras

from pipeline.sharding.slice_strategy import SliceStrategy


def program(strategy: SliceStrategy, function, *arguments) -> str:
    """HLO of `function`, run by `strategy` on tensors."""
    compiled = tf.function(lambda *tensors: strategy.run(function, args=tensors), jit_compile=True, autograph=False)
    return compiled.experimental_get_compiler_ir(*arguments)(stage="hlo")


def all_reduces(text: str) -> list[str]:
    """Type of the result and groups of each all-reduce, in order of their types."""
    return sorted(re.findall(r"= (\w+\[[\d,]*\])\S* all-reduce\(.*?replica_groups=(\S+),", text))


@pytest.mark.parametrize("replicas", [2, 3, 16])
def test_all_reduce_of_a_nest(replicas):
    strategy = SliceStrategy(replicas)

    def sums(x):
        context = tf.distribute.get_replica_context()
        return context.all_reduce("SUM", {"x": x, "more": [tf.cast(x, tf.int32), tf.cast(x[:2], tf.bfloat16)]})

    assert strategy.num_replicas_in_sync == replicas
    groups = f"{{{{{','.join(map(str, range(replicas)))}}}}}"
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


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="slice of 0 replicas"):
        SliceStrategy(0)
    gather = lambda x: tf.distribute.get_replica_context().all_gather(x, axis=0)  # noqa: E731
    with pytest.raises(NotImplementedError, match="all_gather"):
        program(SliceStrategy(4), gather, tf.zeros([2]))
