"""A network small enough to export in a moment, and images that it tells apart."""

import io

import numpy as np
import tensorflow as tf
import tf_keras
from PIL import Image

CLASSES = ["dark", "middle", "bright"]
SIZE = 32


class Brightness(tf_keras.Model):
    """Logits that grow with an image's mean, in steps: says which third of the range it is in."""

    def __init__(self):
        super().__init__()
        self.centres = self.add_weight(name="centres", shape=[4], initializer=tf.constant_initializer([-1.5, 0, 2, 9]))

    def call(self, images, training=False):
        mean = tf.reduce_mean(images, [1, 2, 3])
        return -tf.square(mean[:, None] - self.centres)


def encoded(level, kind="JPEG", size=(48, 40), **options):
    buffer = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), level, np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()
