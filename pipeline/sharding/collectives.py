"""Sums over replicas, and rows that are gathered from them; all inside `strategy.run`.

Each replica has a shard number; shard s of a matrix of n rows over N replicas holds the rows from `s * ceil(n / N)` on,
with rows of zeros after the last.
"""

import functools
from collections.abc import Sequence

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from pipeline.sharding.slice_strategy import SliceStrategy

_MLIR_TYPES = {tf.float32: "f32", tf.bfloat16: "bf16"}


def can_shard(strategy: tf.distribute.Strategy) -> bool:
    """Whether `strategy` has the operations of this module, and one process that can reach each replica's variables."""
    return isinstance(strategy, (tf.distribute.TPUStrategy, tf.distribute.MirroredStrategy, SliceStrategy))


def shard_rows(rows: int, replicas: int) -> int:
    """Rows of each shard."""
    return -(-rows // replicas)


def shard_number() -> tf.Tensor:
    """This replica's, int32 []: on a TPU XLA's number of the replica, by which it orders what it gathers."""
    if _uses_xla():
        return gen_xla_ops.xla_replica_id()
    return tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)


@functools.cache
def shard_numbers(strategy: tf.distribute.Strategy) -> list[int]:
    """The shard numbers of the strategy's replicas, in the order in which its variables hold their parts."""
    replicas = strategy.num_replicas_in_sync
    if not isinstance(strategy, tf.distribute.TPUStrategy):
        return list(range(replicas))

    @tf.function(autograph=False)
    def numbers():
        return strategy.run(shard_number)

    return [int(number) for number in strategy.experimental_local_results(numbers())]


def sums(vectors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The sums over replicas of float32 tensors of rank 1, in one all-reduce."""
    if not vectors:
        return []
    lengths = [vector.shape[0] for vector in vectors]
    return tf.split(_all_reduce(tf.concat(vectors, 0)), lengths)


def gather_rows(shard: tf.Tensor, rows: int) -> tf.Tensor:
    """The matrix [rows, columns] of which each replica gives its shard."""
    context = tf.distribute.get_replica_context()
    matrix = _xla_all_gather(shard) if _uses_xla() else context.all_gather(shard, axis=0)
    return matrix if matrix.shape[0] == rows else matrix[:rows]


def scatter_rows(matrix: tf.Tensor) -> tf.Tensor:
    """This replica's shard, float32, of the sum over replicas of `matrix` [rows, columns], added in float32."""
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    rows, columns = matrix.shape
    own = shard_rows(rows, replicas)
    if _uses_xla() and matrix.dtype != tf.float32:
        # XLA would convert before it brings the gradient into the order of rows, and move twice the bytes.
        (matrix,) = gen_xla_ops.xla_optimization_barrier([matrix])
    matrix = tf.cast(matrix, tf.float32)
    if own * replicas > rows:
        matrix = tf.pad(matrix, [[0, own * replicas - rows], [0, 0]])
    if _uses_xla():
        return gen_xla_ops.xla_reduce_scatter(
            input=matrix, group_assignment=[list(range(replicas))], scatter_dimension=0, reduce_op="Add"
        )
    return tf.slice(_all_reduce(matrix), [shard_number() * own, 0], [own, columns])


def _uses_xla() -> bool:
    return isinstance(tf.distribute.get_strategy(), (tf.distribute.TPUStrategy, SliceStrategy))


def _all_reduce(values: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def _xla_all_gather(shard: tf.Tensor) -> tf.Tensor:
    """XLA's all-gather, by a StableHLO module: TensorFlow's own for a TPU sums zeros, at twice the traffic."""
    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    rows, columns = shard.shape
    kind = _MLIR_TYPES[shard.dtype]
    before, after = f"tensor<{rows}x{columns}x{kind}>", f"tensor<{replicas * rows}x{columns}x{kind}>"
    groups = f"dense<[{list(range(replicas))}]> : tensor<1x{replicas}xi64>"
    module = (
        "module @all_gather attributes {mhlo.num_partitions = 1 : i32, mhlo.num_replicas = 1 : i32} {\n"
        f"  func.func public @main(%shard: {before}) -> {after} {{\n"
        '    %rows = "stablehlo.all_gather"(%shard) '
        f"{{replica_groups = {groups}, all_gather_dim = 0 : i64}} : ({before}) -> {after}\n"
        f"    return %rows : {after}\n  }}\n}}"
    )
    platform = "TPU" if isinstance(strategy, tf.distribute.TPUStrategy) else "CPU"
    (gathered,) = gen_xla_ops.xla_call_module(
        [shard], version=9, module=module, Sout=[[replicas * rows, columns]], Tout=[shard.dtype], platforms=[platform]
    )
    return gathered
