"""What a network learns: how labels become targets, what the loss is, what is reported, and what its outputs mean.

Targets are sparse until the loss: `labels` int64 [batch, k] with `label_weights` float32 [batch, k]. One form serves a
single label (k = 1), several weighted labels, and labels mixed by mixup or cutmix.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Objective:
    """One kind of classification.

    Attributes:
      name: of the setting `Experiment.loss`.
      normalize_weights: from the weights of one record's labels, float32 [k], to what each counts in the target.
      smooth: from dense targets float32 [batch, classes] and a share to targets of which that share is spread out.
      loss: from smoothed targets and logits, float32 [batch, classes], to the loss of each example, float32 [batch].
      activation: from logits to probabilities, float32 [batch, classes].
    """

    name: str
    normalize_weights: Callable[[tf.Tensor], tf.Tensor]
    smooth: Callable[[tf.Tensor, float], tf.Tensor]
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    activation: Callable[[tf.Tensor], tf.Tensor]


def _shares(weights: tf.Tensor) -> tf.Tensor:
    """Weights that sum to 1, so that an image's share of a mixed target is its share of the pixels."""
    return tf.math.divide_no_nan(weights, tf.reduce_sum(weights))


def _smooth_over_classes(targets: tf.Tensor, share: float) -> tf.Tensor:
    return targets * (1 - share) + share / targets.shape[-1]


def _smooth_each_class(targets: tf.Tensor, share: float) -> tf.Tensor:
    return tf.minimum(targets, 1.0) * (1 - share) + share / 2


def _softmax_loss(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.nn.softmax_cross_entropy_with_logits(labels=targets, logits=logits)


def _sigmoid_loss(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The sum over classes of each class's own binary loss: a mean would divide gradients by the number of classes."""
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits), -1)


SOFTMAX = Objective("softmax", _shares, _smooth_over_classes, _softmax_loss, tf.nn.softmax)
SIGMOID = Objective("sigmoid", tf.identity, _smooth_each_class, _sigmoid_loss, tf.nn.sigmoid)
OBJECTIVES = {objective.name: objective for objective in (SOFTMAX, SIGMOID)}


def get(name: str) -> Objective:
    """Returns the objective called `name`; raises ValueError naming those that exist."""
    if name not in OBJECTIVES:
        raise ValueError(f"Experiment.loss is {name!r}; expected one of {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]


def dense_targets(labels: tf.Tensor, label_weights: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Dense targets, float32 [batch, num_classes]: the weights of each example's labels."""
    return tf.reduce_sum(tf.one_hot(labels, num_classes) * label_weights[..., None], 1)


def hits(targets: tf.Tensor, logits: tf.Tensor, k: int) -> tf.Tensor:
    """Whether one of the `k` highest logits is a label of the example: float32 [batch]."""
    _, best = tf.math.top_k(logits, min(k, logits.shape[-1]))
    return tf.cast(tf.reduce_any(tf.gather(targets, best, batch_dims=1) > 0, -1), tf.float32)


def metrics(
    objective: Objective, labels: tf.Tensor, label_weights: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0
) -> dict[str, tf.Tensor]:
    """What is reported of each example, float32 [batch] each: `loss`, `top1` and `top5`.

    Args:
      objective: what the network learns.
      labels: int64 [batch, k].
      label_weights: float32 [batch, k], as `objective.normalize_weights` gave them.
      logits: float32 [batch, classes].
      smoothing: the share of the target that is spread out (label smoothing).
    """
    targets = dense_targets(labels, label_weights, logits.shape[-1])
    loss = objective.loss(objective.smooth(targets, smoothing), logits)
    return {"loss": loss, "top1": hits(targets, logits, 1), "top5": hits(targets, logits, 5)}
