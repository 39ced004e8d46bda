"""Broken, hostile and unusual image files: each gets the right flag, harms no other image, and takes little memory."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import beam.images
from pipeline.serving import client, view
from tests import broken_images, served_model

SIZE = 32
GOOD = broken_images.encode(broken_images.picture(), "JPEG"), broken_images.encode(broken_images.transparent(), "PNG")
CASES = {case.name: case for case in broken_images.cases()}
ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def views():
    return tf.function(
        lambda images: view.views(images, SIZE), input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")]
    )


@pytest.fixture(scope="module")
def expected(views):
    """The views of the good images alone."""
    return views(tf.constant(GOOD))[0].numpy()


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved_model")
    served_model.export(path)
    return client.load(str(path))


def test_there_are_many_kinds_and_each_has_a_name():
    assert len(CASES) == len(broken_images.cases()) > 60


@pytest.mark.parametrize("name", CASES)
def test_it_gets_its_flag_and_harms_no_other(views, expected, name):
    case = CASES[name]
    images, valid = (value.numpy() for value in views(tf.constant([GOOD[0], case.data, GOOD[1]])))
    assert valid.tolist() == [True, case.valid, True]
    np.testing.assert_array_equal(images[[0, 2]], expected)
    assert case.valid or not images[1].any()


def test_all_in_one_batch(views):
    images, valid = (value.numpy() for value in views(tf.constant([case.data for case in CASES.values()])))
    assert valid.tolist() == [case.valid for case in CASES.values()]
    assert not images[~valid].any()


MEMORY = """
import json, sys
import tensorflow as tf
from PIL import Image
import beam.images
from pipeline.serving import client, view
from tests import broken_images

views = tf.function(lambda images: view.views(images, 32), input_signature=[tf.TensorSpec([None], tf.string)])

def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))

def growth(function):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = memory("VmRSS")
    function()
    return memory("VmHWM") - before

cases = broken_images.cases()
views(tf.constant([cases[0].data]))
growths = {}
for case in cases:
    growths[case.name] = [growth(lambda: views(tf.constant([case.data]))), growth(lambda: client.read(case.data))]
json.dump(growths, sys.stdout)
"""


@pytest.mark.slow
def test_none_takes_much_memory():
    """Neither of the server nor of its client, also where Beam's part is imported."""
    child = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    growths = json.loads(child.stdout)
    assert growths.keys() == CASES.keys()
    too_much = {name: megabytes for name, megabytes in growths.items() if max(megabytes) > 200}
    assert not too_much


BOMBS = [name for name in CASES if "144 megapixels" in name or ("60,000 x 60,000" in name and "frame" not in name)]


@pytest.mark.parametrize("name", BOMBS)
def test_the_client_refuses_what_is_too_large(name):
    data, error = client.read(CASES[name].data)
    assert data == b"" and error
    if not name.startswith(("GIF: 60,000 x 60,000 on", "WebP")):  # Pillow refuses those by themselves
        assert "at most 100000000" in error


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("JPEG: cut in half", "truncated"),
        ("PNG: cut in half", "truncated"),
        ("JPEG: cut in a segment", "Truncated"),
        ("JPEG: first two bytes", "header is damaged"),
        ("text", "not an image"),
        ("nothing", "empty"),
        ("PNG: a bomb of 144 megapixels", "12000 x 12000 pixels"),
    ],
)
def test_the_client_says_why_an_image_cannot_be_used(saved_model, name, reason):
    (prediction,) = client.predict(saved_model, [CASES[name].data])
    assert reason in prediction.error and not prediction.classes


def test_pillows_limit_stays_on():
    limit = Image.MAX_IMAGE_PIXELS
    assert limit
    with pytest.raises(beam.images.Refused, match="too_many_pixels"):
        beam.images.normalise(CASES["PNG: a bomb of 144 megapixels"].data, beam.images.ImageSettings())
    client.read(CASES["GIF: a bomb of 144 megapixels"].data)
    assert limit == Image.MAX_IMAGE_PIXELS
