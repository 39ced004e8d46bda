"""Exponential moving averages of a model's weights, kept in a second model that evaluation and export use as it is."""

from collections.abc import Iterator

import tensorflow as tf
import tf_keras

from pipeline.sharding.sharded_variable import RowShardedVariable, of_replica
from pipeline.train import distribution


class AveragedModel:
    """`model`, an average over time of another model's variables.

    The weights that are trained are never swapped out: both sets exist side by side. The decay starts low, so that
    the random initial weights are soon forgotten: `min(decay, (1 + t) / (10 + t))` with t the steps done before.
    """

    def __init__(self, trained: tf_keras.Model, model: tf_keras.Model, decay: float):
        """Starts the average at the weights of `trained`; `model` is another one made like it, which is taken over.

        Raises:
          ValueError: `decay` is not in (0, 1), or the two models differ.
        """
        if not 0 < decay < 1:
            raise ValueError(f"The decay of the averaged weights is {decay}; expected a number between 0 and 1.")
        shapes = [[(tuple(v.shape), v.dtype) for v in each.variables] for each in (trained, model)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{model.name} has not the variables of {trained.name}, so it cannot hold their average.")
        self.model = model
        self._trained = trained
        self._decay = decay
        self.reset()

    def reset(self) -> None:
        """Sets the average to the current weights; outside of `strategy.run`."""
        for average, variable in zip(self.model.variables, self._trained.variables, strict=True):
            average.assign(variable if isinstance(average, RowShardedVariable) else variable.read_value())

    def update(self, steps_done: tf.Tensor) -> None:
        """Moves the average towards the current weights; inside `strategy.run`, after the optimiser's step.

        Args:
          steps_done: steps taken, this one included.
        """
        before = tf.cast(steps_done, tf.float32) - 1.0
        # One minus the decay, of which float32 would keep few digits if it were computed from the decay.
        rate = tf.maximum(1.0 - self._decay, 9.0 / (10.0 + before))
        averages, values = zip(*self._pairs(), strict=True)
        distribution.update_locally(averages, _move, values, [rate] * len(averages))

    def _pairs(self) -> Iterator[tuple[tf.Variable, tf.Variable]]:
        """Each replica's part of the average and of the weights."""
        return zip(map(of_replica, self.model.variables), map(of_replica, self._trained.variables), strict=True)


def _move(average: tf.Variable, value: tf.Tensor, rate: tf.Tensor) -> None:
    if average.dtype.is_floating:
        average.assign_sub(tf.cast(rate, average.dtype) * (average - value))
    else:
        average.assign(value)
