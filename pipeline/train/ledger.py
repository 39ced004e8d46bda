"""The ledger: what the model itself consumed, epoch by epoch, to be compared with the manifest.

The training step adds up the number of examples and the sum of their record ids modulo 2**64, an order-independent
checksum. Both stand in the checkpoint, so the proof survives any interruption.
"""

import dataclasses

import numpy as np
import tensorflow as tf

_LIMBS = 4  # a 64-bit id travels as four 16-bit limbs: their 32-bit sums over a batch cannot overflow


class LedgerError(RuntimeError):
    """An epoch did not consume each example exactly once."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One epoch: examples consumed and expected, and whether each was consumed exactly once.

    A partial last epoch is compared by count alone: the manifest's checksum is that of a whole epoch. It has none of a
    subset, whose epochs are compared with the first.
    """

    epoch: int
    examples: int
    expected: int
    exactly_once: bool

    def as_dict(self) -> dict:
        """The entry as `run.json` holds it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        if self.exactly_once:
            return f"epoch {self.epoch}: exactly once"
        difference = self.examples - self.expected
        how = f"{abs(difference)} too {'many' if difference > 0 else 'few'}" if difference else "checksum differs"
        return f"epoch {self.epoch}: NOT exactly once ({self.examples} of {self.expected} examples, {how})"


class Ledger(tf.Module):
    """Counts and checksums of `epochs` epochs; create it in the strategy's scope."""

    def __init__(self, epochs: int):
        super().__init__()
        options = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.examples = tf.Variable(tf.zeros([epochs], tf.int64), name="ledger/examples", **options)
        self.checksum = tf.Variable(tf.zeros([epochs], tf.int64), name="ledger/checksum", **options)

    def add(self, ids: tf.Tensor, epochs: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Adds a replica's examples; call it in replica context, once a step.

        Args:
          ids: int64 [batch], record ids.
          epochs: int32 [batch], the epoch of each slot.
          weights: float32 [batch], 0 in empty slots.

        Returns:
          The number of examples in the global batch, int32 [].
        """
        filled = tf.cast(weights > 0, tf.int32)
        shifts = tf.range(_LIMBS, dtype=tf.int64) * 16
        limbs = tf.cast(tf.bitwise.bitwise_and(tf.bitwise.right_shift(ids[:, None], shifts), 0xFFFF), tf.int32)
        columns = tf.concat([tf.ones_like(limbs[:, :1]), limbs], 1) * filled[:, None]
        of_epoch = tf.cast(epochs[:, None] == tf.range(self.examples.shape[0]), tf.int32)
        sums = tf.reduce_sum(of_epoch[:, :, None] * columns[:, None, :], 0)
        sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
        self.examples.assign_add(tf.cast(sums[:, 0], tf.int64))
        self.checksum.assign_add(tf.reduce_sum(tf.bitwise.left_shift(tf.cast(sums[:, 1:], tf.int64), shifts), 1))
        return tf.reduce_sum(sums[:, 0])

    def entries(self, expected: list[int], epoch_examples: int, id_checksum: str | None) -> list[Entry]:
        """The epochs so far begun.

        Args:
          expected: examples to be consumed in each epoch of the budget.
          epoch_examples: examples of a whole epoch.
          id_checksum: the manifest's checksum of them, 16 hexadecimal digits; None of a subset.
        """
        rows = list(
            zip(expected, self.examples.numpy().tolist(), self.checksum.numpy().astype(np.uint64).tolist(), strict=True)
        )
        whole = rows[0][2] if id_checksum is None else int(id_checksum, 16)
        return [
            Entry(
                epoch,
                examples,
                count,
                examples == count and (count < epoch_examples or checksum == whole),
            )
            for epoch, (count, examples, checksum) in enumerate(rows)
            if examples
        ]
