"""NFNet's layers in operations that TensorFlow trains fastest on a CPU: the functions and variables of `layers.py`.

Only `call` differs, and the functions that it uses; `tests/test_cpu_layers.py` compares values and gradients. What each
of these changes gives is in docs/performance.md:

- Chains of elementwise operations are compiled by XLA, each into one pass over memory, forward and backward, with
  float32 in between. Convolutions, products and sums stay with TensorFlow, whose own are faster on a CPU.
- A 1x1 convolution is a matrix product, of kernels as they are stored; the gradient of its kernel gains most.
- The gate, the gains and the sum with the shortcut are one pass.
"""

import functools
import math
from collections.abc import Sequence

import tensorflow as tf

from pipeline.model import layers, variants

compiled = functools.partial(tf.function, jit_compile=True, autograph=False)


def activation(inputs: tf.Tensor, scale: float = 1.0) -> tf.Tensor:
    """As `scale * layers.activation(inputs)`."""

    @tf.custom_gradient
    def activated(inputs):
        # The gradient computes it again from the inputs: in a compiled pass arithmetic is cheap beside memory.
        return _activation(inputs, scale), lambda upstream: _activation_gradient(upstream, inputs, scale)

    return activated(inputs)


@compiled
def _activation(inputs, scale):
    return tf.cast(scale * layers.activation(tf.cast(inputs, tf.float32)), inputs.dtype)


@compiled
def _activation_gradient(upstream, inputs, scale):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = _activation(inputs, scale)
    return tape.gradient(outputs, inputs, upstream)


def standardize(kernel: tf.Tensor, gain: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """As `layers.standardize`, in `dtype`."""

    @tf.custom_gradient
    def standardized(kernel, gain):
        def gradient(upstream):
            return _standardize_gradients(upstream, kernel, gain)

        return _standardize(kernel, gain, dtype), gradient

    return standardized(kernel, gain)


@compiled
def _standardize(kernel, gain, dtype):
    centred, inverse, _ = _statistics(kernel)
    return tf.cast(centred * (inverse * gain), dtype)


@compiled
def _standardize_gradients(upstream, kernel, gain):
    """With d of `upstream`, a = gain / deviation: `a * (d - mean(d) - centred * mean(d * centred) / variance)`."""
    centred, inverse, floored = _statistics(kernel)
    fan_in = float(math.prod(kernel.shape[:-1]))
    upstream = tf.cast(upstream, tf.float32)
    along = _sum_rows(upstream * centred)
    back = tf.where(floored, tf.zeros_like(along), along * tf.square(inverse))
    kernel_gradient = inverse * gain * (upstream - _sum_rows(upstream) / fan_in - centred * back)
    return kernel_gradient, along * inverse


def _statistics(kernel):
    """The kernel less its mean; 1 / sqrt(variance * fan_in), floored; where it is. The last two by output channel."""
    centred = kernel - _sum_rows(kernel) / float(math.prod(kernel.shape[:-1]))
    spread = _sum_rows(tf.square(centred))
    floored = spread < layers.STANDARDIZATION_EPSILON
    return centred, tf.math.rsqrt(tf.maximum(spread, layers.STANDARDIZATION_EPSILON)), floored


def _sum_rows(values):
    """The sum over all axes but the last.

    Parts are added elementwise first: XLA's own sum over the leading axes of a matrix is several times slower.
    """
    rows = math.prod(values.shape[:-1])
    parts = math.gcd(rows, 8)
    split = tf.reshape(values, [parts, rows // parts, values.shape[-1]])
    return tf.reduce_sum(tf.add_n([split[part] for part in range(parts)]), 0)


@tf.custom_gradient
def _linear(inputs, kernel, bias):
    def gradient(upstream):
        # TensorFlow's own gradient of a bias is summed in bfloat16, off by a quarter over a large map; a product's is
        # summed in float32.
        ones = tf.ones([1, tf.shape(upstream)[0]], upstream.dtype)
        return (
            tf.matmul(upstream, kernel, transpose_b=True),
            tf.matmul(inputs, upstream, transpose_a=True),
            tf.matmul(ones, upstream)[0],
        )

    return tf.nn.bias_add(tf.matmul(inputs, kernel), bias), gradient


@tf.custom_gradient
def gated_sum(branch: tf.Tensor, gate: tf.Tensor, shortcut: tf.Tensor) -> tf.Tensor:
    """`branch * gate + shortcut` for maps [batch, h, w, c] and a float32 gate [batch, c]."""

    def gradient(upstream):
        scaled, along = _gated_gradients(upstream, branch, gate)
        return scaled, tf.reduce_sum(along, [1, 2]), upstream

    return _gated_sum(branch, gate, shortcut), gradient


@compiled
def _gated_sum(branch, gate, shortcut):
    exact = tf.cast(branch, tf.float32) * gate[:, tf.newaxis, tf.newaxis, :] + tf.cast(shortcut, tf.float32)
    return tf.cast(exact, branch.dtype)


@compiled
def _gated_gradients(upstream, branch, gate):
    exact = tf.cast(upstream, tf.float32)
    scaled = tf.cast(exact * gate[:, tf.newaxis, tf.newaxis, :], branch.dtype)
    return scaled, exact * tf.cast(branch, tf.float32)


class WSConv(layers.WSConv):
    """A convolution of weight-standardised kernel, with bias and `SAME` padding."""

    def _standardize(self) -> tf.Tensor:
        return standardize(tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.gain), self.compute_dtype)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """As `layers.WSConv.call`."""
        kernel, bias = self.standardized(), tf.cast(self.bias, self.compute_dtype)
        if self._spec.kernel == self.stride == 1:
            flat = tf.reshape(inputs, [-1, kernel.shape[2]])
            outputs = _linear(flat, tf.reshape(kernel, kernel.shape[2:]), bias)
            return tf.reshape(outputs, [*layers.dimensions(inputs)[:3], self.channels])
        outputs = tf.nn.conv2d(inputs, kernel, self.stride, "SAME")
        return tf.nn.bias_add(outputs, bias)


class NFBlock(layers.NFBlock):
    """A residual block without normalisation."""

    conv = WSConv

    def call(self, inputs: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> tf.Tensor:
        """As `layers.NFBlock.call`."""
        activated = activation(inputs, scale=self._spec.beta)
        branch = self.convs[0](activated)
        for conv in self.convs[1:]:
            branch = conv(activation(branch))
        gate = self.squeeze_excite.gate(tf.reduce_mean(branch, [1, 2]))
        gate = tf.cast(gate, tf.float32) * (2 * variants.ALPHA * self.skip_gain)
        if training and self._drop_rate:
            gate *= layers.survivors([tf.shape(gate)[0], 1], self._drop_rate, seed)
        return gated_sum(branch, gate, self._shortcut(inputs, activated))


def stem(convs: Sequence[WSConv], images: tf.Tensor) -> tf.Tensor:
    """As `layers.stem`."""
    return layers.stem(convs, images, activation)
