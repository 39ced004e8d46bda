"""A second build over an earlier one: what is written again, what is not, and the same bytes in the end."""

import os
import pathlib
import shutil

import pytest

from beam import checks
from tests import ingest_images
from tests.ingest_builds import build, failure, records, refusals

SHARDS = 6
FLAGS = [f"--shards={SHARDS}"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return ingest_images.broken_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
    """A finished build, which no test changes."""
    output = tmp_path_factory.mktemp("built") / "set"
    build(tree, output, *FLAGS)
    return output


@pytest.fixture
def copy(built, tmp_path):
    """A copy of the finished build."""
    return pathlib.Path(shutil.copytree(built, tmp_path / "set"))


def shard_file(output, number: int) -> pathlib.Path:
    return output / f"images-train.tfrecord-{number:05d}-of-{SHARDS:05d}"


def test_a_rerun_changes_nothing_and_another_setting_rebuilds(tree, built, copy, tmp_path):
    inode = shard_file(copy, 0).stat().st_ino
    build(tree, copy, *FLAGS)
    assert ingest_images.contents(copy) == ingest_images.contents(built)
    assert shard_file(copy, 0).stat().st_ino == inode, "a committed shard was written again"
    build(tree, copy, "--shards=3", "--replace")
    build(tree, tmp_path / "fresh", "--shards=3")
    assert ingest_images.contents(copy) == ingest_images.contents(tmp_path / "fresh")


def test_damaged_and_unfinished_shards_are_written_again_to_the_same_bytes(tree, built, copy):
    """Each shard but the last is damaged in a way of its own, and the build ended before its manifest."""
    removed, cut, no_index, bad_statistics, uncommitted, whole = (shard_file(copy, number) for number in range(SHARDS))
    removed.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    no_index.with_name(f"{no_index.name}.index").unlink()
    bad_statistics.with_name(f"{bad_statistics.name}.json").write_text("{")
    uncommitted.with_name(f"{uncommitted.name}.json").unlink()
    for leftover in (uncommitted.name, "report_images.jpg"):
        (copy / f"{leftover}.partial-{'0' * 32}").write_bytes(b"half")
    (copy / "manifest.json").unlink()
    inode = whole.stat().st_ino
    build(tree, copy, *FLAGS)
    assert ingest_images.contents(copy) == ingest_images.contents(built)
    assert whole.stat().st_ino == inode, "a committed shard was written again"


def test_a_damaged_record_of_a_committed_shard_is_named(tree, copy, capsys):
    path = shard_file(copy, 0)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    (copy / "manifest.json").unlink()
    message = failure(capsys, f"--input={tree}", f"--output_dir={copy}", *FLAGS)
    assert f"Record 0 of {path}, which an earlier build wrote, is damaged: remove {path}.json" in message
    path.with_name(f"{path.name}.json").unlink()
    assert build(tree, copy, *FLAGS).split("train").written


def test_a_failed_build_leaves_the_earlier_set(copy, built, tmp_path, capsys):
    """Also one of the same source and settings, whose images are gone."""
    assert "does not exist" in failure(capsys, "--input=/nowhere", f"--output_dir={copy}")
    source = ingest_images.folder_tree(tmp_path / "source", images=4, classes=2)
    build(source, tmp_path / "small")
    before = ingest_images.contents(tmp_path / "small")
    for folder, _, names in os.walk(source):
        for name in names:
            ingest_images.write(f"{folder}/{name}", b"no image")
    message = failure(capsys, f"--input={source}", f"--output_dir={tmp_path}/small", "--shards=2")
    assert "has no image" in message and f"{tmp_path}/small is unchanged" in message
    assert ingest_images.contents(tmp_path / "small") == before
    assert ingest_images.contents(copy) == ingest_images.contents(built)


@pytest.fixture
def keys_read(monkeypatch):
    """The keys of the images whose bytes are read, in a list that grows; a test clears it."""
    keys, read = [], checks.read
    monkeypatch.setattr(checks, "read", lambda example, limit: keys.append(example.key) or read(example, limit))
    return keys


def test_retry_reads_only_what_was_refused_and_a_plain_build_what_changed(tmp_path, keys_read):
    source = ingest_images.folder_tree(tmp_path / "source", images=24, classes=2)
    whole = {}
    for name in ("class_1/003.jpg", "class_0/008.jpg"):
        with open(f"{source}/{name}", "rb") as file:
            whole[name] = file.read()
        ingest_images.write(f"{source}/{name}", whole[name][:-200])
    ingest_images.write(f"{source}/class_0/never.jpg", b"words")
    flags = ["--validation_fraction=0.2", "--duplicates=keep_first"]
    build(source, tmp_path / "set", *flags)
    assert set(refusals(tmp_path / "set")) == {*whole, "class_0/never.jpg"}
    for name, data in whole.items():
        ingest_images.write(f"{source}/{name}", data)

    keys_read.clear()
    record_set = build(source, tmp_path / "set", *flags, "--retry_rejected")
    refused = [name.encode() for name in (*whole, "class_0/never.jpg")]
    assert sorted(keys_read) == sorted(2 * refused), "once to hash, once to write"
    assert record_set.split("train").written + record_set.split("validation").written == 24
    build(source, tmp_path / "fresh", *flags)
    assert ingest_images.contents(tmp_path / "set") == ingest_images.contents(tmp_path / "fresh")

    new = ingest_images.encode(ingest_images.picture(99, width=60))
    ingest_images.write(f"{source}/class_1/001.jpg", new)
    build(source, tmp_path / "set", *flags)
    written = [row["image"] for split in ("train", "validation") for row in records(tmp_path / "set", split)]
    assert new in written and len(written) == 24


def test_retry_with_looser_limits_equals_a_fresh_build_and_so_do_stricter_ones(tmp_path, keys_read):
    source = ingest_images.folder_tree(tmp_path / "source", images=12, classes=2)
    for i in range(4):
        ingest_images.write(f"{source}/class_0/large{i}.jpg", ingest_images.encode(ingest_images.picture(i, 90, 80)))
    ingest_images.write(f"{source}/class_1/long.jpg", ingest_images.encode(ingest_images.picture(1)) + bytes(30_000))
    strict = ["--max_pixels=2000", "--max_bytes=30000"]
    build(source, tmp_path / "set", *strict)
    assert set(refusals(tmp_path / "set").values()) == {"too_many_pixels", "too_many_bytes"}
    expected = ingest_images.contents(tmp_path / "set")
    refused = [name.encode() for name in refusals(tmp_path / "set")]
    keys_read.clear()
    build(source, tmp_path / "set", "--retry_rejected")
    assert sorted(keys_read) == sorted(refused)
    build(source, tmp_path / "fresh")
    assert set(refusals(tmp_path / "set").values()) == set()
    assert ingest_images.contents(tmp_path / "set") == ingest_images.contents(tmp_path / "fresh")
    build(source, tmp_path / "set", "--retry_rejected", *strict)
    assert ingest_images.contents(tmp_path / "set") == expected
