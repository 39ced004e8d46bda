"""The ingest job as a user runs it: flags in, a record set or one clear message out."""

import collections
import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from beam import checks, images, launch, planning, writing
from beam.options import ImageSettings
from pipeline.data import record
from tests import ingest_images
from tests.ingest_builds import build, failure, records, refusals
from tests.source_listing import stream


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return ingest_images.broken_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def birds(tree, tmp_path_factory):
    """(manifest, folder, what was printed) of a build of the tree in two splits, which no test changes."""
    output, printed = tmp_path_factory.mktemp("birds") / "set", io.StringIO()
    with contextlib.redirect_stdout(printed):
        record_set = build(tree, output, "--name=birds", "--validation_fraction=0.25", "--shards=3")
    return record_set, output, printed.getvalue()


def test_folder_tree_becomes_a_record_set(tree, birds):
    record_set, output, printed = birds
    assert record_set.name == "birds"
    assert record_set.classes == ("class_0", "class_1", "class_2", "class_3")
    train = [f"birds-train.tfrecord-{i:05d}-of-00003" for i in range(3)]
    assert [shard.file for shard in record_set.split("train").shards] == train
    assert record_set.split("train").listed + record_set.split("validation").listed == 43
    assert refusals(output) == {
        "class_0/cut.jpg": "truncated",
        "class_1/empty.png": "empty",
        "class_2/words.jpg": "undecodable",
    }
    written = records(output, "train") + records(output, "validation")
    assert len(written) == 40 and len({row["key"] for row in written}) == 40
    for row in written:
        key = row["key"].decode()
        with open(os.path.join(tree, key), "rb") as file:
            assert row["image"] == file.read(), f"{key} did not pass through byte for byte"
        assert record_set.classes[row["label"]] == key.split("/")[0]
        assert row["id"] == record.record_id(key)
    assert "1 truncated" in printed


def test_manifest_tells_sizes_digests_and_checksums_of_the_files(birds):
    record_set, output, _ = birds
    for name, split in record_set.splits.items():
        for part in split.shards:
            data = (output / part.file).read_bytes()
            assert (part.bytes, part.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        ids = [row["id"] for row in records(output, name)]
        assert len(ids) == split.written
        assert split.id_checksum == f"{sum(ids) % 2**64:016x}"


def test_tfds_reads_the_set(tree, birds):
    record_set, output, _ = birds
    builder = tfds.builder_from_directory(str(output))
    assert builder.info.name == "birds"
    assert builder.info.features["label"].names == list(record_set.classes)
    for name, split in record_set.splits.items():
        assert builder.info.splits[name].num_examples == split.written
        examples = list(builder.as_dataset(split=name).as_numpy_iterator())
        assert len(examples) == split.written
        for example in examples:
            with open(os.path.join(tree, example["key"].decode()), "rb") as file:
                np.testing.assert_array_equal(example["image"], tf.io.decode_image(file.read(), channels=3))
            assert record_set.classes[example["label"]] == example["key"].decode().split("/")[0]


def test_held_out_images_are_exactly_as_many_and_always_the_same(tree, tmp_path):
    """Also most of the images, and whatever the number of shards."""
    most = build(tree, tmp_path / "most", "--validation_examples=35", "--shards=2")
    few = build(tree, tmp_path / "few", "--validation_examples=5", "--shards=5")
    assert (most.split("validation").listed, most.split("train").listed) == (35, 8)
    assert (few.split("validation").listed, few.split("train").listed) == (5, 38)
    keys = [{row["key"] for row in records(tmp_path / name, "validation")} for name in ("few", "most")]
    assert keys[0] < keys[1]


def test_shards_of_both_splits_are_about_as_large():
    assert planning.validation_shards(8, 0, 0.0) == {}
    assert planning.validation_shards(9, 0, 0.1) == {"validation": 1}
    assert planning.validation_shards(2, 0, 0.75) == {"validation": 6}
    assert planning.validation_shards(2, 35, 0.0) == {"validation": 1}
    assert planning.validation_shards(100, 130_000, 0.0) == {"validation": 32}


def test_csv_table_with_one_label(tree, tmp_path):
    path = tmp_path / "list.csv"
    rows = [(f"class_{i % 4}/{i:03d}.jpg", f"name {i % 4}") for i in range(40) if i % 5]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((os.path.join(tree, p), n) for p, n in rows)])
    record_set = build(path, tmp_path / "set")
    assert record_set.classes == ("name 0", "name 1", "name 2", "name 3")
    found = {row["key"].decode(): record_set.classes[row["label"]] for row in records(tmp_path / "set", "train")}
    assert found == {os.path.join(tree, p): n for p, n in rows}


