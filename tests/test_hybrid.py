import json

import numpy as np
import pytest
import tensorflow as tf

from pipeline import registry
from pipeline.model import hybrid, nfnet, weights
from tests import record_sets

IMAGES = tf.random.stateless_normal([2, 24, 24, 3], [1, 2])
ENCODER = {"num_layers": 2, "num_heads": 3, "mlp_dim": 64}


def create(**changes):
    settings = {"variant": "nano", "image_size": 24, "hidden_size": 48, "transformer": ENCODER, **changes}
    return hybrid.create(num_classes=5, **settings)


def test_its_tokens_are_the_positions_of_an_nfnets_map():
    model, whole = create(), nfnet.create("nano", 5)
    theirs = weights.named(whole)
    for name, variable in weights.named(model).items():
        if name in theirs and not name.startswith("linear/"):
            variable.assign(tf.random.stateless_normal(variable.shape, [3, len(name)]) * 0.5)
            theirs[name].assign(variable)
    maps = model.trunk(IMAGES)
    assert [tuple(each.shape) for each in maps] == [(2, 6, 6, 32), (2, 3, 3, 64), (2, 3, 3, 48)]
    for ours, expected in zip(maps, whole.trunk(IMAGES)[:2], strict=False):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.features(IMAGES), tf.reduce_mean(maps[-1], [1, 2]), rtol=1e-6)


def test_all_its_weights_learn_and_attend_to_all_positions():
    model = create()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(IMAGES, training=True, seed=tf.constant([1, 2])) ** 2)
    assert all(gradient is not None for gradient in tape.gradient(loss, model.trainable_variables))
    one = np.zeros_like(IMAGES)
    one[:, :4, :4] = 1
    difference = model.trunk(IMAGES + one)[-1] - model.trunk(IMAGES)[-1]
    assert np.abs(difference).max(axis=(0, 3)).min() > 0


def test_names_are_distinct_and_do_not_depend_on_what_was_made_before():
    names = list(weights.named(create()))
    assert len(set(names)) == len(create().variables)
    assert names == list(weights.named(create()))
    assert names[-2:] == ["linear/kernel", "linear/bias"]


@pytest.mark.parametrize(("stages", "shape"), [(1, (6, 6)), (3, (2, 2)), (4, (1, 1))])
def test_it_can_be_cut_after_any_stage(stages, shape):
    assert create(stages=stages).trunk(IMAGES)[-1].shape[1:3] == shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": 5}, "stages is 5; expected 1 to 4"),
        ({"hidden_size": 50}, "hidden_size is 50; expected a multiple of num_heads, 3"),
        ({"transformer": {"num_layers": 2}}, r"sets \['num_layers'\]; expected mlp_dim, num_heads, num_layers"),
        ({"transformer": ENCODER | {"num_heads": 0}}, "num_heads of a hybrid is 0; expected 1 or more"),
        ({"image_size": 0}, "image_size of a hybrid is 0"),
        ({"variant": "G7"}, "Unknown variant 'G7'"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        create(**changes)


@pytest.mark.slow
def test_it_trains_and_exports_through_gin(tmp_path):
    record_sets.make(tmp_path / "records", examples=96, validation=24, classes=3)
    files = ["gin/study/vit/demo_pretrain.gin", "gin/model/hybrid_nano.gin"]
    params = [f'DATA_DIR="{tmp_path / "records"}"', "GLOBAL_BATCH=16", "RUN=[@train, @export]"]
    registry.run_configured(files, params, str(tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    assert summary["variant"] == "hybrid"
    assert [epoch["exactly_once"] for epoch in summary["ledger"]] == [True]
    model = tf.saved_model.load(str(tmp_path / "run" / "saved_model" / "1"))
    answer = model.signatures["predict_images"](images=tf.zeros([2, 30, 40, 3], tf.uint8))
    assert answer["probabilities"].shape == (2, 3)
