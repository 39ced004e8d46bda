import pytest
import tf_keras

from pipeline.model import nfnet, weights
from pipeline.train import freezing


def test_frozen_layers_leave_the_trainable_variables():
    model = nfnet.create("nano", 5)
    frozen = freezing.freeze(model, ["stem/*", "stage[01]/*"])
    names = [variable.name.split(":")[0] for variable in model.trainable_variables]
    assert set(frozen) == {name for name in weights.named(model) if name.startswith(("stem/", "stage0/", "stage1/"))}
    assert [name for name in weights.named(model) if name not in frozen] == names
    assert "stage2/block0/skip_gain" in names


def test_a_frozen_normalisation_layer_stops_following_the_data():
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(3, input_shape=(2,), name="dense"),
            tf_keras.layers.BatchNormalization(name="norm"),
            tf_keras.layers.Dense(1, name="head"),
        ]
    )
    freezing.freeze(model, ["norm/*"])
    before = model.get_layer("norm").moving_mean.numpy().copy()
    model(5 + 0 * model.get_layer("dense").kernel[:1, :2], training=True)
    assert (model.get_layer("norm").moving_mean.numpy() == before).all()
    assert len(model.trainable_variables) == 4


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["stage9/*"], r"Nothing to freeze fits 'stage9/\*'"),
        (["stem/conv0/kernel"], "only part of one: stem/conv0/kernel"),
        (["*"], "nothing is left to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused(patterns, message):
    with pytest.raises(ValueError, match=message):
        freezing.freeze(nfnet.create("nano", 5), patterns)
