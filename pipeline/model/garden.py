"""Backbones of the TensorFlow Model Garden as models of our trainer; `garden_nfnet.py` is the other way."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import tensorflow as tf
import tf_keras

from pipeline.model import classifier

if TYPE_CHECKING:
    from official.modeling import hyperparams


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
    norm_activation: Mapping[str, object] | None = None,
    target_device: str | None = None,
) -> classifier.Classifier:
    """Creates a classifier on one of the Garden's backbones, for our trainer.

    Dropout and stochastic depth stay off, since the Garden draws them from a state that no checkpoint keeps.

    Args:
      backbone: 'vit', 'maxvit', 'resnet', 'efficientnet', 'mobilenet' or another of the Garden's `Backbone` choices.
      num_classes: length of the logits.
      image_size: resolution in pixels, the same in training and evaluation; 'vit' and 'maxvit' need it, convolutional
        networks take any where it is None.
      settings: fields of the backbone's configuration, such as `{"model_name": "vit-s16"}`. A 'vit' without a model
        name takes its size from `hidden_size`, `patch_size` and `transformer`.
      norm_activation: fields of the Garden's `NormActivation`, for convolutional networks. Its `norm_momentum` of 0.99
        suits thousands of steps: after a few hundred, evaluation still uses much of the averages' initial values.
      target_device: see `classifier.py`; the Garden's operations are the same for all.

    Raises:
      ValueError: the backbone or a setting is unknown.
    """
    # Here: the Garden takes a second to import, and models of ours do without it.
    from official.projects.maxvit.configs.backbones import Backbone
    from official.projects.maxvit.modeling import maxvit  # noqa: F401 (registers the backbone)
    from official.vision.configs import common
    from official.vision.modeling.backbones import factory

    names = sorted({field.name for field in dataclasses.fields(Backbone)} - {"type"})
    if backbone not in names:
        raise ValueError(f"Unknown backbone {backbone!r}; the Garden has {', '.join(names)}.")
    if backbone in ("vit", "maxvit") and image_size is None:
        raise ValueError(f"Backbone {backbone!r} works at one resolution: set image_size.")
    if backbone == "vit" and norm_activation:
        raise ValueError("A 'vit' has no batch normalisation: norm_activation is for other backbones.")
    chosen = Backbone(type=backbone)
    _override(f"Backbone {backbone!r}", chosen.get(), settings or {})
    norms = common.NormActivation()
    _override("norm_activation", norms, norm_activation or {})
    del target_device
    own_size = backbone == "vit" and bool({"hidden_size", "patch_size", "transformer"} & set(settings or {}))
    if own_size and "model_name" in (settings or {}):
        raise ValueError("A 'vit' has either a model_name or a size of its own (hidden_size, patch_size, transformer).")
    # Keras numbers layers through a process; what checkpoints call them must not depend on models created before.
    tf_keras.backend.reset_uids()
    shape = [None, image_size, image_size, 3]
    specs = tf_keras.layers.InputSpec(shape=shape)
    if own_size:
        network = _vision_transformer(chosen.get().as_dict(), specs)
    else:
        network = factory.build_backbone(specs, chosen, norms)
    return classifier.Classifier(Trunk(backbone, network, image_size), num_classes, name=f"garden_{backbone}")


def _override(name: str, config: "hyperparams.Config", settings: Mapping[str, object]) -> None:
    """Sets fields of `config`, one of the Garden's configurations, which a message calls `name`."""
    fields = config.as_dict()
    if unknown := sorted(set(settings) - set(fields)):
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(fields)}.")
    config.override(dict(settings))


def _vision_transformer(fields: dict, specs: tf_keras.layers.InputSpec) -> tf_keras.Model:
    """A transformer of the size that `fields` give; the Garden's factory builds those of its table alone."""
    from official.vision.modeling.backbones import vit

    fields = {name: value for name, value in fields.items() if name != "model_name"}
    return vit.VisionTransformer(input_specs=specs, **fields.pop("transformer"), **fields)
