"""NFNet: normaliser-free residual networks, from normalised images to logits."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from pipeline.model import classifier, cpu_layers, gathered, layers, tpu_layers, variants

IMPLEMENTATIONS = {"plain": layers, "tpu": tpu_layers, "cpu": cpu_layers}
AUTO = "auto"


class Trunk(tf_keras.Model):
    """NFNet without its linear layer: from images to feature maps; arguments as of `create`.

    `stages` below 4 leaves out the later ones and the final convolution.
    """

    def __init__(
        self,
        variant: str,
        stochastic_depth_rate: float = 0.0,
        recompute_stages: Sequence[int] = (),
        implementation: str = AUTO,
        target_device: str | None = None,
        stages: int = len(variants.STAGE_STRIDES),
        name: str = "trunk",
    ):
        super().__init__(name=name)
        spec = variants.get(variant)
        layers.check_rate("stochastic_depth_rate", stochastic_depth_rate)
        if unknown := set(recompute_stages) - set(range(len(spec.depths))):
            raise ValueError(f"recompute_stages names {sorted(unknown)}; the stages are 0, 1, 2 and 3.")
        if not 1 <= stages <= len(spec.depths):
            raise ValueError(f"stages is {stages}; expected 1 to {len(spec.depths)}.")
        self.variant = variant
        self._recompute_stages = frozenset(recompute_stages)
        self._plan = [block for block in variants.blocks(spec) if block.stage < stages]
        self.implementation = choose_implementation(implementation, target_device)
        self._layers = IMPLEMENTATIONS[self.implementation]
        self.stem = [self._layers.WSConv(conv) for conv in variants.stem(spec)]
        self.blocks = [
            self._layers.NFBlock(block, stochastic_depth_rate * block.depth_fraction) for block in self._plan
        ]
        self.final_conv: Any = None  # where its stage is left out
        self.widths = spec.widths[:stages]
        if stages == len(spec.depths):
            final = variants.final_conv(spec)
            self.final_conv = self._layers.WSConv(final)
            self.widths = (*spec.widths[:-1], final.channels)
        self.channels = self.widths[-1]
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> list[tf.Tensor]:
        """Returns an activated feature map [batch, h, w, width] of each stage, of strides 4, 8, 16 and 32 (rounded up).

        They are the ends of stages, but for the fourth, which comes after the final convolution.

        Args:
          images: normalised float images [batch, height, width, 3].
          training: whether stochastic depth acts.
          seed: int32 [2], from which each block derives its noise; drawn if not given.
        """
        seed = layers.seed_or_draw(seed, training)
        activation = self._layers.activation
        outputs = self._layers.stem(self.stem, tf.cast(images, self.compute_dtype))
        maps: list[tf.Tensor] = []
        for index, (spec, block) in enumerate(zip(self._plan, self.blocks, strict=True)):
            if spec.stage > len(maps):
                maps.append(activation(outputs))
            outputs = self._run(spec, block, outputs, training, layers.fold(seed, index) if training else None)
        return [*maps, activation(self.final_conv(outputs) if self.final_conv else outputs)]

    def _run(self, spec, block, inputs, training, seed):
        if training and spec.stage in self._recompute_stages:
            # Kernels that are given go in as arguments: the gradient of a tensor that a function captures is lost.
            kernels = gathered.of(f"{spec.name}/")

            @tf.recompute_grad
            def run(values, *given):
                with gathered.using(dict(zip(kernels, given, strict=True))):
                    return block(values, training=True, seed=seed)

            return run(inputs, *kernels.values())
        return block(inputs, training=training, seed=seed)


def create(
    variant: str,
    num_classes: int,
    *,
    dropout_rate: float | None = None,
    stochastic_depth_rate: float = 0.0,
    recompute_stages: Sequence[int] = (),
    implementation: str = AUTO,
    target_device: str | None = None,
) -> classifier.Classifier:
    """Creates an NFNet under the global Keras policy (float32, or mixed_bfloat16).

    Args:
      variant: of the published family, 'F0' to 'F7' and 'F0+' to 'F7+', or one of `variants.SMALL` for one machine.
      num_classes: length of the logits.
      dropout_rate: before the linear layer; None takes the rate with which the variant was published.
      stochastic_depth_rate: grows linearly from 0 at the first block towards this after the last.
      recompute_stages: stages (0 to 3) whose activations are computed again in the backward pass
        instead of kept: less memory for about a third more time.
      implementation: of the layers: 'plain', or the same function of the same variables in operations that suit a TPU,
        'tpu' (`tpu_layers.py`), or training on a CPU, 'cpu' (`cpu_layers.py`); 'auto' chooses by `target_device`.
      target_device: see `classifier.py`; for 'any' the implementation is 'plain', whatever `implementation` says.

    Raises:
      ValueError: the variant is unknown, or an argument is out of its range.
    """
    trunk = Trunk(variant, stochastic_depth_rate, recompute_stages, implementation, target_device)
    if dropout_rate is None:
        dropout_rate = variants.get(variant).dropout_rate
    return classifier.Classifier(trunk, num_classes, dropout_rate, name=f"nfnet_{variants.identifier(variant)}")


def choose_implementation(implementation: str, target_device: str | None) -> str:
    """Returns the key of `IMPLEMENTATIONS` that `create` takes for these arguments.

    Raises:
      ValueError: an argument is unknown.
    """
    if implementation not in (AUTO, *IMPLEMENTATIONS):
        expected = ", ".join((AUTO, *IMPLEMENTATIONS))
        raise ValueError(f"implementation is {implementation!r}; expected one of {expected}.")
    if target_device not in (None, *classifier.DEVICES):
        raise ValueError(f"target_device is {target_device!r}; expected one of {', '.join(classifier.DEVICES)}.")
    if target_device == classifier.ANY_DEVICE:
        return "plain"
    if implementation != AUTO:
        return implementation
    if target_device is None and isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy):
        target_device = "tpu"
    return target_device if target_device in ("tpu", "cpu") else "plain"
