"""The learning rate as a function of the step: linear warm-up, then cosine, linear or no decay.

`steps` is the length of training and `steps_per_epoch` may be a fraction; the trainer gives both.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tf_keras.optimizers import schedules


class WarmUp(schedules.LearningRateSchedule):
    """Grows linearly from 0 over `steps` steps to where `after`, a schedule of the steps since then, begins."""

    def __init__(self, steps: int, after: schedules.LearningRateSchedule):
        self._steps = steps
        self._after = after

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        """The learning rate, float32, of `step`, counted from 0."""
        step = tf.cast(step, tf.int64)
        rate = self._after(tf.maximum(step - self._steps, 0))
        share = tf.minimum(tf.cast(step, tf.float32) / max(self._steps, 1), 1.0)
        return tf.where(step < self._steps, rate * share, rate)

    def get_config(self) -> dict[str, object]:
        """The arguments that make an equal schedule."""
        return {"steps": self._steps, "after": schedules.serialize(self._after)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "WarmUp":
        """The schedule of `get_config`."""
        return cls(config["steps"], schedules.deserialize(config["after"]))


def cosine(
    steps: int,
    steps_per_epoch: float,
    peak: float,
    warmup_epochs: float = 0.0,
    warmup_steps: int | None = None,
    final: float = 0.0,
) -> WarmUp:
    """Warm-up to `peak`, then half a cosine down to `final` at the end.

    The warm-up is `warmup_steps` long, or `warmup_epochs` where that is None.

    Raises:
      ValueError: `peak` is not positive, or the warm-up is not shorter than the training.
    """
    warmup = _warmup(steps, steps_per_epoch, peak, warmup_epochs, warmup_steps)
    return WarmUp(warmup, schedules.CosineDecay(peak, steps - warmup, alpha=final / peak))


def linear(
    steps: int,
    steps_per_epoch: float,
    peak: float,
    warmup_epochs: float = 0.0,
    warmup_steps: int | None = None,
    final: float = 0.0,
) -> WarmUp:
    """Warm-up to `peak`, then a straight line down to `final` at the end; arguments as of `cosine`."""
    warmup = _warmup(steps, steps_per_epoch, peak, warmup_epochs, warmup_steps)
    return WarmUp(warmup, schedules.PolynomialDecay(peak, steps - warmup, end_learning_rate=final))


def constant(
    steps: int,
    steps_per_epoch: float,
    peak: float,
    warmup_epochs: float = 0.0,
    warmup_steps: int | None = None,
) -> WarmUp:
    """Warm-up to `peak`, which stays; arguments as of `cosine`."""
    warmup = _warmup(steps, steps_per_epoch, peak, warmup_epochs, warmup_steps)
    return WarmUp(warmup, schedules.PolynomialDecay(peak, steps - warmup, end_learning_rate=peak))


def _warmup(steps: int, steps_per_epoch: float, peak: float, warmup_epochs: float, warmup_steps: int | None) -> int:
    if peak <= 0:
        raise ValueError(f"The peak learning rate is {peak}; expected more than 0.")
    warmup = round(warmup_epochs * steps_per_epoch) if warmup_steps is None else warmup_steps
    if not 0 <= warmup < steps:
        raise ValueError(
            f"The warm-up takes {warmup} steps and the whole training {steps}: shorten the warm-up (warmup_epochs or "
            "warmup_steps) or train for longer."
        )
    return warmup
