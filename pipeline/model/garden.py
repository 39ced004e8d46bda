"""The TensorFlow Model Garden both ways: NFNet as one of its backbones, and its backbones as models of our trainer."""

import dataclasses
from collections.abc import Mapping

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams
from official.projects.maxvit.configs import backbones as maxvit_configs
from official.projects.maxvit.modeling import maxvit  # noqa: F401 (registers the backbone)
from official.vision.configs import common
from official.vision.modeling.backbones import factory

from pipeline.model import classifier, nfnet


@dataclasses.dataclass
class NFNet(hyperparams.Config):
    """Which NFNet the Garden's factory builds; fields as of `nfnet.create`."""

    variant: str = "F0"
    stochastic_depth_rate: float = 0.0


@dataclasses.dataclass
class Backbone(maxvit_configs.Backbone):
    """The Garden's choice of backbones, with NFNet; give it to any of its model configurations."""

    type: str | None = "nfnet"
    nfnet: NFNet = dataclasses.field(default_factory=NFNet)


class NFNetBackbone(nfnet.Trunk):
    """NFNet's feature maps by level, `{"2": ..., "5": ...}`, of stride `2**level`, as the Garden's models want them."""

    def __init__(self, variant: str, stochastic_depth_rate: float = 0.0):
        super().__init__(variant, stochastic_depth_rate, name="nfnet_backbone")
        self._config = {"variant": variant, "stochastic_depth_rate": stochastic_depth_rate}
        #: Level to shape of its map.
        self.output_specs = {
            str(level): tf.TensorShape([None, None, None, width]) for level, width in enumerate(self.widths, 2)
        }

    def call(  # type: ignore[override]  # the Garden wants a dictionary
        self, inputs: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """Maps normalised images [batch, h, w, 3] to feature maps by level."""
        return {str(level): each for level, each in enumerate(super().call(inputs, training, seed), 2)}

    def get_config(self) -> dict[str, object]:
        """The arguments that make an equal backbone."""
        return dict(self._config)


@factory.register_backbone_builder("nfnet")
def build_nfnet(
    input_specs: tf_keras.layers.InputSpec,
    backbone_config: Backbone,
    norm_activation_config: common.NormActivation,
    l2_regularizer: tf_keras.regularizers.Regularizer | None = None,
) -> NFNetBackbone:
    """Builds an NFNet for the Garden's factory; it has no normalisation to configure, and decay is the optimiser's."""
    del input_specs, norm_activation_config, l2_regularizer
    chosen = backbone_config.get()
    return NFNetBackbone(chosen.variant, chosen.stochastic_depth_rate)


class Trunk(tf_keras.Model):
    """A backbone of the Garden as a trunk of our classifier; made by `create`."""

    def __init__(self, variant: str, backbone: tf_keras.Model, image_size: int | None):
        super().__init__(name="trunk")
        self.variant = variant
        self.backbone = backbone
        self.channels = self.call(tf_keras.Input([image_size, image_size, 3]))[-1].shape[-1]
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None) -> list[tf.Tensor]:
        """Returns the map that the Garden's classification model takes: the last level, or a transformer's output.

        `seed` is not used: what is random in the Garden's layers is left off.
        """
        endpoints = self.backbone(images, training=training)
        last = endpoints[max(endpoints)]  # levels are '2' to '5'; a transformer's output is 'pre_logits'
        return [last if last.shape.rank == 4 else last[:, tf.newaxis, tf.newaxis]]


def create(
    backbone: str,
    num_classes: int,
    *,
    image_size: int | None = None,
    settings: Mapping[str, object] | None = None,
    target_device: str | None = None,
) -> classifier.Classifier:
    """Creates a classifier on one of the Garden's backbones, for our trainer.

    Dropout and stochastic depth stay off, since the Garden draws them from a state that no checkpoint keeps.

    Args:
      backbone: 'vit', 'maxvit', 'resnet', 'efficientnet', 'mobilenet' or another of the Garden's `Backbone` choices.
      num_classes: length of the logits.
      image_size: resolution in pixels, the same in training and evaluation; 'vit' and 'maxvit' need it, convolutional
        networks take any where it is None.
      settings: fields of the backbone's configuration, such as `{"model_name": "vit-s16"}`.
      target_device: see `classifier.py`; the Garden's operations are the same for all.

    Raises:
      ValueError: the backbone or a setting is unknown.
    """
    names = sorted({field.name for field in dataclasses.fields(Backbone)} - {"type", "nfnet"})
    if backbone not in names:
        raise ValueError(f"Unknown backbone {backbone!r}; the Garden has {', '.join(names)}.")
    if backbone in ("vit", "maxvit") and image_size is None:
        raise ValueError(f"Backbone {backbone!r} works at one resolution: set image_size.")
    chosen = Backbone(type=backbone)
    fields = chosen.get().as_dict()
    if unknown := sorted(set(settings or {}) - set(fields)):
        raise ValueError(f"Backbone {backbone!r} has no setting {', '.join(unknown)}; it has {', '.join(fields)}.")
    chosen.get().override(dict(settings or {}))
    del target_device
    # Keras numbers layers through a process; what checkpoints call them must not depend on models created before.
    tf_keras.backend.reset_uids()
    shape = [None, image_size, image_size, 3]
    network = factory.build_backbone(tf_keras.layers.InputSpec(shape=shape), chosen, common.NormActivation())
    return classifier.Classifier(Trunk(backbone, network, image_size), num_classes, name=f"garden_{backbone}")
