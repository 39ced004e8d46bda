"""One replica of a TPU slice as a `tf.distribute.Strategy`: its step is traced with its collectives, without a TPU.

`TPUStrategy` lowers to XLA on a TPU alone. Under `SliceStrategy` the same code compiles on any machine to the program
that XLA would run on every replica. It is compiled for a slice and never run here.
"""

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.distribute import one_device_strategy


def all_reduce(value: tf.Tensor, replicas: int, reduction: str = "Add") -> tf.Tensor:
    """XLA's all-reduce of `value` over all of `replicas`; inside a function that XLA compiles.

    Args:
      value: float32, bfloat16, float16, int32 or uint32, of the same shape on each replica.
      replicas: how many there are.
      reduction: 'Add', 'Max' or 'Min'.
    """
    return gen_xla_ops.xla_all_reduce(
        input=value,
        group_assignment=[list(range(replicas))],
        reduce_op=reduction,
        mode="CrossReplica",
    )


class SliceStrategy(tf.distribute.Strategy):
    """Traces one replica of `replicas`.

    Variables are this replica's own. `ReplicaContext.all_reduce` and `replica_id_in_sync_group` become operations of
    XLA, so that `run` works only inside of `tf.function(jit_compile=True)`.

    Raises:
      ValueError: there is no replica.
    """

    def __init__(self, replicas: int):
        if replicas < 1:
            raise ValueError(f"A slice of {replicas} replicas: expected 1 or more.")
        super().__init__(_Extended(self, replicas))


class _Extended(one_device_strategy.OneDeviceExtended):
    """Private base: TensorFlow has no public one from which a strategy can be made."""

    def __init__(self, strategy: SliceStrategy, replicas: int):
        super().__init__(strategy, "/cpu:0")
        self._replicas = replicas

    @property
    def _num_replicas_in_sync(self) -> int:
        return self._replicas

    def _use_merge_call(self) -> bool:
        return False

    def _call_for_each_replica(self, fn, args, kwargs):
        with tf.device(self._device), _ReplicaContext(self._container_strategy()):
            return fn(*args, **kwargs)

    def _reduce_to(self, reduce_op, value, destinations, options):
        del destinations, options  # every replica gets the sum
        total = all_reduce(value, self._replicas)
        return total if reduce_op == tf.distribute.ReduceOp.SUM else total / tf.cast(self._replicas, total.dtype)

    def _gather_to_implementation(self, value, destinations, axis, options):
        raise NotImplementedError("SliceStrategy has no all_gather: under TPUStrategy it is a masked all_reduce.")


class _ReplicaContext(tf.distribute.ReplicaContext):
    """That of the replica whose program it is: XLA gives each its number."""

    def __init__(self, strategy: SliceStrategy):
        super().__init__(strategy, replica_id_in_sync_group=0)

    @property
    def replica_id_in_sync_group(self) -> tf.Tensor:
        return gen_xla_ops.xla_replica_id()
