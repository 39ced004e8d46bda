"""Gradients of a batch that does not fit at once: the sum over its parts, one after the other."""

from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

Sums = TypeVar("Sums")


def sum_over_parts(
    compute: Callable[[dict[str, tf.Tensor], tf.Tensor], Sums],
    batch: dict[str, tf.Tensor],
    seed: tf.Tensor,
    parts: int,
    zeros: Sums,
) -> Sums:
    """Returns the sum of `compute(part, seed of the part)` over `parts` equal parts of the batch.

    Args:
      compute: maps a part and its seed to tensors in any structure.
      batch: tensors [batch, ...]; each part takes the next `batch / parts` examples.
      seed: int32 [2]; a single part gets it unchanged.
      parts: how many; a divisor of the batch.
      zeros: where the sums start, in the structure and shapes of what `compute` returns, and of the dtypes in which to
        add; a single part's tensors keep their own.
    """
    if parts == 1:
        return compute(batch, seed)
    split = {name: tf.reshape(v, [parts, v.shape[0] // parts, *v.shape[1:]]) for name, v in batch.items()}

    def add(index, sums):
        part = {name: values[index] for name, values in split.items()}
        more = compute(part, tf.random.experimental.stateless_fold_in(seed, index))
        return index + 1, tf.nest.map_structure(lambda total, value: total + tf.cast(value, total.dtype), sums, more)

    # One part at a time is the point: iterations that overlap would hold the memory of several.
    return tf.while_loop(lambda index, _: index < parts, add, (0, zeros), parallel_iterations=1)[1]
