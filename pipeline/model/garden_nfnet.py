"""NFNet as a backbone of the TensorFlow Model Garden, for any of its tasks; importing this module registers it."""

import dataclasses

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams
from official.projects.maxvit.configs import backbones as maxvit_configs
from official.vision.configs import common
from official.vision.modeling.backbones import factory

from pipeline.model import nfnet


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
