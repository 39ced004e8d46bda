import functools
import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.vision.configs import image_classification, retinanet
from official.vision.modeling import factory

from pipeline import registry
from pipeline.model import garden, garden_nfnet, graph_cost, nfnet, weights
from tests import record_sets

IMAGES = tf.random.stateless_normal([2, 64, 64, 3], [1, 2])
SPEC = tf_keras.layers.InputSpec(shape=[None, 64, 64, 3])
BACKBONES = {
    "vit": {"model_name": "vit-ti16"},
    "resnet": {"model_id": 50, "stem_type": "v1", "se_ratio": 0.25, "resnetd_shortcut": True},
}
OTHER_BACKBONES = {
    "efficientnet": {"model_id": "b0", "se_ratio": 0.25},
    "maxvit": {"model_name": "maxvit-tiny-for-test", "window_size": 2, "grid_size": 2},
}


def test_the_gardens_classification_model_on_nfnet_computes_what_nfnet_does():
    config = image_classification.ImageClassificationModel(
        num_classes=7, backbone=garden_nfnet.Backbone(type="nfnet", nfnet=garden_nfnet.NFNet(variant="nano"))
    )
    theirs = factory.build_classification_model(SPEC, config)
    ours = nfnet.create("nano", 7)
    assert len(theirs.trainable_variables) == len(ours.trainable_variables)
    by_name = {variable.name.split(":")[0]: variable for variable in theirs.trainable_variables}
    head = theirs.trainable_variables[-2:]
    for name, variable in weights.named(ours).items():
        target = by_name[name] if name in by_name else head[name.endswith("bias")]
        variable.assign(tf.random.stateless_normal(variable.shape, [3, len(name)]) * 0.5)
        target.assign(variable)
    np.testing.assert_allclose(theirs(IMAGES), ours(IMAGES), rtol=1e-3, atol=1e-4)


def test_retinanet_on_nfnet_takes_its_levels_and_learns_all_its_weights():
    config = retinanet.RetinaNet(
        num_classes=4,
        backbone=garden_nfnet.Backbone(nfnet=garden_nfnet.NFNet(variant="nano", stochastic_depth_rate=0.1)),
        min_level=3,
        max_level=6,
        input_size=[64, 64, 3],
    )
    model = factory.build_retinanet(SPEC, config)
    with tf.GradientTape() as tape:
        outputs = model(IMAGES, training=True)
        loss = sum(tf.reduce_mean(out**2) for kind in ("box_outputs", "cls_outputs") for out in outputs[kind].values())
    assert {level: out.shape[1] for level, out in outputs["box_outputs"].items()} == {"3": 8, "4": 4, "5": 2, "6": 1}
    gradients = tape.gradient(loss, model.backbone.trainable_variables)
    assert all(gradient is not None for gradient in gradients)


def test_the_backbone_is_made_again_from_its_configuration():
    backbone = garden_nfnet.NFNetBackbone("nano", stochastic_depth_rate=0.2)
    again = garden_nfnet.NFNetBackbone.from_config(backbone.get_config())
    assert {level: tuple(shape) for level, shape in again.output_specs.items()} == {
        "2": (None, None, None, 32),
        "3": (None, None, None, 64),
        "4": (None, None, None, 128),
        "5": (None, None, None, 256),
    }


@pytest.mark.parametrize(
    ("backbone", "settings"),
    [*BACKBONES.items(), *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHER_BACKBONES.items())],
)
def test_the_gardens_backbones_are_models_of_our_trainer(backbone, settings):
    model = garden.create(backbone, 5, image_size=64, settings=settings)
    names = list(weights.named(model))
    assert len(set(names)) == len(model.variables)
    assert names[-2:] == ["linear/kernel", "linear/bias"]
    logits = model(IMAGES, training=True, seed=tf.constant([1, 2]))
    assert logits.shape == (2, 5)
    assert logits.dtype == tf.float32
    np.testing.assert_array_equal(model(IMAGES), model(IMAGES, training=False, seed=tf.constant([5, 6])))


