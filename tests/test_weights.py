import numpy as np
import pytest
import tensorflow as tf

from pipeline.model import nfnet, weights
from tests import golden_model


@pytest.mark.parametrize("source", weights.SOURCES)
def test_every_public_array_is_placed_and_gives_the_golden_logits(source):
    description, values = golden_model.load(source)
    model = golden_model.f0()
    for variable in model.variables:
        variable.assign(tf.zeros_like(variable))
    placement = weights.assign(model, golden_model.arrays(source), source)
    assert placement.is_complete, placement
    assert sorted(placement.placed) == sorted(weights.named(model))
    logits = model(golden_model.batch(description)[0]).numpy()
    # timm's GELU is exact where ours is the tanh approximation.
    tolerance = {"deepmind": 1e-5, "timm": 5e-4}[source]
    assert np.linalg.norm(logits - values["logits"]) < tolerance * np.linalg.norm(values["logits"])


@pytest.mark.parametrize("source", weights.SOURCES)
def test_extracting_gives_back_what_was_assigned(source):
    arrays, model = golden_model.arrays(source), golden_model.f0()
    weights.assign(model, arrays, source)
    extracted = weights.extract(model, source)
    assert set(extracted) == set(arrays)
    for key, array in arrays.items():
        assert extracted[key].dtype == np.float32
        np.testing.assert_allclose(extracted[key], array, rtol=1e-6, err_msg=key)


@pytest.mark.parametrize("source", weights.SOURCES)
def test_what_does_not_fit_is_named(source):
    model = nfnet.create("nano", 10)
    arrays = weights.extract(model, source)
    names = weights.their_names(weights.named(model), source)
    missing, wrong = names["stem/conv1/bias"], names["stage1/block0/conv0/kernel"]
    del arrays[missing]
    before = weights.named(model)["stage1/block0/conv0/kernel"].numpy()
    arrays[wrong] = arrays[wrong][..., :-1]
    arrays["a.unknown"] = np.zeros(3, np.float32)
    placement = weights.assign(model, arrays, source)
    assert placement.unplaced == ("a.unknown",)
    assert set(placement.unfilled) == {"stem/conv1/bias", "stage1/block0/conv0/kernel"}
    (sentence,) = placement.mismatched
    assert wrong in sentence
    assert str(list(arrays[wrong].shape)) in sentence
    assert not placement.is_complete
    np.testing.assert_array_equal(weights.named(model)["stage1/block0/conv0/kernel"], before)


def test_blocks_of_deeper_variants_are_numbered_through():
    names = weights.their_names(
        ["stage0/block0/skip_gain", "stage0/block1/skip_gain", "stage1/block0/skip_gain"], "deepmind"
    )
    assert list(names.values()) == [
        "NFNet/~/nf_block/skip_gain",
        "NFNet/~/nf_block_1/skip_gain",
        "NFNet/~/nf_block_2/skip_gain",
    ]


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match=r"'jax'.*deepmind, timm"):
        weights.assign(nfnet.create("nano", 10), {}, "jax")
