"""A step's kernels: gathered from the shards of all replicas, and their gradients brought back to the shards.

An optimiser's state shared out in this way is known as ZeRO, stage 1: Rajbhandari et al., "ZeRO: Memory Optimizations
Toward Training Trillion Parameter Models", 2020; Xu et al., "Automatic Cross-Replica Sharding of Weight Update in
Data-Parallel Training", 2020.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import tensorflow as tf
import tf_keras

from pipeline.model import gathered, layers
from pipeline.sharding import collectives
from pipeline.sharding.sharded_variable import RowShardedVariable, sharded

Tensors: TypeAlias = list[tf.Tensor]
Source: TypeAlias = tf.Tensor | tf.Variable


@dataclasses.dataclass(frozen=True)
class Gathered:
    """A model's kernels as whole tensors, for one step.

    Attributes:
      sources: what gradients are to be taken of: the tensors that stand for trainable kernels, and variables.
      values: what `gathered.using` takes, so that the model computes with them.
      back: maps the gradients of `sources`, of this replica's share of the loss, to one for each trainable variable:
        of a sharded one that of the shard, summed over replicas; of all others still this replica's share.
    """

    sources: list[Source]
    values: dict[str, tf.Tensor]
    back: Callable[[Sequence[tf.Tensor]], Tensors]
    _names: Sequence[str | None]  # in `values`, of each source; None for a variable

    def at(self, tensors: Iterable[tf.Tensor]) -> "Gathered":
        """As this, with other tensors among the sources."""
        remaining = iter(tensors)
        sources = [v if name is None else next(remaining) for name, v in zip(self._names, self.sources, strict=True)]
        values = self.values | {name: v for name, v in zip(self._names, sources, strict=True) if name is not None}
        return dataclasses.replace(self, sources=sources, values=values)


def gather(model: tf_keras.Model, raw: bool = False) -> Gathered:
    """Gathers the sharded kernels of `model`; inside `strategy.run`.

    They come in the precision of their layers, and those of weight-standardised convolutions are standardised: shard by
    shard, before they are gathered, as their gradients are after they are scattered. So no replica makes a pass over
    all parameters. With `raw` they come as they are stored, for what has to move them.
    """
    shared_out = {v.name: whole for v in model.variables if (whole := sharded(v))}
    if not shared_out:
        variables = list(model.trainable_variables)
        return Gathered(variables, {}, list, [None] * len(variables))
    if repeated := [name for name, n in collections.Counter(v.name for v in model.variables).items() if n > 1]:
        raise ValueError(f"Kernels are shared out by name, and several variables have the name {repeated[0]}.")
    convolutions = [] if raw else [conv for conv in _layers(model, layers.WSConv) if conv.kernel.name in shared_out]
    standardized = {each.conv.kernel.name: each for each in _standardize(convolutions)}
    dtypes = {} if raw else {v.name: layer.compute_dtype for layer in _layers(model) for v in layer.variables}

    def stands_for(variable: tf.Variable) -> tuple[str | None, Source]:
        if variable.name in standardized:
            return gathered.standardized(variable.name), standardized[variable.name].kernel()
        if whole := shared_out.get(variable.name):
            shard = tf.cast(tf.identity(whole.shard), dtypes.get(variable.name, whole.dtype))
            return variable.name, whole.gathered(shard)
        return None, variable

    gains = {conv.gain.name for conv in convolutions}
    trainable = [v for v in model.trainable_variables if v.name not in gains]
    trained = {v.name for v in trainable}
    names, sources = zip(*map(stands_for, trainable), strict=True)
    frozen = dict(stands_for(v) for name, v in shared_out.items() if name not in trained)
    values = frozen | {name: source for name, source in zip(names, sources, strict=True) if name is not None}

    def back(gradients: Sequence[tf.Tensor]) -> Tensors:
        by_name = {v.name: gradient for v, gradient in zip(trainable, gradients, strict=True)}
        for name in [name for name in by_name if name in shared_out]:
            by_name[name] = collectives.scatter_rows(shared_out[name].order.matrix(by_name[name]))
        by_name |= _standardization_gradients([each for name, each in standardized.items() if name in by_name], by_name)
        return [by_name[v.name] for v in model.trainable_variables]

    return Gathered(list(sources), values, back, names)


def _layers(model: tf_keras.Model, kind: type = tf_keras.layers.Layer) -> list:
    return [layer for layer in model.submodules if isinstance(layer, kind) and not isinstance(layer, tf_keras.Model)]


@dataclasses.dataclass(frozen=True)
class _Standardized:
    """A convolution's kernel, standardised in this replica's rows; formulas as in `tpu_layers.standardize`.

    Attributes:
      conv: the convolution.
      centred: the shard less the mean of each output unit.
      spread: [units], the sum of its square over all values of the unit.
    """

    conv: layers.WSConv
    centred: tf.Tensor
    spread: tf.Tensor

    @property
    def inverse(self) -> tf.Tensor:
        """The scale over the standard deviation, floored."""
        return self.conv.scale * tf.math.rsqrt(tf.maximum(self.spread, layers.STANDARDIZATION_EPSILON))

    def kernel(self) -> tf.Tensor:
        """The whole standardised kernel, HWIO in the compute dtype, gathered."""
        shard = self.centred * self._by_row(self.inverse * self.conv.gain)
        return self.conv.kernel.gathered(tf.cast(shard, self.conv.compute_dtype))

    def kernel_gradient(self, upstream: tf.Tensor, total: tf.Tensor, along: tf.Tensor) -> tf.Tensor:
        """The shard of the kernel's gradient from `upstream`, the shard of that of the standardised kernel.

        `total` and `along`, [units], are sums over all values of a unit, of `upstream` and of `upstream * centred`.
        """
        factor = self.inverse * self.conv.gain
        floored = self.spread <= layers.STANDARDIZATION_EPSILON  # where the deviation is a constant
        slope = tf.where(floored, 0.0, -factor * along / tf.maximum(self.spread, layers.STANDARDIZATION_EPSILON))
        constant = -factor * total / self.conv.kernel.order.fan_in
        factor, slope, constant = map(self._by_row, (factor, slope, constant))
        return _without_padding(upstream * factor + self.centred * slope + constant, self.conv.kernel)

    def _by_row(self, units: tf.Tensor) -> tf.Tensor:
        return self.conv.kernel.order.by_row(units, self.centred.shape[0])


def _standardize(convolutions: Sequence[layers.WSConv]) -> list[_Standardized]:
    kernels = [conv.kernel for conv in convolutions]
    shards = [tf.identity(kernel.shard) for kernel in kernels]
    totals = collectives.sums([kernel.order.unit_sums(shard) for kernel, shard in zip(kernels, shards, strict=True)])
    centred = [_centred(*each) for each in zip(kernels, shards, totals, strict=True)]
    spreads = collectives.sums(
        [kernel.order.unit_sums(tf.square(values)) for kernel, values in zip(kernels, centred, strict=True)]
    )
    return [_Standardized(*each) for each in zip(convolutions, centred, spreads, strict=True)]


def _centred(kernel: RowShardedVariable, shard: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    """The shard less the mean of each output unit, of whose values `total` is the sum."""
    mean = kernel.order.by_row(total / kernel.order.fan_in, shard.shape[0])
    return _without_padding(shard - mean, kernel)


def _standardization_gradients(
    standardized: Sequence[_Standardized], upstream: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    """By name of the variable: shards of the kernels' gradients, and this replica's share of those of the gains.

    `upstream` has, by name of the kernel, the shards of the gradients of the standardised kernels.
    """
    shards = [upstream[each.conv.kernel.name] for each in standardized]
    pairs = list(zip(standardized, shards, strict=True))
    own_totals = [each.conv.kernel.order.unit_sums(shard) for each, shard in pairs]
    own_along = [each.conv.kernel.order.unit_sums(shard * each.centred) for each, shard in pairs]
    sums = collectives.sums(own_totals + own_along)
    totals, along = sums[: len(shards)], sums[len(shards) :]
    gradients = {}
    for each, shard, *of_rows, own in zip(standardized, shards, totals, along, own_along, strict=True):
        gradients[each.conv.kernel.name] = each.kernel_gradient(shard, *of_rows)
        gradients[each.conv.gain.name] = each.inverse * own
    return gradients


def _without_padding(shard: tf.Tensor, variable: RowShardedVariable) -> tf.Tensor:
    """`shard` with zeros in the rows that are none of the whole's."""
    own = shard.shape[0]
    if own * tf.distribute.get_replica_context().num_replicas_in_sync == variable.order.rows:
        return shard
    numbers = collectives.shard_number() * own + tf.range(own)
    return tf.where(numbers[:, tf.newaxis] < variable.order.rows, shard, 0.0)