def test_jsonl_table_with_several_labels_and_weights(tree, tmp_path):
    rows = [
        {"path": f"class_1/{i:03d}.jpg", "labels": ["a", "b"][: 1 + i % 2], "label_weights": [0.5, 2.0][: 1 + i % 2]}
        for i in (1, 9, 13, 17)
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps({**r, "path": os.path.join(tree, r["path"])}) + "\n" for r in rows))
    record_set = build(path, tmp_path / "set", "--shards=1")
    assert record_set.label_kind == "multiple"
    for row in records(tmp_path / "set", "train"):
        assert row["labels"] == [0, 1] and row["label_weights"] == [0.5, 2.0]
    examples = list(tfds.builder_from_directory(str(tmp_path / "set")).as_dataset(split="train"))
    assert len(examples) == 4
    assert all(e["labels"].numpy().tolist() == [0, 1] for e in examples)
    assert all(e["label_weights"].numpy().tolist() == [0.5, 2.0] for e in examples)


def test_every_bad_row_of_a_table_is_accounted_for(tree, tmp_path):
    good = os.path.join(tree, "class_1/001.jpg")
    rows = [
        json.dumps({"path": good, "label": "a"}),
        json.dumps({"path": good, "label": "a"}),
        json.dumps({"path": "missing.jpg", "label": "a"}),
        json.dumps({"path": os.path.join(tree, "class_2/002.jpg")}),
        json.dumps({"path": os.path.join(tree, "class_3/003.jpg"), "label": "unheard-of"}),
        json.dumps({"path": 7, "label": "a"}),
        json.dumps([1, 2]),
        "{not json",
        json.dumps({"path": "\ud800.jpg", "label": "a"}),
        json.dumps({"path": "a\0b.jpg", "label": "a"}),
        json.dumps({"path": good, "label": "a", "key": "k" * 200_000}),
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    record_set = build(
        tmp_path / "list.jsonl", tmp_path / "set", f"--classes={tmp_path}/classes.txt", "--duplicates=report"
    )
    split = record_set.split("train")
    assert (split.listed, split.written) == (11, 1)
    assert split.rejected == {
        "bad_row": 6,
        "duplicate_key": 1,
        "no_label": 1,
        "unknown_label": 1,
        "unreadable": 1,
    }
    with open(tmp_path / "set" / "rejected.jsonl") as file:
        assert collections.Counter(json.loads(line)["reason"] for line in file) == split.rejected


def test_of_two_entries_the_valid_one_is_taken(tree, tmp_path):
    image = os.path.join(tree, "class_1/001.jpg")
    row = {"path": image, "labels": ["a"], "label_weights": [1.0]}
    rows = [{**row, "label_weights": [-1.0]}, row, {**row, "path": "/nowhere.jpg", "key": image}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = build(tmp_path / "list.jsonl", tmp_path / "set", "--shards=1").split("train")
    assert (split.written, split.rejected) == (1, {"duplicate_key": 2})


def test_names_that_are_not_text_and_links_in_circles(tmp_path):
    source = ingest_images.folder_tree(tmp_path / "source", images=4, classes=2)
    odd = os.fsencode(f"{source}/class_0/") + b"\xff\xfe na\nme.jpg"
    with open(odd, "wb") as file:
        file.write(ingest_images.encode(ingest_images.picture(7)))
    os.symlink(source, f"{source}/class_1/circle")
    os.symlink("/nowhere", f"{source}/class_1/dangling.jpg")
    (tmp_path / "source" / "beside.txt").write_text("no class")
    record_set = build(source, tmp_path / "set", "--shards=1")
    assert b"class_0/\xff\xfe na\nme.jpg" in [row["key"] for row in records(tmp_path / "set", "train")]
    found = refusals(tmp_path / "set")
    assert found["class_1/dangling.jpg"] == "unreadable"
    assert found["beside.txt"] == "no_label"
    assert "unreadable" in {reason for key, reason in found.items() if "circle" in key}
    assert record_set.split("train").listed == record_set.split("train").written + len(found)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--input=/nowhere", "--output_dir={out}"], ["/nowhere", "does not exist"]),
        (["--output_dir={out}"], ["--input is missing"]),
        (["--input={tree}"], ["--output_dir is missing"]),
        (["--input={empty}", "--output_dir={out}"], ["no class folders", "CLASS/IMAGE.jpg"]),
        (["--input={bare}", "--output_dir={out}"], ["1 of 1 class folders hold no image", "'bare_class'"]),
        (["--input={tree}/class_0/000.png", "--output_dir={out}"], ["is a file", "a folder of class folders"]),
        (["--input={columns}", "--output_dir={out}"], ["'file'", "expected 'path' and 'label'"]),
        (["--input={nothing}", "--output_dir={out}"], ["lists no image"]),
        (["--input={tree}", "--output_dir={out}", "--shards=0"], ["--shards=0", "expected 1 to"]),
        (["--input={tree}", "--output_dir={out}", "--validation_fraction=1.5"], ["--validation_fraction=1.5"]),
        (["--input={tree}", "--output_dir={out}", "--validation_examples=43"], ["only 43 images", "fewer"]),
        (["--input={tree}", "--output_dir={out}", "--max_bytes=2000000000"], ["--max_bytes=2000000000", "1073741824"]),
        (["--input={tree}", "--output_dir={out}", "--name=a-b"], ["--name='a-b'"]),
        (["--input={tree}", "--output_dir={out}", "--classes=/nowhere"], ["--classes=/nowhere"]),
        (["--input={tree}", "--output_dir={columns}/set"], ["columns.csv", "directory"]),
        (["--input={broken}", "--output_dir={out}"], ["has no image", "rejected.jsonl"]),
        (["--input={half}", "--output_dir={out}"], ["1 of 2 classes have no usable image", "'bad'"]),
    ],
)
def test_one_clear_message_and_no_record_set(tree, tmp_path, capsys, flags, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare" / "bare_class").mkdir(parents=True)
    (tmp_path / "columns.csv").write_text("file,label\na.jpg,b\n")
    (tmp_path / "nothing.jsonl").write_text("\n")
    ingest_images.write(tmp_path / "broken" / "a" / "x.jpg", b"no image")
    ingest_images.write(tmp_path / "half" / "bad" / "x.jpg", b"no image")
    ingest_images.write(tmp_path / "half" / "good" / "y.jpg", ingest_images.encode(ingest_images.picture(1)))
    places = {
        "tree": tree,
        "out": tmp_path / "set",
        "columns": tmp_path / "columns.csv",
        "nothing": tmp_path / "nothing.jsonl",
    } | {name: tmp_path / name for name in ("empty", "bare", "broken", "half")}
    message = failure(capsys, *(flag.format(**places) for flag in flags))
    assert all(word in message for word in words), message
    assert "Traceback" not in message
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_full_disk_is_one_message(tree, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard")

    monkeypatch.setattr(writing, "commit_shard", full)
    message = failure(capsys, f"--input={tree}", f"--output_dir={tmp_path}/set")
    assert message == "build_tfrecords.py: [Errno 28] No space left on device: 'shard'\n"


def test_a_runner_that_does_not_exist_is_a_wrong_flag(tree, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        launch.main([f"--input={tree}", f"--output_dir={tmp_path}/set", "--runner=Dataflw"])
    assert stop.value.code == 2
    assert "build_tfrecords.py: --runner=Dataflw: " in capsys.readouterr().err


def test_a_mistyped_flag_is_an_error_that_suggests_the_right_one(tree, tmp_path):
    command = [sys.executable, "beam/build_tfrecords.py", f"--input={tree}", f"--output_dir={tmp_path}/set"]
    done = subprocess.run([*command, "--shard=3"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'--shard=3'" in done.stderr and "--shards" in done.stderr
    assert not (tmp_path / "set").exists()


def test_only_regular_files_of_a_bounded_size_are_opened(tmp_path):
    """A pipe or a device would block its reader for ever, and a sparse file of a tebibyte would take all memory."""
    source = tmp_path / "source"
    ingest_images.write(source / "a" / "good.jpg", ingest_images.encode(ingest_images.picture(1)))
    os.mkfifo(source / "a" / "pipe.jpg")
    os.symlink("/dev/zero", source / "a" / "device.jpg")
    ingest_images.write(source / "a" / "sparse.jpg", b"")
    os.truncate(source / "a" / "sparse.jpg", 1 << 40)
    names = ("good", "pipe", "device", "sparse")
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"source/a/{name}.jpg,a\n" for name in names))
    for origin, folder in ((source, "a"), (tmp_path / "list.csv", "source/a")):
        results = {example.key.decode(): checks.checked(example, ImageSettings()) for example in stream(origin)}
        assert isinstance(results.pop(f"{folder}/good.jpg"), images.Encoded)
        assert {key: result.reason for key, result in results.items()} == {
            f"{folder}/pipe.jpg": "unreadable",
            f"{folder}/device.jpg": "unreadable",
            f"{folder}/sparse.jpg": "too_many_bytes",
        }
