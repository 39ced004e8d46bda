"""NFNet's layers in operations that a TPU's compiler runs fastest: the functions and variables of `layers.py`.

Only `call` differs, and the functions that it uses; `tests/test_tpu_layers.py` compares values and gradients. What each
of these changes gives is in docs/performance.md:

- Sums over many values (bias gradients, pooling) are computed in float32, inside the convolution that makes the values.
- Betas are folded into the kernels. The squeeze-excite gate is computed before the last convolution of a block, whose
  average over an image is linear in that of its inputs; gate, gains and shortcut then fuse into that convolution.
- Between the two 1x1 convolutions of a block, channels have two axes, (groups, channels of a group), so that the
  grouped convolutions need no change of layout.
- The stem works on packed pixels: few channels would leave most of the matrix unit idle.
- Weight standardisation computes its statistics, and the gradient through them, in one pass over the kernel.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from pipeline.model import layers, variants

_TANH_SLOPE = math.sqrt(2 / math.pi)
_TANH_CUBE = 0.044715 * _TANH_SLOPE
_HALF_GAIN = layers.ACTIVATION_GAIN / 2
GROUP_WIDTH = 128  # channels of a group that fill the lanes of a TPU's registers
# Added to an input, makes activation and derivative 0: far below what convolutions give, but no further, because a tanh
# that misses -1 by one rounding leaves a derivative that grows with the cube.
_OUTSIDE = -32.0


@tf.custom_gradient
def activation(inputs: tf.Tensor) -> tf.Tensor:
    """As `layers.activation`; value and derivative are computed in float32 and rounded once."""
    inputs = tf.identity(inputs)

    def gradient(upstream):
        x = tf.cast(inputs, tf.float32)
        square = x * x
        tanh = tf.tanh(x * (_TANH_SLOPE + _TANH_CUBE * square))
        inner = x * (_TANH_SLOPE + 3 * _TANH_CUBE * square)
        slope = (_HALF_GAIN + _HALF_GAIN * tanh) * (1 + (1 - tanh) * inner)
        return tf.cast(tf.cast(upstream, tf.float32) * slope, inputs.dtype)

    x = tf.cast(inputs, tf.float32)
    tanh = tf.tanh(x * (_TANH_SLOPE + _TANH_CUBE * (x * x)))
    return tf.cast(x * (_HALF_GAIN + _HALF_GAIN * tanh), inputs.dtype), gradient


@tf.custom_gradient
def add_bias(inputs: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """`inputs + bias` for a float32 bias of the last axes' shape; its gradient is summed in float32."""
    axes = list(range(inputs.shape.rank - bias.shape.rank))

    def gradient(upstream):
        return upstream, tf.reduce_sum(tf.cast(upstream, tf.float32), axes)

    return inputs + tf.cast(bias, inputs.dtype), gradient


@tf.custom_gradient
def standardize(kernel: tf.Tensor, gain: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """As `scale * layers.standardize(kernel, gain)`; `scale` is a constant [], which gets no gradient.

    With a = scale * gain / sqrt(fan_in * variance), and d the gradient of the result, that of the kernel is
    `a * (d - mean(d)) - a * cov(d, kernel) / variance * (kernel - mean)`: three numbers a channel and one pass.
    """
    axes = list(range(kernel.shape.rank - 1))
    fan_in = float(np.prod(kernel.shape[:-1]))
    # Sums about one of the values, so that one pass does not cancel where the mean is far above the deviation.
    origin = kernel[(slice(1),) * len(axes)]
    centred = kernel - origin
    offset = tf.reduce_sum(centred, axes) / fan_in
    spread = tf.reduce_sum(centred * centred, axes) - fan_in * offset * offset
    inverse = scale * tf.math.rsqrt(tf.maximum(spread, layers.STANDARDIZATION_EPSILON))
    factor = inverse * gain

    def gradient(upstream):
        upstream = tf.cast(upstream, tf.float32)
        total, along = tf.reduce_sum(upstream, axes), tf.reduce_sum(upstream * centred, axes)
        covariance = along - offset * total
        floored = spread <= layers.STANDARDIZATION_EPSILON  # where the deviation is a constant
        back = tf.where(floored, tf.zeros_like(factor), -factor * covariance / tf.maximum(spread, 1e-30))
        constant = -factor * total / fan_in - back * offset
        return upstream * factor + centred * back + constant, inverse * covariance, None

    return (centred - offset) * factor, gradient


class WSConv(layers.WSConv):
    """A convolution of weight-standardised kernel, with bias and `SAME` padding."""

    def _standardize(self) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernel)
        return tf.cast(standardize(kernel, self.gain, tf.constant(self.scale)), self.compute_dtype)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """As `layers.WSConv.call`."""
        outputs = tf.nn.conv2d(inputs, self.standardized(), self._spec.stride, "SAME")
        return add_bias(outputs, self.bias)


