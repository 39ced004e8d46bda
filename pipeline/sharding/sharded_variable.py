"""A variable of which each replica keeps a part of the rows, and which is whole to everyone outside of a step."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from pipeline.model import gathered, weights
from pipeline.sharding import collectives
from pipeline.sharding.row_order import RowOrder
from pipeline.sharding.slice_strategy import SliceStrategy

#: Kernels of fewer values stay whole on each replica: what a collective costs is more than what they cost.
MIN_VALUES = 1 << 14
_CHECKPOINT_KEY = "VARIABLE_VALUE"  # TensorFlow's own for a variable's value


class RowShardedVariable(tf.Variable, tf.__internal__.types.Tensor):
    """A float32 variable whose values, in rows of a matrix, are shared out over replicas.

    Read as a tensor inside `strategy.run` it is what `gathered` holds for it, else gathered from all replicas;
    outside it is put together from their parts. A checkpoint holds it whole, as it does any other variable.

    Attributes:
      shard: float32 [rows of a shard, columns], this replica's part; inside `strategy.run` alone.
      order: how the whole's values lie in the matrix.
    """

    def __init__(self, shard: tf.Variable, trainable: bool = True, *, shape: Sequence[int]):
        """`shard` has a part on each replica, made with `per_replica`; `shape` is that of the whole."""
        self.shard = shard
        self._whole_shape, self._is_trainable = tf.TensorShape(shape), trainable
        self.order = RowOrder(tuple(self._whole_shape))

    @property
    def name(self) -> str:
        """Of the whole."""
        return self.shard.name

    @property
    def shape(self) -> tf.TensorShape:
        """Of the whole."""
        return self._whole_shape

    @property
    def dtype(self) -> tf.DType:
        """float32."""
        return self.shard.dtype

    @property
    def graph(self) -> tf.Graph:
        """That of the shard; raises AttributeError in eager mode, as of any variable."""
        return self.shard.graph

    @property
    def trainable(self) -> bool:
        """Whether optimisers may change it."""
        return self._is_trainable

    @property
    def parts(self) -> list[tf.Variable]:
        """Each replica's part, in the strategy's order of replicas."""
        return list(getattr(self.shard, "values", (self.shard,)))

    def value(self) -> tf.Tensor:
        """The whole."""
        if (given := gathered.get(self.name)) is not None:
            return given
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:  # of no replica, or outside of any strategy
            return self._assembled()
        return self.gathered(tf.convert_to_tensor(self.shard))

    def gathered(self, shard: tf.Tensor) -> tf.Tensor:
        """The tensor of the whole's shape of which each replica gives its `shard`; inside `strategy.run`."""
        return self.order.kernel(collectives.gather_rows(shard, self.order.rows))

    def read_value(self) -> tf.Tensor:
        """The whole."""
        return self.value()

    def numpy(self) -> np.ndarray:
        """The whole, outside of `strategy.run`."""
        return self._assembled().numpy()

    def assign(self, value: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True) -> None:
        """Gives each replica its part of `value`, an array or another variable shared out as this one is."""
        if isinstance(value, RowShardedVariable):
            parts = [part.read_value() for part in value.parts]
        else:
            parts = self._split(tf.convert_to_tensor(value, self.dtype))
        for variable, part in zip(self.parts, parts, strict=True):
            variable.assign(part)

    def __repr__(self) -> str:
        return f"<RowShardedVariable {self.name} shape={tuple(self.shape)} in {self.parts[0].shape[0]} rows a replica>"

    def _dense_var_to_tensor(
        self, dtype: tf.DType | None = None, name: str | None = None, as_ref: bool = False
    ) -> tf.Tensor:
        return self.value() if dtype is None else tf.cast(self.value(), dtype)

    def __tf_tensor__(self, dtype: tf.DType | None = None, name: str | None = None) -> tf.Tensor:
        return self._dense_var_to_tensor(dtype, name)

    def _host(self) -> str:
        """The CPU beside the first part: of a slice's host, which also writes whole variables into checkpoints."""
        return tf.DeviceSpec.from_string(self.parts[0].device).replace(device_type="CPU", device_index=0).to_string()

    def _assembled(self) -> tf.Tensor:
        with tf.device(self._host()):
            parts = [part.read_value() for part in self.parts]
            in_order = [part for _, part in sorted(zip(self._shard_numbers(), parts, strict=True), key=lambda p: p[0])]
            matrix = tf.concat(in_order, 0)[: self.order.rows]
            missing = self.order.rows - matrix.shape[0]  # parts of a `SliceStrategy` that are nowhere: never computed
            return self.order.kernel(tf.pad(matrix, [[0, missing], [0, 0]]) if missing else matrix)

    def _split(self, whole: tf.Tensor) -> list[tf.Tensor]:
        """What each of `parts` holds of a tensor of the whole's shape."""
        own, matrix = self.shard.shape[0], self.order.matrix(whole)
        slices = [matrix[number * own : (number + 1) * own] for number in self._shard_numbers()]
        return [tf.pad(rows, [[0, own - rows.shape[0]], [0, 0]]) for rows in slices]

    def _shard_numbers(self) -> list[int]:
        return collectives.shard_numbers(self.shard.distribute_strategy) if len(self.parts) > 1 else [0]

    # How TensorFlow saves and restores an object of several tensors.

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {_CHECKPOINT_KEY: self._assembled()}

    def _restore_from_tensors(self, restored_tensors: dict[str, tf.Tensor]) -> None:
        self.assign(restored_tensors[_CHECKPOINT_KEY])

    def _copy_trackable_to_cpu(self, object_map: dict) -> None:
        """Keeps the whole in host memory, from which a checkpoint is written during training."""
        if self not in object_map:
            with tf.device(self._host()):
                object_map[self] = tf.Variable(self._assembled(), trainable=False, name=self.name.split(":")[0])
        else:
            object_map[self].assign(self._assembled())


