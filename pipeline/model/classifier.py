"""What every model is: a classifier made of a trunk, from images to feature maps, and a linear layer.

A new backbone is a module beside this one: a trunk as `Trunk` asks, and a function that creates its classifier under
the global Keras policy, to which `registry.register` gives a name in gin. An experiment calls the function with

- `num_classes`: length of the logits;
- `target_device`: kind of device that the model is for, one of `DEVICES`. A backbone may choose its operations by it,
  but neither its variables nor its function. 'any' is a model for evaluation and export: TensorFlow's own operations,
  without XLA. None takes 'tpu' under a `TPUStrategy`, and 'any' elsewhere.

Gin binds the function's other arguments.
"""

from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf
import tf_keras

from pipeline.model import layers

HEAD = "linear/"  # how the names of the linear layer's variables begin; all others belong to the trunk
ANY_DEVICE = "any"
DEVICES = ("tpu", "gpu", "cpu", ANY_DEVICE)
_DROPOUT = -1  # index of the head's noise; those of a trunk's layers are 0 or more


class Trunk(Protocol):
    """A `tf_keras.Model` from images to feature maps; no variable of it has a name that begins with `HEAD`.

    Attributes:
      variant: name of the architecture, as checkpoints and summaries state it.
      channels: of the last feature map.
    """

    variant: str
    channels: int

    def __call__(self, images: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> Sequence[tf.Tensor]:
        """Returns feature maps [batch, h, w, channels] of falling resolution, of which the last is classified.

        Args:
          images: normalised float images [batch, height, width, 3].
          training: whether the trunk's noise acts.
          seed: int32 [2], from which each layer derives its noise with `layers.fold` and an index of 0 or more. The
            result is a function of the arguments alone: no noise from a state that no checkpoint keeps.
        """
        ...


class Classifier(tf_keras.Model):
    """A trunk, the average of its last map, dropout, and a linear layer."""

    def __init__(self, trunk: Trunk, num_classes: int, dropout_rate: float = 0.0, name: str = "classifier"):
        """`dropout_rate` acts on the features in training.

        Raises:
          ValueError: a number is out of its range.
        """
        super().__init__(name=name)
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1.")
        layers.check_rate("dropout_rate", dropout_rate)
        self.variant = trunk.variant
        self.trunk = trunk
        self._dropout_rate = dropout_rate
        small_normal = tf_keras.initializers.RandomNormal(stddev=0.01)
        self.linear = layers.Linear(HEAD.rstrip("/"), trunk.channels, num_classes, small_normal, dtype=tf.float32)
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Returns float32 logits [batch, num_classes]; arguments as of `Trunk`, but `seed` is drawn if not given."""
        seed = layers.seed_or_draw(seed, training)
        features = self.features(images, training, seed)
        if training and self._dropout_rate:
            features = layers.dropout(features, self._dropout_rate, layers.fold(seed, _DROPOUT))
        return self.linear(features)

    def features(self, images: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the float32 features [batch, channels] that the linear layer sees, before dropout."""
        last = self.trunk(images, training=training, seed=seed)[-1]
        return tf.reduce_mean(tf.cast(last, tf.float32), axis=[1, 2])
