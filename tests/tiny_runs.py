"""Runs small enough to be repeated by the hundred, with every kind of randomness switched on."""

import functools

import tf_keras

from pipeline.data.augment import Augmentation
from pipeline.data.input import Data
from pipeline.model import classifier, layers, variants
from pipeline.train import optimizer, schedule
from pipeline.train.experiment import Experiment

BATCH = 16
GIN = """
include 'gin/model/pico.gin'
include 'gin/run/pretrain.gin'
GLOBAL_BATCH = 16
TRAIN_SIZE = 32
EVAL_SIZE = 32
EPOCHS = 2.5
PRECISION = "float32"
LEARNING_RATE = 0.2
Experiment.ema_decay = 0.9
Loop.checkpoint_every = 4
Loop.evaluate_every_epochs = 1
"""


class TinyTrunk(tf_keras.Model):
    """A convolution and a residual block with stochastic depth: traced in a second."""

    variant, channels = "tinynet", 16

    def __init__(self, drop_rate: float):
        super().__init__(name="trunk")
        self._drop_rate = drop_rate
        self.stem = layers.WSConv(variants.Conv("stem", 3, 16, kernel=3, stride=4))
        self.conv = layers.WSConv(variants.Conv("block", 16, 16, kernel=3))
        self.built = True

    def call(self, images, training=False, seed=None):
        """One feature map [batch, h / 4, w / 4, 16]."""
        outputs = layers.activation(self.stem(images))
        branch = layers.activation(self.conv(outputs))
        if training:
            branch = layers.stochastic_depth(branch, self._drop_rate, seed)
        return [outputs + branch]


class TinyNet(classifier.Classifier):
    """`TinyTrunk` with dropout and a linear layer."""

    def __init__(self, num_classes: int, drop_rate: float = 0.2, target_device: str | None = None):
        super().__init__(TinyTrunk(drop_rate), num_classes, drop_rate, name="tinynet")
        self.linear.kernel.assign(10 * self.linear.kernel)  # learns within few steps


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