tf.register_tensor_conversion_function(RowShardedVariable, RowShardedVariable._dense_var_to_tensor)


def sharded(variable: tf.Variable) -> RowShardedVariable | None:
    """The sharded variable that `variable` is, or that Keras wraps in it; None where it is whole on each replica."""
    inner = weights.unwrapped(variable)
    return inner if isinstance(inner, RowShardedVariable) else None


def of_replica(variable: tf.Variable) -> tf.Variable:
    """What a replica holds of `variable`: its shard, or the variable itself where it is whole."""
    whole = sharded(variable)
    return variable if whole is None else whole.shard


@contextlib.contextmanager
def sharding_kernels(wanted: bool | None = None) -> Iterator[None]:
    """Within, in the strategy's scope, trainable kernels of `MIN_VALUES` or more are created as sharded variables.

    `wanted` says whether; None: where there are several replicas and the strategy can. Where it cannot, it is said.
    """
    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    if wanted and replicas > 1 and not collectives.can_shard(strategy):
        logging.warning(
            "The optimiser's state stays whole on each replica: %s cannot share it out.", type(strategy).__name__
        )
    if wanted is False or replicas == 1 or not collectives.can_shard(strategy):
        yield
        return

    def create(next_creator: Callable[..., tf.Variable], **settings: Any) -> tf.Variable:
        shape, dtype, initial = (settings[name] for name in ("shape", "dtype", "initial_value"))
        is_kernel = settings["trainable"] and shape is not None and shape.rank >= 2 and dtype == tf.float32
        if not is_kernel or shape.num_elements() < MIN_VALUES:
            return next_creator(**settings)
        order = RowOrder(tuple(shape))
        if order.rows < replicas:
            return next_creator(**settings)
        own = [collectives.shard_rows(order.rows, replicas), order.columns]
        zeros = functools.partial(tf.zeros, own)
        shard = per_replica(next_creator, **settings | {"initial_value": zeros, "shape": own})
        variable = RowShardedVariable(shard, shape=shape)
        if not isinstance(strategy, SliceStrategy):  # under which nothing runs
            variable.assign(initial() if callable(initial) else initial)
        return variable

    with tf.variable_creator_scope(create):
        yield


def per_replica(next_creator: Callable[..., tf.Variable], **settings: Any) -> tf.Variable:
    """A variable creator whose variables have a value of their own on each replica."""
    own = {
        "trainable": False,  # as TensorFlow has it; `RowShardedVariable` says whether the whole is
        "synchronization": tf.VariableSynchronization.ON_READ,
        "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,  # without one TensorFlow fails on any `hasattr`
    }
    return next_creator(**settings | own)
