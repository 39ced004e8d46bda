"""SGD with momentum, weight decay and adaptive gradient clipping (AGC); AdamW for transformers.

Source of AGC: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", 2021, section 4.
"""

import fnmatch
from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf
import tf_keras

from pipeline.model.classifier import HEAD
from pipeline.sharding import collectives
from pipeline.sharding.sharded_variable import of_replica, sharded
from pipeline.sharding.updates import Pairs, ShardedUpdates

Rate: TypeAlias = float | tf_keras.optimizers.schedules.LearningRateSchedule


def unit_norms(values: tf.Tensor) -> tf.Tensor:
    """L2 norms per output unit: over all axes but the last of a weight, over the whole of a vector or scalar.

    The result keeps the reduced axes, with length 1.
    """
    axes = list(range(values.shape.rank - 1)) if values.shape.rank > 1 else None
    return tf.sqrt(tf.reduce_sum(tf.square(values), axes, keepdims=True))


def clip_adaptively(gradient: tf.Tensor, weight: tf.Tensor, clipping: float, epsilon: float) -> tf.Tensor:
    """Scales the gradient of each output unit down to at most `clipping * max(norm of its weight, epsilon)`."""
    return gradient * _scale(unit_norms(gradient), unit_norms(weight), clipping, epsilon)


def _scale(norms: tf.Tensor, weight_norms: tf.Tensor, clipping: float, epsilon: float) -> tf.Tensor:
    largest = clipping * tf.maximum(weight_norms, epsilon)
    return tf.where(norms > largest, largest / tf.maximum(norms, 1e-6), 1.0)


class Scheduled:
    """What the trainer needs of an optimiser in addition to Keras' interface."""

    _learning_rate: float | Callable[[tf.Tensor], tf.Tensor]  # Keras' own

    def learning_rate_at(self, step: int | tf.Tensor) -> tf.Tensor:
        """The learning rate with which step `step` (counted from 0) is taken, float32 []."""
        rate = self._learning_rate
        return tf.cast(rate(step) if callable(rate) else rate, tf.float32)


