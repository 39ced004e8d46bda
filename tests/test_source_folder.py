"""Folder trees as a source: deep paths, links, and names in any encoding."""

import os

import numpy as np
import tensorflow_datasets as tfds

from tests import ingest_images
from tests.ingest_builds import build
from tests.source_listing import listed, picture


def test_folders_as_deep_as_a_path_may_be(tmp_path):
    deep = tmp_path / "class" / ("d/" * 600)
    ingest_images.write(deep / "a.jpg", b"x")
    assert list(listed(tmp_path)) == [f"class/{'d/' * 600}a.jpg"]


def test_a_folder_is_listed_once_in_a_class_however_many_links_lead_to_it(tmp_path):
    names = [f"c{number:02d}" for number in range(12)]
    for name in names:
        ingest_images.write(tmp_path / name / "z" / f"{name}.jpg", b"x")
        for other in names:
            os.symlink(tmp_path / other, tmp_path / name / f"to_{other}")
    os.symlink("itself", tmp_path / "itself")
    examples = listed(tmp_path)
    images = [key for key, example in examples.items() if not example.refusal]
    assert len(images) == 12 * 12 and len(examples) < 12 * 12 * 14
    assert sorted(key for key in images if key.startswith("c00/")) == [
        *(f"c00/to_c{number:02d}/z/c{number:02d}.jpg" for number in range(1, 12)),
        "c00/z/c00.jpg",
    ]
    assert examples["c00/to_c00"].refusal == ("unreadable", "symbolic link to a folder that is listed already")


def test_class_folders_in_every_encoding(tmp_path):
    root = os.fsencode(tmp_path)
    for name in ("été".encode(), b"\xff\xfe", "日本".encode(), b"a b\n", b"1"):
        os.makedirs(root + b"/" + name)
        with open(root + b"/" + name + b"/x.jpg", "wb") as file:
            file.write(picture(1))
    output = tmp_path / "set"
    record_set = build(tmp_path, output, "--shards=1")
    assert set(record_set.classes) == {"été", r"\xff\xfe", "日本", r"a b\n", "1"}
    assert record_set.split("train").written == 5
    builder = tfds.builder_from_directory(str(output))
    assert builder.info.features["label"].names == list(record_set.classes)
    assert np.unique([e["label"] for e in builder.as_dataset(split="train").as_numpy_iterator()]).size == 5
