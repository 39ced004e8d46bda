"""The inference form of a model: from images to features and logits, with nothing left to compute from weights alone.

An NFNet standardises its kernels in each call: a third of F0's time for one image of 256 pixels. Its inference form
holds the results, with the factors of their inputs folded in: the activation's gain, beta, and one over the
images' standard deviation. They are variables, which a SavedModel stores beside its graph: a graph that holds weights
as constants is limited to 2 GB, and is slow to load.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.data import augment
from pipeline.model import classifier, layers, nfnet, variants

GAIN = layers.ACTIVATION_GAIN / 2  # the factor of `_activation` that is folded into the next kernel


class Outputs(NamedTuple):
    """Float32 `features` [batch, channels], as of `Classifier.features`, and `logits` [batch, length of the logits]."""

    features: tf.Tensor
    logits: tf.Tensor


class InferenceForm(tf.Module):
    """What a model computes in evaluation, for a `tf.function` to call; made by `fold`."""

    def __call__(self, images: tf.Tensor) -> Outputs:
        """Maps RGB images, uint8 [batch, height, width, 3], to `Outputs`.

        The batch may be 0. Where the function is traced, batch, height and width may be unknown; a model that works at
        one resolution needs its height and width.
        """
        # oneDNN's convolution of an empty batch has the wrong shape: an empty batch becomes one image, cut off below.
        batch = tf.shape(images)[0]
        outputs = self.compute(tf.pad(images, [[0, tf.cast(batch == 0, tf.int32)], [0, 0], [0, 0], [0, 0]]))
        return Outputs(outputs.features[:batch], outputs.logits[:batch])

    def compute(self, images: tf.Tensor) -> Outputs:
        """The same for at least one image, in fewer operations."""
        raise NotImplementedError


def fold(model: classifier.Classifier) -> InferenceForm:
    """Returns the inference form of a model with its present weights.

    That of an NFNet has its own variables, computes in float32 whatever the model's policy, and does not refer to the
    model; while it is made, memory holds both and one more kernel. Any other model is called as it is, in the precision
    of its policy.
    """
    trunk = model.trunk
    return NFNetForm(trunk, model.linear) if isinstance(trunk, nfnet.Trunk) else _AsItIs(model)


class _AsItIs(InferenceForm):
    def __init__(self, model: classifier.Classifier):
        super().__init__(name="inference")
        self._variables = list(model.variables)  # tracked, so that they are saved
        # In functions, which saving does not track: it would trace the Keras model's own calls as well.
        self._features = lambda images: model.features(augment.normalize(images))
        self._logits = lambda features: model.linear(features)

    def compute(self, images: tf.Tensor) -> Outputs:
        features = self._features(images)
        return Outputs(features, self._logits(features))


class NFNetForm(InferenceForm):
    def __init__(self, trunk: nfnet.Trunk, linear: layers.Linear):
        super().__init__(name="inference")
        scales: list[float | np.ndarray] = [1 / augment.STDDEV_RGB[:, np.newaxis], GAIN, GAIN, GAIN]
        self.stem = [Conv(conv, scale) for conv, scale in zip(trunk.stem, scales, strict=True)]
        plan = variants.blocks(variants.get(trunk.variant))
        self.blocks = [Block(spec, block) for spec, block in zip(plan, trunk.blocks, strict=True)]
        self.final_conv = Conv(trunk.final_conv, 1.0)
        self.linear = Linear(linear)

    def compute(self, images: tf.Tensor) -> Outputs:
        # The mean stays outside the first kernel: padding is of zeros, which stand for pixels of the mean.
        outputs = self.stem[0](tf.cast(images, tf.float32) - augment.MEAN_RGB)
        for conv in self.stem[1:]:
            outputs = conv(_activation(outputs))
        for block in self.blocks:
            outputs = block(outputs)
        outputs = _activation(self.final_conv(outputs))
        features = GAIN * tf.reduce_mean(outputs, [1, 2])
        return Outputs(features, self.linear(features))


class Block(tf.Module):
    """As `layers.NFBlock` in evaluation."""

    def __init__(self, spec: variants.Block, block: layers.NFBlock):
        super().__init__(name=block.name)
        first, *others = block.convs
        self.convs = [Conv(first, GAIN * spec.beta), *(Conv(conv, GAIN) for conv in others)]
        self.shortcut = Conv(block.conv_shortcut, GAIN * spec.beta) if block.conv_shortcut else None
        self.squeeze, self.excite = Linear(block.squeeze_excite.fc0), Linear(block.squeeze_excite.fc1)
        self.gate_scale = _variable(2 * variants.ALPHA * block.skip_gain)
        self.stride = spec.stride

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        activated = _activation(inputs)
        branch = self.convs[0](activated)
        for conv in self.convs[1:]:
            branch = conv(_activation(branch))
        averages = tf.reduce_mean(branch, [1, 2])
        gate = self.gate_scale * tf.sigmoid(self.excite(tf.nn.relu(self.squeeze(averages))))
        return branch * gate[:, tf.newaxis, tf.newaxis] + self._skip(inputs, activated)

    def _skip(self, inputs, activated):
        if self.shortcut is None:
            return inputs
        if self.stride > 1:
            activated = tf.nn.avg_pool2d(activated, 2, self.stride, "SAME")
        return self.shortcut(activated)


class Conv(tf.Module):
    """As `layers.WSConv` of the inputs times `scale`, a number or an array [in_channels, 1]."""

    def __init__(self, conv: layers.WSConv, scale: float | np.ndarray):
        super().__init__(name=conv.name)
        kernel = layers.standardize(conv.kernel, conv.gain) * scale
        self.stride, self.groups = conv.stride, conv.groups
        self.is_product = kernel.shape[0] == conv.stride == 1
        self.kernel = _variable(kernel[0, 0] if self.is_product else kernel)
        self.bias = _variable(conv.bias)

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        if not self.is_product:
            # A sum, not `tf.nn.bias_add`: without oneDNN TensorFlow fuses that with a grouped convolution, and fails.
            return tf.nn.conv2d(inputs, self.kernel, self.stride, "SAME") + self.bias
        # At small batches a product takes less time on a CPU than a convolution.
        in_channels, channels = self.kernel.shape
        outputs = tf.matmul(tf.reshape(inputs, [-1, in_channels]), self.kernel)
        return tf.reshape(tf.nn.bias_add(outputs, self.bias), [-1, *layers.dimensions(inputs)[1:3], channels])


class Linear(tf.Module):
    """As `layers.Linear`, in float32."""

    def __init__(self, linear: layers.Linear):
        super().__init__(name=linear.name)
        self.kernel, self.bias = _variable(linear.kernel), _variable(linear.bias)

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.matmul(inputs, self.kernel) + self.bias


def _activation(inputs: tf.Tensor) -> tf.Tensor:
    """As `layers.activation` divided by `GAIN`, in fewer passes over memory."""
    slope = math.sqrt(2 / math.pi)
    return inputs * (1 + tf.tanh(inputs * (slope + 0.044715 * slope * tf.square(inputs))))


def _variable(values: tf.Tensor | tf.Variable) -> tf.Variable:
    return tf.Variable(tf.convert_to_tensor(values), trainable=False)
