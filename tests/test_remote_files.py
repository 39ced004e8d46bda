"""Sources on file systems that Beam knows by a scheme."""

import os

import pytest
from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.value_provider import RuntimeValueProvider

from beam import launch
from beam.errors import BuildError
from beam.prediction import launch as prediction_launch
from beam.sources import registry
from tests import ingest_images
from tests.ingest_builds import build
from tests.source_listing import content, listed, picture


class ShelfFileSystem(FileSystem):
    """A file system that Beam knows by the scheme `shelf://`, over a folder on disk."""

    root = ""

    @classmethod
    def scheme(cls):
        return "shelf"

    def _real(self, path):
        return path.replace(f"{self.scheme()}://", f"{self.root}/")

    def _list(self, dir_or_prefix):
        for folder, _, names in os.walk(self._real(dir_or_prefix)):
            for name in sorted(names):
                path = os.path.join(folder, name)
                yield FileMetadata(path.replace(f"{self.root}/", f"{self.scheme()}://"), os.path.getsize(path))

    def open(self, path, mime_type=None, compression_type=None):
        try:
            return open(self._real(path), "rb")
        except OSError as error:
            raise BeamIOError("Open failed", {path: error}) from error

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def exists(self, path):
        return os.path.exists(self._real(path))

    def has_dirs(self):
        return False

    def mkdirs(self, path):
        raise NotImplementedError

    def metadata(self, path):
        return FileMetadata(path, os.path.getsize(self._real(path)))

    create = copy = rename = delete = size = last_updated = checksum = mkdirs


def test_another_file_system_holds_the_same_tree_and_list(tmp_path, monkeypatch):
    monkeypatch.setattr(ShelfFileSystem, "root", str(tmp_path))
    ingest_images.folder_tree(tmp_path / "box", images=6, classes=2)
    ingest_images.write(tmp_path / "box" / "beside.txt", b"x")
    local, remote = listed(tmp_path / "box"), listed("shelf://box")
    assert remote.keys() == local.keys()
    for key, example in remote.items():
        assert example.path == b"shelf://box/" + example.key
        assert example.labels == local[key].labels and example.refusal == local[key].refusal
        assert content(example) == content(local[key])
    (tmp_path / "box" / "list.csv").write_text("path,label\nclass_0/000.png,a\nshelf://box/class_1/001.jpg,b\n")
    examples = listed("shelf://box/list.csv")
    assert content(examples["class_0/000.png"]) == content(local["class_0/000.png"])
    assert content(examples["shelf://box/class_1/001.jpg"]) == content(local["class_1/001.jpg"])
    assert build("shelf://box/list.csv", tmp_path / "set", "--shards=1").split("train").written == 2
    for nothing in ("shelf://nothing", "shelf://nothing.csv"):
        with pytest.raises(BuildError, match="does not exist"):
            registry.open_source(nothing)


def test_split_folders_on_another_file_system(tmp_path, monkeypatch):
    monkeypatch.setattr(ShelfFileSystem, "root", str(tmp_path))
    for name in ("train/a/0.jpg", "Val/a/0.jpg", "test/b/0.jpg", "bus/0.jpg", "list.txt"):
        ingest_images.write(tmp_path / "box" / name, picture(len(name)))
    source = registry.open_inputs({"train": "shelf://box"})
    examples = [example for part in source.parts for example in source.examples(part)]
    assert {(example.key, example.split, example.labels, example.refusal is None) for example in examples} == {
        (b"train/a/0.jpg", "train", ("a",), True),
        (b"Val/a/0.jpg", "validation", ("a",), True),
        (b"test/b/0.jpg", "test", ("b",), True),
        (b"bus/0.jpg", "train", (), False),
        (b"list.txt", "train", (), False),
    }
    assert len(examples) == 5


def test_objects_that_stand_for_folders_are_no_images(tmp_path, monkeypatch):
    monkeypatch.setattr(ShelfFileSystem, "root", str(tmp_path))
    objects = ["box/", "box/test/", "box/train/", "box/train/a/", "box/train/a/0.jpg"]

    def listing(_, prefix):
        return (FileMetadata(f"shelf://{name}", 1) for name in objects if f"shelf://{name}".startswith(prefix))

    monkeypatch.setattr(ShelfFileSystem, "_list", listing)
    source = registry.open_inputs({"train": "shelf://box"})
    assert [example.key for part in source.parts for example in source.examples(part)] == [b"train/a/0.jpg"]


def test_a_tree_that_beam_cannot_list_is_refused(tmp_path, monkeypatch):
    """As on `hdfs://`, where it lists one folder."""
    monkeypatch.setattr(ShelfFileSystem, "root", str(tmp_path))
    monkeypatch.setattr(ShelfFileSystem, "has_dirs", lambda _: True)
    ingest_images.folder_tree(tmp_path / "box", images=2, classes=2)
    for auto in (True, False):
        with pytest.raises(BuildError, match=r"--input=shelf://box: .* one folder at a time.*give tables.* or tars"):
            registry.open_inputs({"train": "shelf://box"}, auto=auto)


class LockerFileSystem(ShelfFileSystem):
    """The same under `locker://`, for those who come with the pipeline's options, as `hdfs://` wants them."""

    def __init__(self, pipeline_options):
        if pipeline_options is None:
            raise ValueError("pipeline_options is not set")
        super().__init__(pipeline_options)

    @classmethod
    def scheme(cls):
        return "locker"


def test_a_file_system_has_its_flags_before_the_source_is_opened(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ShelfFileSystem, "root", str(tmp_path))
    for place, name in ((FileSystems, "_pipeline_options"), (RuntimeValueProvider, "runtime_options")):
        monkeypatch.setattr(place, name, None)  # as in a process that has run no job
    ingest_images.write(tmp_path / "box" / "0.jpg", picture(1))
    (tmp_path / "box" / "list.csv").write_text("path,label\n0.jpg,c\n")
    with pytest.raises(BuildError, match=r"--input=locker://box/list\.csv is out of reach: pipeline_options is not"):
        registry.open_source("locker://box/list.csv")
    build("locker://box/list.csv", tmp_path / "set", "--shards=1")
    for path in ("none://bucket/images", "none://bucket/list.csv", "none://bucket/0.tar"):
        assert launch.main([f"--input={path}", f"--output_dir={tmp_path}/set"]) == 1
        assert f"--input={path} is out of reach: Unable to get filesystem" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (launch, ["--input={images}", "--output_dir=s3://bucket/set"]),
        (prediction_launch, ["--saved_model=s3://bucket/model", "--images={images}", "--output={images}/out"]),
    ],
)
def test_what_tensorflow_cannot_reach_is_refused(module, flags, tmp_path, capsys):
    ingest_images.write(tmp_path / "images" / "c" / "0.jpg", picture(1))
    assert module.main([flag.format(images=tmp_path / "images") for flag in flags]) == 1
    message = capsys.readouterr().err
    assert "TensorFlow has no file system for s3://, so s3://bucket/" in message
    assert "kept on disks or in gs://" in message


def test_what_a_file_system_of_beams_needs_is_said(tmp_path, capsys):
    assert launch.main(["--input=s3://bucket/images", f"--output_dir={tmp_path}/set"]) == 1
    message = capsys.readouterr().err
    assert "--input=s3://bucket/images is out of reach" in message and "pip install 'apache-beam[aws]'" in message
