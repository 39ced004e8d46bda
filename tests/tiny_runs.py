"""Runs small enough to be repeated by the hundred, with every kind of randomness switched on."""

import functools

import tensorflow as tf
import tf_keras

from pipeline.data.augment import Augmentation
from pipeline.data.input import Data
from pipeline.model import layers, variants
from pipeline.train import optimizer, schedule
from pipeline.train.experiment import Experiment

BATCH = 16


class TinyNet(tf_keras.Model):
    """A convolution, a residual block with stochastic depth, dropout and a linear layer: traced in a second."""

    def __init__(self, num_classes: int, drop_rate: float = 0.2):
        super().__init__(name="tinynet")
        self._drop_rate = drop_rate
        self.stem = layers.WSConv(variants.Conv("stem", 3, 16, kernel=3, stride=4))
        self.conv = layers.WSConv(variants.Conv("block", 16, 16, kernel=3))
        self.linear = layers.Linear("linear", 16, num_classes, tf_keras.initializers.RandomNormal(stddev=0.1))
        self.built = True

    def call(self, images, training=False, seed=None):
        """Logits, float32 [batch, num_classes]."""
        outputs = layers.activation(self.stem(images))
        branch = layers.activation(self.conv(outputs))
        if training:
            branch = layers.stochastic_depth(branch, self._drop_rate, seed)
        features = tf.reduce_mean(outputs + branch, [1, 2])
        if training:
            features = layers.dropout(features, self._drop_rate, tf.random.experimental.stateless_fold_in(seed, 1))
        return self.linear(features)


without_noise = functools.partial(TinyNet, drop_rate=0.0)


def experiment(directory, model=TinyNet, **settings) -> Experiment:
    """Two and a half epochs with dropout, stochastic depth, random crops, flips, erasing and averaged weights."""
    data = {"train_size": 32, "eval_size": 32, "block": 4, "window": 8, **settings.pop("data", {})}
    augmentation = settings.pop("augmentation", Augmentation(min_area=0.4, erasing=0.25))
    return Experiment(
        model=model,
        data=Data(str(directory), BATCH, augmentation=augmentation, **data),
        schedule=functools.partial(schedule.cosine, peak=0.2, warmup_epochs=0.2),
        **{"optimizer": optimizer.SGD, "epochs": 2.5, "ema_decay": 0.9, "label_smoothing": 0.1, **settings},
    )
