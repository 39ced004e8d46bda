"""Losses and hits on sparse targets: `labels` int64 [batch, k] with `label_weights` float32 [batch, k].

One form serves a single label (k = 1), several weighted labels, and labels mixed by mixup or cutmix.
"""

import tensorflow as tf

LOSSES = ("softmax", "sigmoid")


def targets(labels: tf.Tensor, label_weights: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Dense targets, float32 [batch, num_classes]: the weights of each example's labels."""
    return tf.reduce_sum(tf.one_hot(labels, num_classes) * label_weights[..., None], 1)


def cross_entropy(dense: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0, kind: str = "softmax") -> tf.Tensor:
    """The loss of each example, float32 [batch].

    Args:
      dense: float32 [batch, classes], weights of the labels; 'softmax' normalises them to sum to 1.
      logits: float32 [batch, classes].
      smoothing: the share of the target spread evenly over all classes (label smoothing).
      kind: 'softmax' over all classes, or 'sigmoid' (the mean over classes of each class's own binary loss).
    """
    classes = logits.shape[-1]
    if kind == "sigmoid":
        dense = tf.minimum(dense, 1.0) * (1 - smoothing) + smoothing / 2
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=dense, logits=logits), -1)
    dense = tf.math.divide_no_nan(dense, tf.reduce_sum(dense, -1, keepdims=True))
    dense = dense * (1 - smoothing) + smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(labels=dense, logits=logits)


def hits(dense: tf.Tensor, logits: tf.Tensor, k: int) -> tf.Tensor:
    """Whether one of the `k` highest logits is a label of the example: float32 [batch]."""
    _, best = tf.math.top_k(logits, min(k, logits.shape[-1]))
    return tf.cast(tf.reduce_any(tf.gather(dense, best, batch_dims=1) > 0, -1), tf.float32)
