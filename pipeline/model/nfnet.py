"""NFNet: normaliser-free residual networks, from normalised images to logits."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import tensorflow as tf
import tf_keras

from pipeline.model import cpu_layers, layers, tpu_layers, variants

FORMS = {"plain": layers, "tpu": tpu_layers, "cpu": cpu_layers}
AUTO = "auto"
_device: contextvars.ContextVar[str | None] = contextvars.ContextVar("device", default=None)


@contextlib.contextmanager
def made_for(device: str) -> Iterator[None]:
    """Models created inside are made for this kind of device ('tpu', 'gpu' or 'cpu'), whatever this machine has."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


class Trunk(tf_keras.Model):
    """NFNet without its linear layer: from images to feature maps; arguments as of `create`."""

    def __init__(
        self,
        variant: str,
        stochastic_depth_rate: float = 0.0,
        recompute_stages: Sequence[int] = (),
        form: str = AUTO,
        **kwargs,
    ):
        super().__init__(**kwargs)
        spec = variants.get(variant)
        self._recompute_stages = frozenset(recompute_stages)
        self._plan = variants.blocks(spec)
        self._layers = FORMS[_form(form)]
        self.stem = [self._layers.WSConv(conv) for conv in variants.stem(spec)]
        self.blocks = [
            self._layers.NFBlock(block, stochastic_depth_rate * block.depth_fraction) for block in self._plan
        ]
        final = variants.final_conv(spec)
        self.final_conv = self._layers.WSConv(final)
        self.widths = (*spec.widths[:-1], final.channels)
        self.built = True

    def call(self, images, training=False, seed=None):
        """Returns four activated feature maps [batch, h, w, width], of strides 4, 8, 16 and 32 (rounded up).

        The first three are ends of stages; the fourth comes after the final convolution.

        Args:
          images: normalised float images [batch, height, width, 3].
          training: whether stochastic depth acts.
          seed: int32 [2], from which each block derives its noise; drawn if not given.
        """
        seed = seed_or_draw(seed, training)
        activation = self._layers.activation
        outputs = self._layers.stem(self.stem, tf.cast(images, self.compute_dtype))
        maps = []
        for index, (spec, block) in enumerate(zip(self._plan, self.blocks, strict=True)):
            if spec.stage > len(maps):
                maps.append(activation(outputs))
            outputs = self._run(spec, block, outputs, training, fold(seed, index) if training else None)
        return [*maps, activation(self.final_conv(outputs))]

    def _run(self, spec, block, inputs, training, seed):
        if training and spec.stage in self._recompute_stages:
            return tf.recompute_grad(lambda values: block(values, training=True, seed=seed))(inputs)
        return block(inputs, training=training, seed=seed)


class NFNet(tf_keras.Model):
    """A variant of the family with its linear layer; made by `create`."""

    def __init__(self, variant: str, num_classes: int, dropout_rate: float, trunk: Trunk):
        super().__init__(name=f"nfnet_{variant.replace('+', 'plus').lower()}")
        self.variant = variant
        self._dropout_rate = dropout_rate
        self.trunk = trunk
        small_normal = tf_keras.initializers.RandomNormal(stddev=0.01)
        self.linear = layers.Linear("linear", trunk.widths[-1], num_classes, small_normal, dtype=tf.float32)
        self.built = True

    def call(self, images, training=False, seed=None):
        """Returns float32 logits [batch, num_classes] of normalised images [batch, height, width, 3].

        Args:
          images: float images; at least 32 pixels a side are sensible.
          training: whether dropout and stochastic depth act.
          seed: int32 [2], from which each layer derives its noise; drawn if not given.
        """
        seed = seed_or_draw(seed, training)
        features = self.features(images, training, seed)
        if training and self._dropout_rate:
            features = layers.dropout(features, self._dropout_rate, fold(seed, len(self.trunk.blocks)))
        return self.linear(features)

    def features(self, images, training=False, seed=None):
        """Returns the float32 features [batch, channels] that the linear layer sees, before dropout."""
        last = self.trunk(images, training=training, seed=seed)[-1]
        return tf.reduce_mean(tf.cast(last, tf.float32), axis=[1, 2])


def create(
    variant: str,
    num_classes: int,
    *,
    dropout_rate: float | None = None,
    stochastic_depth_rate: float = 0.0,
    recompute_stages: Sequence[int] = (),
    form: str = AUTO,
) -> NFNet:
    """Creates an NFNet under the global Keras policy (float32, or mixed_bfloat16).

    Args:
      variant: 'F0' to 'F7', 'F0+' to 'F7+', or 'nano' or 'tiny' for one machine.
      num_classes: length of the logits.
      dropout_rate: before the linear layer; None takes the rate with which the variant was published.
      stochastic_depth_rate: grows linearly from 0 at the first block towards this after the last.
      recompute_stages: stages (0 to 3) whose activations are computed again in the backward pass
        instead of kept: less memory for about a third more time.
      form: 'plain', or the same function of the same variables in operations that suit a TPU, 'tpu' (`tpu_layers.py`),
        or training on a CPU, 'cpu' (`cpu_layers.py`); 'auto' takes 'tpu' under a `TPUStrategy`, and 'plain' elsewhere.

    Raises:
      ValueError: the variant is unknown, or a number is out of its range.
    """
    spec = variants.get(variant)
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; expected at least 1.")
    dropout_rate = spec.dropout_rate if dropout_rate is None else dropout_rate
    for name, rate in (("dropout_rate", dropout_rate), ("stochastic_depth_rate", stochastic_depth_rate)):
        if not 0 <= rate < 1:
            raise ValueError(f"{name} is {rate}; expected a number in [0, 1).")
    if unknown := set(recompute_stages) - set(range(len(spec.depths))):
        raise ValueError(f"recompute_stages names {sorted(unknown)}; the stages are 0, 1, 2 and 3.")
    if form not in (AUTO, *FORMS):
        raise ValueError(f"form is {form!r}; expected one of {AUTO}, {', '.join(FORMS)}.")
    trunk = Trunk(variant, stochastic_depth_rate, recompute_stages, form, name="trunk")
    return NFNet(variant, num_classes, dropout_rate, trunk)


def _form(form: str) -> str:
    if form != AUTO:
        return form
    under_tpu = isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)
    device = _device.get() or ("tpu" if under_tpu else "cpu")
    return "tpu" if device == "tpu" else "plain"


def seed_or_draw(seed: tf.Tensor | None, training: bool) -> tf.Tensor | None:
    """`seed`, or in training without one a seed [2] from TensorFlow's global generator."""
    if training and seed is None:
        return tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
    return seed


def fold(seed: tf.Tensor, index: int) -> tf.Tensor:
    """The seed of the layer with this index."""
    return tf.random.experimental.stateless_fold_in(seed, index)