class NFBlock(layers.NFBlock):
    """A residual block without normalisation."""

    conv = WSConv

    def __init__(self, spec: variants.Block, drop_rate: float):
        super().__init__(spec, drop_rate)
        for conv in filter(None, (self.convs[0], self.conv_shortcut)):
            conv.scale = spec.beta

    def call(self, inputs: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> tf.Tensor:
        """As `layers.NFBlock.call`."""
        activated = activation(inputs)
        shortcut = inputs
        if self.conv_shortcut is not None:
            pooled = activated
            if self._spec.stride > 1:
                pooled = tf.nn.avg_pool2d(activated, 2, self._spec.stride, "SAME")
            shortcut = self.conv_shortcut(pooled)
        groups = self._spec.convs[1].groups
        grouped = groups > 1 and self._spec.convs[1].channels == groups * GROUP_WIDTH
        hidden = self._grouped(activated, groups) if grouped else self._ungrouped(activated)

        last = self.convs[-1]
        kernel = last.standardized()
        # The average of the last convolution's outputs, from the average of its inputs.
        average = tf.reshape(_average(hidden), [tf.shape(hidden)[0], kernel.shape[2]])
        average = tf.matmul(average, kernel[0, 0]) + tf.cast(last.bias, kernel.dtype)
        gate = tf.cast(self.squeeze_excite.gate(average), tf.float32) * (2 * variants.ALPHA * self.skip_gain)
        if training and self._drop_rate:
            gate *= layers.survivors(tf.shape(gate)[:1], self._drop_rate, seed)[:, tf.newaxis]
        branch = _merge_groups(hidden, kernel) if grouped else tf.nn.conv2d(hidden, kernel, 1, "SAME")
        return _gated_sum(branch, last.bias, tf.cast(gate, branch.dtype), shortcut)

    def _ungrouped(self, activated):
        hidden = self.convs[0](activated)
        for conv in self.convs[1:-1]:
            hidden = conv(activation(hidden))
        return activation(hidden)

    def _grouped(self, activated, groups):
        """The block's inner activations [batch, h, w, groups, GROUP_WIDTH]."""
        first, *inner, _ = self.convs
        hidden = _split_groups(activated, first.standardized(), groups)
        hidden = activation(add_bias(hidden, tf.reshape(first.bias, [groups, GROUP_WIDTH])))
        for conv in inner:
            outputs = tf.nn.conv2d(_flat(hidden), conv.standardized(), conv.stride, "SAME")
            outputs = tf.reshape(outputs, [*layers.dimensions(outputs)[:3], groups, GROUP_WIDTH])
            hidden = activation(add_bias(outputs, tf.reshape(conv.bias, [groups, GROUP_WIDTH])))
        return hidden


def stem(convs: Sequence[WSConv], images: tf.Tensor) -> tf.Tensor:
    """As `layers.stem`, on cells of 4 x 4 pixels, and of 2 x 2 where the resolution is halved.

    Sides that 4 does not divide go through `layers.stem`.
    """
    _, height, width, _ = images.shape
    if not all(isinstance(side, int) and side % 4 == 0 for side in (height, width)):
        return layers.stem(convs, images, activation)
    kernels = [conv.standardized() for conv in convs]
    biases = [tf.tile(conv.bias, [4]) for conv in convs[:3]]
    # Padding of `SAME`: the strided convolutions pad at the end, by one pixel.
    at_end = [[0, 0], [0, 1], [0, 1], [0, 0]]
    outputs = tf.nn.space_to_depth(images, 4)
    outputs = tf.nn.conv2d(outputs, _packed(kernels[0], cell=4, stride=2, outputs=2), 1, at_end)
    outputs = activation(add_bias(outputs, biases[0]))
    # Cells begin one pixel earlier from here on, so that a window of two of them holds what the next needs.
    outputs = _convolve_padded(outputs, _packed(kernels[1], cell=2, stride=1, outputs=2))
    outside = tf.constant(_outside(height // 4, width // 4, convs[1].channels), outputs.dtype)
    outputs = activation(add_bias(outputs, biases[1]) + outside)
    outputs = tf.nn.conv2d(outputs, _packed(kernels[2], cell=2, stride=1, outputs=2), 1, "VALID")
    outputs = activation(add_bias(outputs, biases[2]))
    outputs = tf.nn.conv2d(outputs, _packed(kernels[3], cell=2, stride=2, outputs=1), 1, at_end)
    return add_bias(outputs, convs[3].bias)


def _packed(kernel: tf.Tensor, cell: int, stride: int, outputs: int) -> tf.Tensor:
    """The kernel [2, 2, cell * cell * in, outputs * outputs * out] that does on cells what a 3x3 one does on pixels.

    Args:
      kernel: [3, 3, in, out].
      cell: pixels on a side of an input cell.
      stride: of the convolution over pixels.
      outputs: output pixels on a side of an output cell.
    """
    window = 2 * cell
    places = [(row * stride, column * stride) for row in range(outputs) for column in range(outputs)]
    shifted = [
        tf.pad(kernel, [[row, window - 3 - row], [column, window - 3 - column], [0, 0], [0, 0]])
        for row, column in places
    ]
    channels = kernel.shape[2]
    stacked = tf.reshape(tf.concat(shifted, 3), [2, cell, 2, cell, channels, -1])
    return tf.reshape(tf.transpose(stacked, [0, 2, 1, 3, 4, 5]), [2, 2, cell * cell * channels, -1])


def _outside(rows: int, columns: int, channels: int) -> np.ndarray:
    """[rows + 1, columns + 1, 4 * channels]: 0 for pixels of the image, `_OUTSIDE` for those that pad it.

    The cells are 2 x 2 pixels and begin one pixel before the image.
    """

    def side(cells):
        inside = np.ones([cells + 1, 2], np.float32)
        inside[0, 0] = inside[-1, 1] = 0
        return inside

    inside = side(rows)[:, None, :, None] * side(columns)[None, :, None, :]
    return np.repeat((1 - inside).reshape(rows + 1, columns + 1, 4) * _OUTSIDE, channels, -1)


@tf.custom_gradient
def _convolve_padded(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """A 2x2 convolution with one cell of padding on every side.

    The gradient of its kernel convolves with the two operands exchanged: TensorFlow's own reverses the larger one.
    """
    inputs, kernel = tf.identity(inputs), tf.identity(kernel)

    def gradient(upstream):
        mirrored = tf.transpose(kernel[::-1, ::-1], [0, 1, 3, 2])
        exchanged = tf.raw_ops.Conv2DBackpropFilter(
            input=upstream,
            filter_sizes=[2, 2, kernel.shape[3], kernel.shape[2]],
            out_backprop=inputs,
            strides=[1, 1, 1, 1],
            padding="VALID",
        )
        return tf.nn.conv2d(upstream, mirrored, 1, "VALID"), tf.transpose(exchanged[::-1, ::-1], [0, 1, 3, 2])

    return tf.nn.conv2d(inputs, kernel, 1, [[0, 0], [1, 1], [1, 1], [0, 0]]), gradient


def _split_groups(inputs: tf.Tensor, kernel: tf.Tensor, groups: int) -> tf.Tensor:
    """A 1x1 convolution into [batch, h, w, groups, GROUP_WIDTH]; `kernel` [1, 1, channels, groups * GROUP_WIDTH]."""
    batch, height, width, channels = layers.dimensions(inputs)
    kernel = tf.transpose(tf.reshape(kernel, [1, 1, channels, groups, GROUP_WIDTH]), [0, 1, 3, 4, 2])
    shape = [batch, height, width, groups, GROUP_WIDTH]
    return tf.nn.conv3d_transpose(inputs[:, :, :, tf.newaxis], kernel, shape, [1] * 5, "VALID")


def _merge_groups(hidden: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """A 1x1 convolution of [batch, h, w, groups, GROUP_WIDTH]; `kernel` [1, 1, groups * GROUP_WIDTH, channels]."""
    groups, channels = hidden.shape[3], kernel.shape[3]
    kernel = tf.reshape(kernel, [1, 1, groups, GROUP_WIDTH, channels])
    return tf.nn.conv3d(hidden, kernel, [1] * 5, "VALID")[:, :, :, 0]


def _flat(hidden: tf.Tensor) -> tf.Tensor:
    """[batch, h, w, groups, width] as [batch, h, w, groups * width]."""
    *places, groups, width = layers.dimensions(hidden)
    return tf.reshape(hidden, [*places, groups * width])


def _average(hidden: tf.Tensor) -> tf.Tensor:
    """The average over an image, summed in float32: [batch, h, w, ...] to [batch, ...]."""
    return tf.cast(tf.reduce_mean(tf.cast(hidden, tf.float32), [1, 2]), hidden.dtype)


@tf.custom_gradient
def _gated_sum(branch: tf.Tensor, bias: tf.Tensor, gate: tf.Tensor, shortcut: tf.Tensor) -> tf.Tensor:
    """`(branch + bias) * gate + shortcut` for maps [batch, h, w, c], bias [c], gate [batch, c]."""
    biased, gate = tf.identity(branch + tf.cast(bias, branch.dtype)), tf.identity(gate)

    def gradient(upstream):
        exact = tf.cast(upstream, tf.float32)
        total = tf.reduce_sum(exact, [1, 2])
        along = tf.reduce_sum(exact * tf.cast(biased, tf.float32), [1, 2])
        bias_gradient = tf.reduce_sum(total * tf.cast(gate, tf.float32), 0)
        return upstream * gate[:, None, None, :], bias_gradient, tf.cast(along, gate.dtype), upstream

    return biased * gate[:, None, None, :] + shortcut, gradient
