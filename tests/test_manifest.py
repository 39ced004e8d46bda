import dataclasses
import json
import os

import pytest
import tensorflow as tf

from pipeline.data import manifest
from pipeline.data.input import Data
from tests import record_sets


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    record_sets.make(path, examples=20, validation=5)
    return str(path)


def rewrite(directory, tmp_path, change):
    """A copy of the record set whose manifest `change` (dict to None) has altered."""
    for name in os.listdir(directory):
        os.link(os.path.join(directory, name), tmp_path / name)
    content = json.loads((tmp_path / "manifest.json").read_text())
    change(content)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    return str(tmp_path)


def test_reads_back_what_was_written(directory):
    read = manifest.read(directory)
    assert read.split("train").written == 20
    assert read.split("train").shards[0].file == "demo-train.tfrecord-00000-of-00003"
    assert read.classes[:2] == ("class0", "class1")


def test_digest_depends_on_the_shards_and_the_classes(directory):
    read = manifest.read(directory)
    assert manifest.read(directory).digest == read.digest
    assert dataclasses.replace(read, classes=read.classes[::-1]).digest != read.digest


def test_a_missing_directory_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(manifest.ManifestError, match=r"does not exist.*python beam/build_tfrecords.py"):
        manifest.read(str(tmp_path / "nothing"))


def test_a_directory_without_manifest_is_not_a_record_set(tmp_path):
    with pytest.raises(manifest.ManifestError, match=r"holds no manifest\.json"):
        manifest.read(str(tmp_path))


def test_unknown_split_lists_those_there_are(directory):
    with pytest.raises(manifest.ManifestError, match=r"No split 'test'.*\['train', 'validation'\]"):
        manifest.read(directory).split("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["splits"]["train"].update(listed=21), "21 images listed, but 20 written and 0 rejected"),
        (lambda m: m["splits"]["train"].update(written=19, listed=19), "19 examples written, but its shards hold 20"),
        (lambda m: m["splits"]["train"]["shards"][0].update(bytes=7), "the manifest says 7 bytes"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="gone"), "gone is missing"),
        (lambda m: m["splits"]["train"].pop("shards"), "is damaged"),
        (lambda m: m.update(format=9), "format 9"),
        (lambda m: m.update(label_kind="many"), "label_kind is 'many'"),
    ],
)
def test_a_manifest_that_lies_is_refused(directory, tmp_path, change, message):
    with pytest.raises(manifest.ManifestError, match=message):
        copy = rewrite(directory, tmp_path, change)
        manifest.check_shards(manifest.read(copy), copy, "train")


def test_half_a_manifest_is_damaged(directory, tmp_path):
    path = rewrite(directory, tmp_path, lambda m: None)
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text[: len(text) // 2])
    with pytest.raises(manifest.ManifestError, match="is damaged"):
        manifest.read(path)


def test_checksum_ignores_order_and_wraps():
    assert manifest.checksum([1, 2, -4]) == manifest.checksum([-4, 2, 1]) == "f" * 16
    assert manifest.checksum([2**63 - 1, 1]) == "8000000000000000"


def remote_copy(tmp_path, shards):
    """The folder of a record set on TensorFlow's file system in memory."""
    record_sets.make(tmp_path / str(shards), examples=80, validation=4, shards=shards)
    remote = f"ram://records-of-{shards}-shards"
    tf.io.gfile.makedirs(remote)
    for path in (tmp_path / str(shards)).iterdir():
        if path.suffix == ".index":
            continue  # that file system says of a file whose name begins another's that it is a folder
        tf.io.gfile.copy(str(path), f"{remote}/{path.name}", overwrite=True)
    return remote


@pytest.fixture
def requests(monkeypatch):
    """What is asked of remote file systems."""
    asked = []

    def counting(name, original):
        def call(path, *args, **kwargs):
            asked.append((name, path))
            return original(path, *args, **kwargs)

        return call

    for name in ("exists", "stat", "listdir", "isdir", "glob", "GFile"):
        monkeypatch.setattr(tf.io.gfile, name, counting(name, getattr(tf.io.gfile, name)))
    return asked


def test_opening_remote_records_takes_as_many_requests_for_forty_shards_as_for_two(tmp_path, requests):
    counts = []
    for shards in (2, 40):
        data = Data(remote_copy(tmp_path, shards), 8, 16, 16)
        requests.clear()
        made = data.read_manifest()
        assert data.training_records(made).examples == 80 and data.validation_records(made).examples == 4
        counts.append(len(requests))
    assert counts[0] == counts[1] <= 3


def test_remote_shards_are_looked_at_when_asked(tmp_path, requests):
    data = Data(remote_copy(tmp_path, 20), 8, 16, 16, check_shards=True)
    requests.clear()
    data.training_records()
    assert len({path for name, path in requests if name == "stat"}) == 20
    tf.io.gfile.remove(f"{data.directory}/demo-train.tfrecord-00013-of-00020")
    with pytest.raises(manifest.ManifestError, match="00013-of-00020 is missing"):
        data.training_records()
    dataclasses.replace(data, check_shards=None).training_records()
