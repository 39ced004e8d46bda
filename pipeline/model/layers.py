"""NFNet's layers, the reference implementation: each computes its formula in TensorFlow's plain operations.

`tpu_layers.py` and `cpu_layers.py` inherit the variables of these classes and override `call`. This file alone creates
variables: at construction, named by their path (`stage0/block0/conv0/kernel`), in float32 whatever the Keras policy.
Layers compute in the policy's compute dtype; kernels are HWIO; noise is a function of a seed.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf
import tf_keras

from pipeline.model import gathered, variants

ACTIVATION_GAIN = 1.7015043497085571  # makes the activation of a unit normal input have unit variance
STANDARDIZATION_EPSILON = 1e-4


def activation(inputs: tf.Tensor) -> tf.Tensor:
    """GELU (tanh approximation), scaled to preserve the variance of a unit normal input."""
    return tf.nn.gelu(inputs, approximate=True) * tf.cast(ACTIVATION_GAIN, inputs.dtype)


def standardize(kernel: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
    """Scaled weight standardisation of a float32 HWIO kernel over the fan-in of each output channel.

    `gain * (w - mean) / sqrt(max(var * fan_in, 1e-4))`, `gain` one value per output channel.
    """
    mean, variance = tf.nn.moments(kernel, axes=[0, 1, 2], keepdims=True)
    fan_in = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
    scale = tf.math.rsqrt(tf.maximum(variance * fan_in, STANDARDIZATION_EPSILON)) * gain
    return (kernel - mean) * scale


def dropout(inputs: tf.Tensor, rate: float, seed: tf.Tensor) -> tf.Tensor:
    """Zeroes a share `rate` of the values, and scales up the others; the same mask for the same seed."""
    return tf.nn.experimental.stateless_dropout(inputs, rate, seed)


def stochastic_depth(branch: tf.Tensor, rate: float, seed: tf.Tensor) -> tf.Tensor:
    """Zeroes a residual branch [batch, h, w, c] for a share `rate` of the examples, without rescaling."""
    keep = survivors([tf.shape(branch)[0], 1, 1, 1], rate, seed)
    return branch * tf.cast(keep, branch.dtype)


def survivors(shape: tf.Tensor | Sequence[int | tf.Tensor], rate: float, seed: tf.Tensor) -> tf.Tensor:
    """1 for the examples whose branch stochastic depth keeps, 0 for a share `rate`: float32 of `shape`."""
    return tf.cast(tf.random.stateless_uniform(shape, seed) >= rate, tf.float32)


class WSConv(tf_keras.layers.Layer):
    """A convolution of weight-standardised kernel, with bias and `SAME` padding.

    Attributes:
      kernel, gain, bias: float32 variables: HWIO, [channels], [channels].
      scale: constant by which the standardised kernel is multiplied, on a TPU; 1 elsewhere.
    """

    def __init__(self, spec: variants.Conv):
        super().__init__(name=spec.name.replace("/", "_"))
        self._spec, self.scale = spec, 1.0
        self.stride, self.groups, self.channels = spec.stride, spec.groups, spec.channels
        shape = (spec.kernel, spec.kernel, spec.in_channels // spec.groups, spec.channels)
        normal = tf_keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal")
        self.kernel = _weight(self, f"{spec.name}/kernel", shape, normal)
        self.gain = _weight(self, f"{spec.name}/gain", (spec.channels,), "ones")
        self.bias = _weight(self, f"{spec.name}/bias", (spec.channels,), "zeros")

    def standardized(self) -> tf.Tensor:
        """The kernel that convolves, times `scale`, in the compute dtype: HWIO."""
        given = gathered.get(gathered.standardized(self.kernel.name))
        return self._standardize() if given is None else given

    def _standardize(self) -> tf.Tensor:
        return tf.cast(standardize(tf.convert_to_tensor(self.kernel), self.gain), self.compute_dtype)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps [batch, h, w, in_channels] to [batch, ceil(h / stride), ceil(w / stride), channels]."""
        outputs = tf.nn.conv2d(inputs, self.standardized(), self._spec.stride, "SAME")
        return tf.nn.bias_add(outputs, tf.cast(self.bias, self.compute_dtype))