class SGD(Scheduled, ShardedUpdates, tf_keras.optimizers.SGD):
    """SGD whose step on each variable is: clip per output unit, add decay, add momentum.

    With g the clipped gradient plus `weight_decay * w`: `m = momentum * m + g`, then `w -= rate * m`, or with
    Nesterov `w -= rate * (g + momentum * m)`. Gradients are summed over replicas before, by Keras.

    Args:
      learning_rate: a number, or a schedule of the step.
      momentum: of the gradients.
      nesterov: whether to use Nesterov momentum.
      weight_decay: L2 decay of the variables in `decayed`; applied to the clipped gradient.
      clipping: AGC's threshold; None does not clip.
      clipping_epsilon: the smallest norm that a weight counts with, so that weights at 0 can move.
      unclipped: patterns (as of file names) of the variables that AGC leaves alone.
      decayed: patterns of the variables that decay.
    """

    def __init__(
        self,
        learning_rate: Rate,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 2e-5,
        clipping: float | None = 0.01,
        clipping_epsilon: float = 1e-3,
        unclipped: Sequence[str] = (HEAD + "kernel",),
        decayed: Sequence[str] = ("*kernel",),
        name: str = "sgd",
    ):
        # Keras' own weight decay is decoupled from the gradient; ours is not, so Keras gets none.
        super().__init__(learning_rate, momentum, nesterov, weight_decay=None, jit_compile=False, name=name)
        if weight_decay < 0:
            raise ValueError(f"weight_decay is {weight_decay}; expected 0 or more.")
        if clipping is not None and clipping <= 0:
            raise ValueError(f"clipping is {clipping}; expected more than 0, or None not to clip.")
        self._decay = weight_decay
        self._clipping = clipping
        self._clipping_epsilon = clipping_epsilon
        self._unclipped = tuple(unclipped)
        self._decayed = tuple(decayed)

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates the momenta, and settles by name which variables are clipped and which decay.

        Raises:
          ValueError: a pattern fits none of the variables.
        """
        super().build(var_list)
        # The copies on other replicas have other names, so that names are matched here, on the originals.
        names = [variable.name.split(":")[0] for variable in var_list]
        unclipped = _matching(names, self._unclipped, "SGD.unclipped") if self._clipping else set()
        decayed = _matching(names, self._decayed, "SGD.decayed") if self._decay else set()
        self._thresholds = [None if name in unclipped else self._clipping for name in names]
        self._is_decayed = [name in decayed for name in names]

    def aggregate_gradients(self, grads_and_vars: Pairs) -> list[tuple[tf.Tensor, tf.Variable]]:
        """Sums gradients over replicas, and clips them."""
        pairs = super().aggregate_gradients(grads_and_vars)
        # The norms of what is shared out over replicas are sums over them.
        shards = [(gradient, whole) for gradient, v in pairs if (whole := sharded(v))]
        clipped = [(gradient, whole) for gradient, whole in shards if self._threshold(whole.shard) is not None]
        squares = [w.order.unit_sums(tf.square(values)) for gradient, w in clipped for values in (gradient, w.shard)]
        norms = iter([tf.sqrt(total) for total in collectives.sums(squares)])

        def clip(gradient, variable):
            threshold = self._threshold(of_replica(variable))
            if threshold is None:
                return gradient
            if whole := sharded(variable):
                scale = _scale(next(norms), next(norms), threshold, self._clipping_epsilon)
                return gradient * whole.order.by_row(scale, gradient.shape[0])
            return clip_adaptively(gradient, variable, threshold, self._clipping_epsilon)

        return [(clip(gradient, variable), variable) for gradient, variable in pairs]

    def _threshold(self, variable: tf.Variable) -> float | None:
        return self._thresholds[self._index_dict[self._var_key(variable)]]

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates `variable`, on one replica, from the clipped gradient of the global batch."""
        index = self._index_dict[self._var_key(variable)]
        if self._is_decayed[index]:
            gradient += self._decay * variable
        rate = tf.cast(self.learning_rate, variable.dtype)
        momentum = self.momentums[index]
        momentum.assign(self.momentum * momentum + gradient)
        step = gradient + self.momentum * momentum if self.nesterov else momentum
        variable.assign_sub(rate * step)

    def get_config(self) -> dict[str, object]:
        """The arguments that make an equal optimiser."""
        return {
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self._decay,
            "clipping": self._clipping,
            "clipping_epsilon": self._clipping_epsilon,
            "unclipped": list(self._unclipped),
            "decayed": list(self._decayed),
            "name": self.name,
        }


class AdamW(Scheduled, ShardedUpdates, tf_keras.optimizers.AdamW):
    """Adam with decoupled weight decay, for transformers: Keras' own, with `decayed` patterns as of `SGD`.

    Each step also takes `rate * weight_decay * w` off the variables that decay.
    """

    def __init__(
        self,
        learning_rate: Rate,
        weight_decay: float = 0.05,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        decayed: Sequence[str] = ("*kernel",),
        name: str = "adamw",
    ):
        super().__init__(learning_rate, weight_decay, beta_1, beta_2, epsilon, jit_compile=False, name=name)
        self._decayed = tuple(decayed)

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates the moments, and settles by name which variables decay; raises ValueError as `SGD.build`."""
        names = [variable.name.split(":")[0] for variable in var_list]
        decayed = _matching(names, self._decayed, "AdamW.decayed") if self.weight_decay else set()
        kept = [variable for variable, name in zip(var_list, names, strict=True) if name not in decayed]
        if not getattr(self, "_built", False):
            self.exclude_from_weight_decay(var_list=[of_replica(variable) for variable in kept])
        super().build(var_list)

    def get_config(self) -> dict[str, object]:
        """The arguments that make an equal optimiser."""
        names = ("weight_decay", "beta_1", "beta_2", "epsilon", "name")
        rate = self._serialize_hyperparameter(self._learning_rate)
        return {name: getattr(self, name) for name in names} | {"learning_rate": rate, "decayed": list(self._decayed)}


def _matching(names: Sequence[str], patterns: Sequence[str], setting: str) -> set[str]:
    found = set()
    for pattern in patterns:
        fits = fnmatch.filter(names, pattern)
        if not fits:
            raise ValueError(
                f"{setting} has {pattern!r}, which fits none of the {len(names)} trainable variables "
                f"({names[0]}, ..., {names[-1]}): correct the pattern or leave it out."
            )
        found.update(fits)
    return found
