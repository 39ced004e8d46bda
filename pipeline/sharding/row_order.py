"""The order of a kernel's values in the matrix of which each replica holds rows.

Kernels of grouped convolutions have the order in which XLA computes their gradients, (height, width, group, input
channel), so that a step copies none of them. All others keep their own.
"""

import dataclasses
import math

import tensorflow as tf

from pipeline.model import tpu_layers
from pipeline.sharding import collectives


@dataclasses.dataclass(frozen=True)
class RowOrder:
    """The order of the values of a kernel of `shape`, [..., units]."""

    shape: tuple[int, ...]

    @property
    def groups(self) -> int:
        """Of a grouped convolution whose groups fill a TPU's registers, told by the shape alone; else 1.

        A kernel of such a shape that is not grouped works in either order.
        """
        *places, inputs, units = self.shape
        width = tpu_layers.GROUP_WIDTH
        may_be_grouped = len(places) == 2 and math.prod(places) > 1 and inputs == width and units % width == 0
        return units // width if may_be_grouped else 1

    @property
    def fan_in(self) -> int:
        """Values of an output unit."""
        return math.prod(self.shape[:-1])

    @property
    def rows(self) -> int:
        """Of the matrix: `fan_in` for each group."""
        return self.fan_in * self.groups

    @property
    def columns(self) -> int:
        """Of the matrix: each holds one output unit of every group."""
        return self.shape[-1] // self.groups

    def matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """The kernel as [rows, columns]."""
        if self.groups > 1:
            kernel = tf.reshape(kernel, [*self.shape[:-1], self.groups, self.columns])
            kernel = tf.transpose(kernel, [0, 1, 3, 2, 4])
        return tf.reshape(kernel, [self.rows, self.columns])

    def kernel(self, matrix: tf.Tensor) -> tf.Tensor:
        """The inverse of `matrix`."""
        if self.groups > 1:
            height, width, inputs, _ = self.shape
            matrix = tf.reshape(matrix, [height, width, self.groups, inputs, self.columns])
            matrix = tf.transpose(matrix, [0, 1, 3, 2, 4])
        return tf.reshape(matrix, self.shape)

    def unit_sums(self, shard: tf.Tensor) -> tf.Tensor:
        """[units]: sums over the rows of this replica's shard; inside `strategy.run`."""
        if self.groups == 1:
            return tf.reduce_sum(shard, 0)
        of_groups = tf.where(self._is_of_group(shard.shape[0]), shard[:, tf.newaxis], 0.0)
        return tf.reshape(tf.reduce_sum(of_groups, 0), [-1])

    def by_row(self, units: tf.Tensor, rows: int) -> tf.Tensor:
        """A number of each output unit, [units], for this replica's shard of `rows` rows: what multiplies it."""
        if self.groups == 1:
            return units
        of_groups = tf.reshape(units, [self.groups, self.columns])
        return tf.reduce_sum(tf.where(self._is_of_group(rows), of_groups, 0.0), 1)

    def _is_of_group(self, rows: int) -> tf.Tensor:
        """bool [rows of the shard, groups, 1]."""
        numbers = collectives.shard_number() * rows + tf.range(rows)
        group = numbers // self.shape[-2] % self.groups
        return (group[:, tf.newaxis] == tf.range(self.groups))[:, :, tf.newaxis]