@pytest.mark.slow
def test_a_transformer_trains_resumes_and_exports_through_gin(tmp_path):
    record_sets.make(tmp_path / "records", examples=96, validation=24, classes=3)
    sizes = ["TRAIN_SIZE=32", "EVAL_SIZE=32", "GLOBAL_BATCH=16", "EPOCHS=2", "Experiment.ema_decay=0.9"]
    params = [f'DATA_DIR="{tmp_path / "records"}"', *sizes]
    for more in (["Experiment.max_steps=5"], [], ["RUN=@export"]):
        registry.run_configured(["gin/vit_demo.gin"], [*params, *more], str(tmp_path / "run"), force_resume=True)
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    assert summary["variant"] == "vit"
    assert [epoch["exactly_once"] for epoch in summary["ledger"]] == [True, True]
    assert (tmp_path / "run" / "saved_model" / "1" / "saved_model.pb").exists()


@functools.cache
def mobilenet():
    return garden.create("mobilenet", 5)


def test_names_do_not_depend_on_what_was_made_before():
    first = mobilenet()
    assert list(weights.named(garden.create("mobilenet", 5))) == list(weights.named(first))


def test_a_convolutional_backbone_takes_any_resolution():
    model = mobilenet()
    assert model(tf.zeros([1, 32, 32, 3])).shape == model(tf.zeros([1, 48, 40, 3])).shape == (1, 5)


def test_a_transformer_of_its_own_size_is_the_gardens():
    size = {"hidden_size": 384, "patch_size": 16, "transformer": {"mlp_dim": 1536, "num_heads": 6, "num_layers": 12}}
    ours = garden.create("vit", 5, image_size=64, settings=size)
    theirs = garden.create("vit", 5, image_size=64, settings={"model_name": "vit-s16"})
    shapes = [[tuple(variable.shape) for variable in weights.named(model).values()] for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert graph_cost.multiply_adds(ours, 64) == graph_cost.multiply_adds(theirs, 64)


def test_averages_of_batch_normalisation_follow_norm_momentum():
    """A step moves them by 1 - momentum of the way from 0 to the batch's mean."""
    models = [garden.create("mobilenet", 5, norm_activation={"norm_momentum": momentum}) for momentum in (0.9, 0.5)]
    models[1].set_weights(models[0].get_weights())
    first_means = []
    for model in models:
        model(IMAGES, training=True)
        first_means.append(next(value for name, value in weights.named(model).items() if name.endswith("moving_mean")))
    assert np.abs(first_means[0]).max() > 0
    np.testing.assert_allclose(first_means[1], 5 * first_means[0], rtol=1e-4)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_the_small_forms_build(family):
    params = ["EPOCHS=1", "GLOBAL_BATCH=64", "TRAIN_SIZE=24", "EVAL_SIZE=24", "Experiment.num_classes=5", "DATA_DIR=''"]
    setup = registry.configured(["gin/run/pretrain.gin", f"gin/model/{family}_pico.gin"], params)
    with tf.Graph().as_default():
        assert setup.create_model(5)(tf.zeros([2, 24, 24, 3])).shape == (2, 5)


@pytest.mark.parametrize(
    ("backbone", "settings", "billions"),
    [
        ("vit", {"model_name": "vit-s16"}, 4.6),
        ("resnet", {"model_id": 50}, 4.09),
        pytest.param("efficientnet", {}, 0.39, marks=pytest.mark.slow),
    ],
)
def test_multiply_adds_are_the_published_ones(backbone, settings, billions):
    model = garden.create(backbone, 1000, image_size=224, settings=settings)
    assert graph_cost.multiply_adds(model, 224) / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "alexnet"}, "Unknown backbone 'alexnet'; the Garden has .*maxvit.*vit"),
        ({"backbone": "vit"}, "'vit' works at one resolution: set image_size"),
        (
            {"backbone": "vit", "settings": {"model_name": "vit-s16", "patch_size": 8}, "image_size": 24},
            "either a model",
        ),
        ({"backbone": "resnet", "settings": {"depth": 3}}, "has no setting depth; it has .*model_id"),
        ({"backbone": "resnet", "norm_activation": {"momentum": 0.9}}, "no setting momentum; it has .*norm_momentum"),
        ({"backbone": "vit", "norm_activation": {"norm_momentum": 0.9}, "image_size": 24}, "no batch normalisation"),
    ],
)
def test_what_the_garden_does_not_have_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        garden.create(num_classes=5, **arguments)
