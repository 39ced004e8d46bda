"""Keras optimisers on sharded variables."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import tensorflow as tf
import tf_keras

from pipeline.sharding.sharded_variable import RowShardedVariable, of_replica, per_replica, sharded

Pairs: TypeAlias = Iterable[tuple[tf.Tensor, tf.Variable]]


class ShardedUpdates(tf_keras.optimizers.Optimizer):
    """Mixed into a Keras optimiser, lets it update sharded variables, each replica its own shard.

    The gradient of a `RowShardedVariable` is that of the shard, summed over replicas before. The optimiser itself sees
    shards alone, as variables of two axes, and its slots for them are sharded as they are.
    """

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates the slots."""
        if not getattr(self, "_built", False):
            self._sharded = {v.name: whole for v in var_list if (whole := sharded(v))}
            self._sharded_slots: dict[str, RowShardedVariable] = {}
        super().build([of_replica(variable) for variable in var_list])

    def add_variable_from_reference(
        self, model_variable: tf.Variable, variable_name: str, shape: Any = None, initial_value: Any = None
    ) -> tf.Variable:
        """Creates a slot for `model_variable`, which has each replica's own value if that is a shard."""
        create = super().add_variable_from_reference
        whole = self._sharded.get(model_variable.name)
        if whole is None:
            return create(model_variable, variable_name, shape, initial_value)
        with tf.variable_creator_scope(per_replica):
            slot = create(model_variable, variable_name, shape, initial_value)
        self._sharded_slots[slot.name] = RowShardedVariable(slot, trainable=False, shape=whole.shape)
        return slot

    def named_variables(self) -> dict[str, tf.Variable]:
        """All variables of the optimiser, whole, by the names under which checkpoints hold them."""
        return {v.name.split(":")[0]: self._sharded_slots.get(v.name, v) for v in self.variables}

    def aggregate_gradients(self, grads_and_vars: Pairs) -> list[tuple[tf.Tensor, tf.Variable]]:
        """Sums gradients over replicas, except for those of shards, which are sums."""
        pairs = list(grads_and_vars)
        whole = iter(super().aggregate_gradients([pair for pair in pairs if not sharded(pair[1])]))
        return [pair if sharded(pair[1]) else next(whole) for pair in pairs]

    def apply_gradients(self, grads_and_vars: Pairs, name: str | None = None) -> tf.Tensor:
        """Takes a step on this replica's part of all variables; inside `strategy.run`."""
        grads_and_vars = list(grads_and_vars)
        self.build([variable for _, variable in grads_and_vars])
        pairs = [(gradient, of_replica(variable)) for gradient, variable in self.aggregate_gradients(grads_and_vars)]
        return super().apply_gradients(pairs, name=name, skip_gradients_aggregation=True)
