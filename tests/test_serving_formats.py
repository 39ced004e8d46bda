"""A model as ONNX and as LiteRT, against the model itself."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline import other_formats
from pipeline.model import garden, nfnet
from pipeline.serving import folding
from pipeline.serving.formats import litert, onnx
from tests import implementations, record_sets, tiny_runs

CLASSES = 7


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Its validation split does not fill the last batch, and the sides of its images are odd."""
    path = tmp_path_factory.mktemp("records")
    record_sets.make(path, classes=CLASSES)
    return tiny_runs.experiment(path, data={"eval_size": 33})


@pytest.fixture(scope="module")
def pico():
    return inference_form("pico")


def inference_form(variant):
    model = nfnet.create(variant, CLASSES, target_device="any")
    implementations.randomize(model)
    return folding.fold(model)


def test_each_file_is_compared_on_the_whole_validation_split(pico, experiment, tmp_path):
    compared = other_formats.write(["onnx", "litert"], pico, experiment, str(tmp_path))
    assert compared.keys() == {"model.onnx", "model.tflite"} == {path.name for path in tmp_path.iterdir()}
    for result in compared.values():
        assert (result["examples"], result["top1_equal"]) == (50, 1)
        assert result["difference"] < 1e-5


@pytest.mark.parametrize("module", [onnx, litert])
def test_a_file_takes_any_batch(pico, module, tmp_path):
    path = str(tmp_path / "model")
    module.write(pico, 40, path)
    for batch in (1, 5):
        images = np.random.default_rng(0).integers(0, 256, [batch, 40, 40, 3], np.uint8)
        expected = pico(tf.constant(images)).logits
        np.testing.assert_allclose(module.Runner(path)(images), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["F0", "F1+"])
def test_the_published_family_as_onnx(variant, tmp_path):
    form = inference_form(variant)
    path = str(tmp_path / "model.onnx")
    onnx.write(form, 65, path)
    images = np.random.default_rng(0).integers(0, 256, [2, 65, 65, 3], np.uint8)
    expected = form(tf.constant(images)).logits
    np.testing.assert_allclose(onnx.Runner(path)(images), expected, atol=1e-5 * np.abs(expected).max())


def test_a_file_that_answers_otherwise_is_refused(pico, experiment, tmp_path, monkeypatch):
    class Wrong(onnx.Runner):
        def __call__(self, images):
            return 1.01 * super().__call__(images)

    monkeypatch.setattr(onnx, "Runner", Wrong)
    with pytest.raises(other_formats.FormatError, match=r"onnx differs from itself by 0\.01 .* 50 validation examples"):
        other_formats.write(["onnx"], pico, experiment, str(tmp_path))


def test_a_file_that_answers_with_no_number_is_refused(pico, experiment, tmp_path, monkeypatch):
    class Broken(onnx.Runner):
        def __call__(self, images):
            return np.full_like(super().__call__(images), np.nan)

    monkeypatch.setattr(onnx, "Runner", Broken)
    with pytest.raises(other_formats.FormatError, match="differs from itself by nan"):
        other_formats.write(["onnx"], pico, experiment, str(tmp_path))


def test_what_cannot_be_written_is_refused(pico, experiment, tmp_path):
    with pytest.raises(ValueError, match=r"names \['coreml'\]; expected some of \['litert', 'onnx'\]"):
        other_formats.write(["coreml", "onnx"], pico, experiment, str(tmp_path))
    other = folding.fold(garden.create("mobilenet", CLASSES))
    with pytest.raises(ValueError, match="Only NFNets can be written as ONNX"):
        other_formats.write(["onnx"], other, experiment, str(tmp_path))
