"""The exported SavedModel and its client, with a network small enough to export in a moment."""

import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline.data import augment
from pipeline.serving import client
from tests.served_model import CLASSES, SIZE, brightness, encoded, export


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """An export whose model has one class more than there are names."""
    path = tmp_path_factory.mktemp("saved_model")
    export(path, top=2)
    return path


@pytest.fixture(scope="module")
def model(directory):
    return client.load(str(directory))


def serve(model, images):
    signature = model.signatures["serving_default"]
    return {name: value.numpy() for name, value in signature(image_bytes=tf.constant(images)).items()}


def test_signature_takes_bytes_and_returns_probabilities_and_names(model):
    output = serve(model, [encoded(10), encoded(250, "PNG")])
    assert output["probabilities"].shape == (2, 3)
    assert output["probabilities"].sum(1) == pytest.approx([1, 1], abs=0.3)  # the class without a name takes a share
    assert output["top_classes"].tolist() == [[b"dark", b"middle"], [b"bright", b"middle"]]
    np.testing.assert_array_equal(output["top_probabilities"][:, 0], output["probabilities"].max(1))
    assert client.classes(model) == CLASSES


def test_the_exported_view_is_the_evaluation_view(model):
    image = encoded(120, size=(70, 50))
    view = augment.evaluation_view(tf.constant(image), SIZE)
    logits = brightness()(augment.normalize(view)[None])[:, :3]
    np.testing.assert_allclose(serve(model, [image])["probabilities"], tf.nn.softmax(logits), rtol=1e-5)


def test_the_exported_view_is_the_one_that_evaluation_takes(tmp_path):
    pixels = np.full((30, 90, 3), 255, np.uint8)
    pixels[:, 30:60] = 0  # which is all that the central square shows
    image = tf.io.encode_png(pixels).numpy()
    export(tmp_path, eval_view="resize_crop")
    view = augment.evaluation_view(tf.constant(image), SIZE, "resize_crop")
    logits = brightness()(augment.normalize(view)[None])[:, :3]
    output = serve(client.load(str(tmp_path)), [image])
    np.testing.assert_allclose(output["probabilities"], tf.nn.softmax(logits), rtol=1e-5)
    assert output["top_classes"][0, 0] != b"dark"


def test_an_undecodable_image_does_not_fail_its_neighbours(model):
    output = serve(model, [b"no image", encoded(10), b""])
    assert output["valid"].tolist() == [False, True, False]
    assert output["probabilities"][[0, 2]].sum() == 0
    assert output["top_classes"][0].tolist() == [b"", b""]
    assert output["top_classes"][1][0] == b"dark"


def test_a_batch_may_be_empty(model):
    assert serve(model, tf.zeros([0], tf.string))["probabilities"].shape == (0, 3)


def test_versions_are_numbered_and_the_newest_is_loaded(tmp_path):
    export(tmp_path)
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    (tmp_path / "partial-3").mkdir()  # what an interrupted export leaves
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "partial-3"]
    shutil.rmtree(tmp_path / "1" / "variables")  # the newest is loaded
    client.load(str(tmp_path))
    assert export(tmp_path).endswith("/3")
    assert not (tmp_path / "partial-3").exists()


def test_in_an_object_store_a_version_that_is_not_whole_is_passed_over():
    directory = "ram://versions"
    assert export(directory) == f"{directory}/1"
    assert not tf.io.gfile.exists(f"{directory}/partial-1")
    for interrupted in ("2/variables", "3"):  # exports, at one moment and another
        tf.io.gfile.makedirs(f"{directory}/{interrupted}")
    assert client.classes(client.load(directory)) == CLASSES
    assert export(directory) == f"{directory}/4"


def test_a_folder_without_saved_model_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="export one with"):
        client.load(str(tmp_path))


def gradient(tmp_path, name, **options):
    """Left half dark, right half bright, 64 wide and 32 high."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    path = tmp_path / name
    Image.fromarray(pixels).save(path, **options)
    return path


def test_the_client_turns_photos_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    path = gradient(tmp_path, "phone.jpg", exif=exif, quality=95)
    upright = augment.evaluation_view(tf.constant(client.read(str(path))[0]), SIZE).numpy()
    assert upright[:8].mean() < 60 and upright[-8:].mean() > 190


@pytest.mark.parametrize("kind", ["webp", "tiff"])
def test_the_client_reads_formats_that_tensorflow_does_not(model, tmp_path, kind):
    path = tmp_path / f"image.{kind}"
    path.write_bytes(encoded(250, kind.upper()))
    (prediction,) = client.predict(model, [str(path)])
    assert prediction.classes[0] == "bright"


def test_the_client_puts_transparent_pixels_on_white(model, tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(path)
    (prediction,) = client.predict(model, [str(path)])
    assert prediction.classes[0] == "bright"


def test_the_client_tells_what_it_could_not_read(model, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(encoded(100)[:200])
    predictions = list(client.predict(model, [str(broken), str(tmp_path / "none.jpg")]))
    assert all(prediction.error and not prediction.classes for prediction in predictions)
    assert "No such file" in predictions[1].error


def test_the_client_works_through_many_images(model, tmp_path):
    paths = []
    for i, level in enumerate([10, 120, 250] * 3):
        paths.append(str(tmp_path / f"{i}.png"))
        pathlib.Path(paths[-1]).write_bytes(encoded(level, "PNG"))
    predictions = list(client.predict(model, paths, batch=4))
    assert [p.classes[0] for p in predictions] == CLASSES * 3
    assert [p.image for p in predictions] == paths


@pytest.mark.parametrize(("top", "classes"), [(None, 2), (1, 1), (3, 3), (99, 3)])
def test_more_classes_can_be_asked_for_than_were_exported(model, tmp_path, top, classes):
    path = tmp_path / "image.png"
    path.write_bytes(encoded(250, "PNG"))
    (prediction,) = client.predict(model, [str(path)], top)
    assert prediction.classes == ["bright", "middle", "dark"][:classes]
    assert prediction.probabilities == sorted(prediction.probabilities, reverse=True)
    assert len(prediction.probabilities) == classes
