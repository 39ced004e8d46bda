"""The first stages of an NFNet and a transformer on top of them, whose tokens are the positions of their last map."""

from collections.abc import Mapping

import tensorflow as tf
import tf_keras

from pipeline.model import classifier, nfnet, variants


class Trunk(tf_keras.Model):
    """Stages of an NFNet and a transformer as a trunk of our classifier; made by `create`."""

    def __init__(self, convolutions: nfnet.Trunk, transformer: tf_keras.Model):
        super().__init__(name="trunk")
        self.variant = "hybrid"
        self.convolutions = convolutions
        self.transformer = transformer
        self.channels = transformer.output_shape[-1]
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> list[tf.Tensor]:
        """Returns the maps of the stages, and the transformer's output at the last one's positions."""
        maps = self.convolutions(images, training=training, seed=seed)
        return [*maps, self.transformer(maps[-1], training=training)]


def create(
    variant: str,
    num_classes: int,
    *,
    image_size: int,
    hidden_size: int,
    transformer: Mapping[str, int],
    stages: int = 2,
    target_device: str | None = None,
) -> classifier.Classifier:
    """Creates a hybrid of an NFNet and the Garden's transformer, without dropout.

    Args:
      variant: of NFNet.
      num_classes: length of the logits.
      image_size: resolution in pixels, the same in training and evaluation, since each position has an embedding.
      hidden_size: channels of the transformer.
      transformer: `num_layers`, `num_heads` and `mlp_dim` of the Garden's encoder.
      stages: of the NFNet, 1 to 4, of strides 4, 8, 16 and 32 (rounded up).
      target_device: see `classifier.py`.

    Raises:
      ValueError: an argument is unknown or out of its range.
    """
    # Here: the Garden takes a second to import, and models of ours do without it.
    from official.vision.modeling.backbones import vit

    sizes = {"num_layers", "num_heads", "mlp_dim"}
    if set(transformer) != sizes:
        raise ValueError(f"hybrid.transformer sets {sorted(transformer)}; expected {', '.join(sorted(sizes))}.")
    for name, value in {"image_size": image_size, "hidden_size": hidden_size, **transformer}.items():
        if value < 1:
            raise ValueError(f"{name} of a hybrid is {value}; expected 1 or more.")
    if hidden_size % transformer["num_heads"]:
        raise ValueError(
            f"hybrid.hidden_size is {hidden_size}; expected a multiple of num_heads, {transformer['num_heads']}."
        )
    convolutions = nfnet.Trunk(variant, target_device=target_device, stages=stages)
    side = image_size
    for stride in (2, 2, *variants.STAGE_STRIDES[:stages]):  # the stem's first
        side = -(-side // stride)
    # Keras numbers layers through a process; what checkpoints call them must not depend on models created before.
    tf_keras.backend.reset_uids()
    feature_map = tf_keras.Input([side, side, convolutions.channels])
    tokens = tf_keras.layers.Conv2D(hidden_size, 1, name="embedding")(feature_map)
    tokens = tf_keras.layers.Reshape([side * side, hidden_size])(tokens)
    encoder = vit.Encoder(**transformer, dropout_rate=0.0, attention_dropout_rate=0.0, name="encoder")
    outputs = tf_keras.layers.Reshape([side, side, hidden_size])(encoder(tokens))
    trunk = Trunk(convolutions, tf_keras.Model(feature_map, outputs, name="transformer"))
    return classifier.Classifier(trunk, num_classes, name=f"hybrid_{variants.identifier(variant)}")