class Linear(tf_keras.layers.Layer):
    """A linear layer with bias, on [batch, in_channels]."""

    def __init__(
        self,
        name: str,
        in_channels: int,
        channels: int,
        initializer: tf_keras.initializers.Initializer,
        dtype: tf.DType | None = None,
    ):
        super().__init__(name=name.replace("/", "_"), dtype=dtype)
        self.kernel = _weight(self, f"{name}/kernel", (in_channels, channels), initializer)
        self.bias = _weight(self, f"{name}/bias", (channels,), "zeros")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps [batch, in_channels] to [batch, channels]."""
        dtype = self.compute_dtype
        return tf.matmul(inputs, tf.cast(self.kernel, dtype)) + tf.cast(self.bias, dtype)


class SqueezeExcite(tf_keras.layers.Layer):
    """A gate in (0, 1) for each channel, from the channels' global averages."""

    def __init__(self, name: str, channels: int, hidden: int):
        super().__init__(name=name.replace("/", "_"))
        self.fc0 = Linear(f"{name}/fc0", channels, hidden, tf_keras.initializers.LecunNormal())
        self.fc1 = Linear(f"{name}/fc1", hidden, channels, tf_keras.initializers.LecunNormal())

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps [batch, h, w, channels] to gates [batch, 1, 1, channels]."""
        return self.gate(tf.reduce_mean(inputs, axis=[1, 2]))[:, tf.newaxis, tf.newaxis, :]

    def gate(self, averages: tf.Tensor) -> tf.Tensor:
        """Maps the channels' averages [batch, channels] to gates [batch, channels]."""
        return tf.sigmoid(self.fc1(tf.nn.relu(self.fc0(averages))))


class NFBlock(tf_keras.layers.Layer):
    """A residual block without normalisation; `drop_rate` is its rate of stochastic depth."""

    conv = WSConv

    def __init__(self, spec: variants.Block, drop_rate: float):
        super().__init__(name=spec.name.replace("/", "_"))
        self._spec = spec
        self._drop_rate = drop_rate
        self.convs = [self.conv(conv) for conv in spec.convs]
        self.conv_shortcut = self.conv(spec.shortcut) if spec.shortcut else None
        channels = spec.convs[-1].channels
        self.squeeze_excite = SqueezeExcite(f"{spec.name}/squeeze_excite", channels, spec.squeeze)
        self.skip_gain = _weight(self, f"{spec.name}/skip_gain", (), "zeros")

    def call(self, inputs: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Maps [batch, h, w, c] to the stage's width and stride; `seed` (int32 [2]) drives the noise."""
        activated = activation(inputs) * tf.cast(self._spec.beta, inputs.dtype)
        branch = self.convs[0](activated)
        for conv in self.convs[1:]:
            branch = conv(activation(branch))
        branch *= 2 * self.squeeze_excite(branch)
        if training and self._drop_rate:
            branch = stochastic_depth(branch, self._drop_rate, seed)
        branch *= tf.cast(variants.ALPHA * self.skip_gain, branch.dtype)
        return branch + self._shortcut(inputs, activated)

    def _shortcut(self, inputs, activated):
        if self.conv_shortcut is None:
            return inputs
        if self._spec.stride > 1:
            activated = tf.nn.avg_pool2d(activated, 2, self._spec.stride, "SAME")
        return self.conv_shortcut(activated)


def seed_or_draw(seed: tf.Tensor | None, training: bool) -> tf.Tensor | None:
    """`seed`, or in training without one a seed [2] from TensorFlow's global generator."""
    if training and seed is None:
        return tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
    return seed


def fold(seed: tf.Tensor, index: int) -> tf.Tensor:
    """The seed of the layer with this index."""
    return tf.random.experimental.stateless_fold_in(seed, index)


def check_rate(name: str, rate: float) -> None:
    """Raises a ValueError where `rate`, of dropout or stochastic depth, is not in [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"{name} is {rate}; expected a number in [0, 1).")


def stem(
    convs: Sequence[WSConv], images: tf.Tensor, activation: Callable[[tf.Tensor], tf.Tensor] = activation
) -> tf.Tensor:
    """The four convolutions before the first block, from images [batch, h, w, 3] to [batch, h / 4, w / 4, channels]."""
    outputs = convs[0](images)
    for conv in convs[1:]:
        outputs = conv(activation(outputs))
    return outputs


def dimensions(values: tf.Tensor) -> list:
    """The shape, with a tensor for each dimension that is not known before the run."""
    dynamic = tf.shape(values)
    return [dynamic[i] if size is None else size for i, size in enumerate(values.shape)]


def _weight(layer, name, shape, initializer):
    # Without autocast the variable reads as float32, so that standardisation is done in float32.
    return layer.add_weight(
        name=name, shape=shape, initializer=initializer, experimental_autocast=False, dtype=tf.float32
    )
