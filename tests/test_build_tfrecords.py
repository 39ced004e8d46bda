"""The ingest job as a user meets it: flags in, a record set or one clear message out."""

import collections
import csv
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from beam import costs, launch, options, writing
from pipeline.data import manifest, record, shard
from tests import ingest_images


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """40 good images in 4 classes, and a broken one of three kinds."""
    root = ingest_images.folder_tree(tmp_path_factory.mktemp("tree"))
    whole = ingest_images.encode(ingest_images.picture(0))
    ingest_images.write(f"{root}/class_0/cut.jpg", whole[: len(whole) // 2])
    ingest_images.write(f"{root}/class_1/empty.png", b"")
    ingest_images.write(f"{root}/class_2/words.jpg", b"these are words")
    ingest_images.write(f"{root}/class_3/.hidden", b"not listed")
    return root


def build(source, output, *flags) -> manifest.Manifest:
    """Runs the job in this process; it must succeed."""
    assert launch.main([f"--input={source}", f"--output_dir={output}", "--shards=2", *flags]) == 0
    return manifest.read(str(output))


def failure(capsys, *flags) -> str:
    """Runs the job in this process; it must fail. Returns its message."""
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(launch.main(list(flags)))
    assert stop.value.code in (1, 2)
    return capsys.readouterr().err


def records(output, split: str) -> list[dict]:
    """Every record of a split, read through manifest, index and parser."""
    made = manifest.read(str(output))
    found = []
    for part in made.split(split).shards:
        path = os.path.join(output, part.file)
        index = shard.read_index(path, part.examples)
        data = shard.read_records(path, index, 0, part.examples)
        if data:
            names = [f"{part.file}:{i}" for i in range(len(data))]
            columns = record.parse(tf.constant(data), tf.constant(names), made.label_kind)
            columns = {k: (v.to_list() if hasattr(v, "to_list") else v.numpy().tolist()) for k, v in columns.items()}
            found += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return found


def refusals(output) -> dict[str, str]:
    """Key to reason, from rejected.jsonl."""
    with open(os.path.join(output, "rejected.jsonl")) as file:
        return {row["key"]: row["reason"] for row in map(json.loads, file)}


def test_folder_tree_becomes_a_record_set(tree, tmp_path, capsys):
    made = build(tree, tmp_path / "set", "--name=birds", "--validation_fraction=0.25", "--shards=3")
    assert made.name == "birds"
    assert made.classes == ("class_0", "class_1", "class_2", "class_3")
    assert [s.file for s in made.split("train").shards] == [f"birds-train.tfrecord-{i:05d}-of-00003" for i in range(3)]
    assert made.split("train").listed + made.split("validation").listed == 43
    assert refusals(tmp_path / "set") == {
        "class_0/cut.jpg": "truncated",
        "class_1/empty.png": "empty",
        "class_2/words.jpg": "undecodable",
    }
    written = records(tmp_path / "set", "train") + records(tmp_path / "set", "validation")
    assert len(written) == 40 and len({row["key"] for row in written}) == 40
    for row in written:
        key = row["key"].decode()
        with open(os.path.join(tree, key), "rb") as file:
            assert row["image"] == file.read(), f"{key} did not pass through byte for byte"
        assert made.classes[row["label"]] == key.split("/")[0]
        assert row["id"] == record.record_id(key)
    assert "1 truncated" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--validation_fraction=0.75", "--validation_examples=35"])
def test_most_of_the_images_may_be_held_out(tree, tmp_path, flag):
    made = build(tree, tmp_path / "set", flag)
    assert made.split("validation").listed > 43 / 2
    assert sum(split.listed for split in made.splits.values()) == 43


def test_manifest_tells_sizes_digests_and_checksums_of_the_files(tree, tmp_path):
    made = build(tree, tmp_path / "set", "--validation_fraction=0.25")
    for name, split in made.splits.items():
        for part in split.shards:
            data = (tmp_path / "set" / part.file).read_bytes()
            assert (part.bytes, part.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        ids = [row["id"] for row in records(tmp_path / "set", name)]
        assert len(ids) == split.written
        assert split.id_checksum == f"{sum(ids) % 2**64:016x}"


def test_tfds_reads_the_set(tree, tmp_path):
    made = build(tree, tmp_path / "set", "--name=birds", "--validation_fraction=0.25")
    builder = tfds.builder_from_directory(str(tmp_path / "set"))
    assert builder.info.name == "birds"
    assert builder.info.features["label"].names == list(made.classes)
    for name, split in made.splits.items():
        assert builder.info.splits[name].num_examples == split.written
        examples = list(builder.as_dataset(split=name).as_numpy_iterator())
        assert len(examples) == split.written
        for example in examples:
            with open(os.path.join(tree, example["key"].decode()), "rb") as file:
                np.testing.assert_array_equal(example["image"], tf.io.decode_image(file.read(), channels=3))
            assert made.classes[example["label"]] == example["key"].decode().split("/")[0]


def test_held_out_images_are_exactly_as_many_and_always_the_same(tree, tmp_path):
    made = build(tree, tmp_path / "a", "--validation_examples=11", "--shards=2")
    assert made.split("validation").listed == 11
    again = build(tree, tmp_path / "b", "--validation_examples=11", "--shards=5")
    keys = {row["key"] for row in records(tmp_path / "a", "validation")}
    assert keys == {row["key"] for row in records(tmp_path / "b", "validation")}
    assert again.split("train").listed == 32
    fewer = build(tree, tmp_path / "c", "--validation_examples=5")
    assert fewer.split("validation").listed == 5
    assert {row["key"] for row in records(tmp_path / "c", "validation")} < keys


def test_a_rerun_changes_nothing_and_another_setting_rebuilds(tree, tmp_path):
    build(tree, tmp_path / "set", "--shards=2")
    before = ingest_images.contents(tmp_path / "set")
    shard_file = tmp_path / "set" / "images-train.tfrecord-00000-of-00002"
    inode = shard_file.stat().st_ino
    build(tree, tmp_path / "set", "--shards=2")
    assert ingest_images.contents(tmp_path / "set") == before
    assert shard_file.stat().st_ino == inode, "a committed shard was written again"
    build(tree, tmp_path / "set", "--shards=3")
    build(tree, tmp_path / "fresh", "--shards=3")
    assert ingest_images.contents(tmp_path / "set") == ingest_images.contents(tmp_path / "fresh")


@pytest.mark.parametrize("what", ["removed", "cut", "index", "statistics", "half-written"])
def test_a_damaged_or_unfinished_build_is_finished_to_the_same_bytes(tree, tmp_path, what):
    build(tree, tmp_path / "set", "--shards=2")
    whole = ingest_images.contents(tmp_path / "set")
    path = tmp_path / "set" / "images-train.tfrecord-00001-of-00002"
    if what == "removed":
        path.unlink()
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "index":
        (tmp_path / "set" / f"{path.name}.index").unlink()
    elif what == "statistics":
        (tmp_path / "set" / f"{path.name}.json").write_text("{")
    else:
        (tmp_path / "set" / "manifest.json").unlink()
        (tmp_path / "set" / f"{path.name}.json").unlink()
        (tmp_path / "set" / f"{path.name}.partial-{'0' * 32}").write_bytes(b"half")
    build(tree, tmp_path / "set", "--shards=2")
    assert ingest_images.contents(tmp_path / "set") == whole


def test_a_changed_image_is_taken_anew(tree, tmp_path):
    source = ingest_images.folder_tree(tmp_path / "source", images=8, classes=2)
    build(source, tmp_path / "set", "--shards=2")
    new = ingest_images.encode(ingest_images.picture(99, width=60))
    ingest_images.write(f"{source}/class_1/001.jpg", new)
    build(source, tmp_path / "set", "--shards=2")
    assert new in [row["image"] for row in records(tmp_path / "set", "train")]


def test_csv_list_with_one_label(tree, tmp_path):
    path = tmp_path / "list.csv"
    rows = [(f"class_{i % 4}/{i:03d}.jpg", f"name {i % 4}") for i in range(40) if i % 5]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((os.path.join(tree, p), n) for p, n in rows)])
    made = build(path, tmp_path / "set")
    assert made.classes == ("name 0", "name 1", "name 2", "name 3")
    found = {row["key"].decode(): made.classes[row["label"]] for row in records(tmp_path / "set", "train")}
    assert found == {os.path.join(tree, p): n for p, n in rows}


def test_jsonl_list_with_several_labels_and_weights(tree, tmp_path):
    rows = [
        {"path": f"class_1/{i:03d}.jpg", "labels": ["a", "b"][: 1 + i % 2], "label_weights": [0.5, 2.0][: 1 + i % 2]}
        for i in (1, 9, 13, 17)
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps({**r, "path": os.path.join(tree, r["path"])}) + "\n" for r in rows))
    made = build(path, tmp_path / "set", "--shards=1")
    assert made.label_kind == "multiple"
    for row in records(tmp_path / "set", "train"):
        assert row["labels"] == [0, 1] and row["label_weights"] == [0.5, 2.0]
    examples = list(tfds.builder_from_directory(str(tmp_path / "set")).as_dataset(split="train"))
    assert len(examples) == 4
    assert all(e["labels"].numpy().tolist() == [0, 1] for e in examples)
    assert all(e["label_weights"].numpy().tolist() == [0.5, 2.0] for e in examples)


def test_every_bad_row_of_a_list_is_accounted_for(tree, tmp_path):
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
    made = build(tmp_path / "list.jsonl", tmp_path / "set", f"--classes={tmp_path}/classes.txt", "--duplicates=report")
    split = made.split("train")
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


def test_of_two_entries_the_one_without_fault_is_taken(tree, tmp_path):
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
    made = build(source, tmp_path / "set", "--shards=1")
    assert b"class_0/\xff\xfe na\nme.jpg" in [row["key"] for row in records(tmp_path / "set", "train")]
    found = refusals(tmp_path / "set")
    assert found["class_1/dangling.jpg"] == "unreadable"
    assert found["beside.txt"] == "no_label"
    assert "unreadable" in {reason for key, reason in found.items() if "circle" in key}
    assert made.split("train").listed == made.split("train").written + len(found)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--input=/nowhere", "--output_dir={out}"], ["/nowhere", "does not exist"]),
        (["--output_dir={out}"], ["--input is missing"]),
        (["--input={tree}"], ["--output_dir is missing"]),
        (["--input={empty}", "--output_dir={out}"], ["no class folders", "CLASS/IMAGE.jpg"]),
        (["--input={bare}", "--output_dir={out}"], ["1 of 1 class folders hold no image", "'bare_class'"]),
        (["--input={tree}/class_0/000.png", "--output_dir={out}"], ["is a file", "expected a folder"]),
        (["--input={columns}", "--output_dir={out}"], ["'file'", "expected 'path' and 'label'"]),
        (["--input={nothing}", "--output_dir={out}"], ["lists no image"]),
        (["--input={tree}", "--output_dir={out}", "--shards=0"], ["--shards=0", "expected 1 to"]),
        (["--input={tree}", "--output_dir={out}", "--validation_fraction=1.5"], ["--validation_fraction=1.5"]),
        (["--input={tree}", "--output_dir={out}", "--validation_examples=43"], ["only 43 images", "fewer"]),
        (["--input={tree}", "--output_dir={out}", "--name=a-b"], ["--name='a-b'"]),
        (["--input={tree}", "--output_dir={out}", "--classes=/nowhere"], ["--classes=/nowhere"]),
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


def test_a_mistyped_flag_is_an_error_that_suggests_the_right_one(tree, tmp_path):
    command = [sys.executable, "beam/build_tfrecords.py", f"--input={tree}", f"--output_dir={tmp_path}/set"]
    done = subprocess.run([*command, "--shard=3"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'--shard=3'" in done.stderr and "--shards" in done.stderr
    assert not (tmp_path / "set").exists()


def test_a_failed_build_leaves_no_earlier_manifest(tree, tmp_path, capsys):
    source = ingest_images.folder_tree(tmp_path / "source", images=4, classes=2)
    build(source, tmp_path / "set")
    for name in ("001.jpg", "003.jpg"):
        ingest_images.write(f"{source}/class_1/{name}", b"gone")
    failure(capsys, f"--input={source}", f"--output_dir={tmp_path}/set")
    with pytest.raises(manifest.ManifestError, match=r"holds no manifest\.json"):
        manifest.read(str(tmp_path / "set"))
    refused = failure(capsys, "--input=/nowhere", f"--output_dir={tmp_path}/set")
    assert "does not exist" in refused


def test_only_regular_files_of_a_bounded_size_are_opened(tmp_path):
    """A pipe or a device would keep its reader for ever, and a sparse file of a tebibyte all memory."""
    source = tmp_path / "source"
    ingest_images.write(source / "a" / "good.jpg", ingest_images.encode(ingest_images.picture(1)))
    os.mkfifo(source / "a" / "pipe.jpg")
    os.symlink("/dev/zero", source / "a" / "device.jpg")
    ingest_images.write(source / "a" / "sparse.jpg", b"")
    os.truncate(source / "a" / "sparse.jpg", 1 << 40)
    names = ("good", "pipe", "device", "sparse")
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"source/a/{name}.jpg,a\n" for name in names))
    for origin, folder in ((source, "a"), (tmp_path / "list.csv", "source/a")):
        build(origin, tmp_path / "set")
        assert refusals(tmp_path / "set") == {
            f"{folder}/pipe.jpg": "unreadable",
            f"{folder}/device.jpg": "unreadable",
            f"{folder}/sparse.jpg": "too_many_bytes",
        }


def test_the_limit_of_bytes_is_one_that_can_be_loosened(tmp_path, capsys):
    source = ingest_images.folder_tree(tmp_path / "source", images=8, classes=1)
    largest = max(file.stat().st_size for file in (tmp_path / "source").rglob("*.*"))
    build(source, tmp_path / "set", f"--max_bytes={largest - 1}")
    assert set(refusals(tmp_path / "set").values()) == {"too_many_bytes"}
    build(source, tmp_path / "set", f"--max_bytes={largest}", "--retry_rejected")
    build(source, tmp_path / "fresh", f"--max_bytes={largest}")
    assert refusals(tmp_path / "set") == {}
    assert ingest_images.contents(tmp_path / "set") == ingest_images.contents(tmp_path / "fresh")
    message = failure(capsys, f"--input={source}", f"--output_dir={tmp_path}/set", "--max_bytes=2000000000")
    assert "--max_bytes=2000000000: expected 1 to 1073741824" in message


@pytest.mark.parametrize(("policy", "looks"), [("off", 1), ("keep_first", 2)])
def test_retry_takes_only_what_was_refused(tmp_path, monkeypatch, policy, looks):
    source = ingest_images.folder_tree(tmp_path / "source", images=24, classes=2)
    whole = {}
    for name in ("class_1/003.jpg", "class_0/008.jpg"):
        with open(f"{source}/{name}", "rb") as file:
            whole[name] = file.read()
        ingest_images.write(f"{source}/{name}", whole[name][:-200])
    ingest_images.write(f"{source}/class_0/never.jpg", b"words")
    flags = ["--shards=2", "--validation_fraction=0.2", f"--duplicates={policy}"]
    build(source, tmp_path / "set", *flags)
    assert set(refusals(tmp_path / "set")) == {*whole, "class_0/never.jpg"}
    for name, data in whole.items():
        ingest_images.write(f"{source}/{name}", data)

    looked_at = []
    read = writing._read
    monkeypatch.setattr(writing, "_read", lambda name, limit: looked_at.append(name.key) or read(name, limit))
    made = build(source, tmp_path / "set", *flags, "--retry_rejected")
    assert sorted(looked_at) == sorted(looks * [name.encode() for name in (*whole, "class_0/never.jpg")])
    assert made.split("train").written + made.split("validation").written == 24
    build(source, tmp_path / "fresh", *flags)
    assert ingest_images.contents(tmp_path / "set") == ingest_images.contents(tmp_path / "fresh")


def test_retry_with_looser_limits_equals_a_fresh_build(tmp_path):
    source = ingest_images.folder_tree(tmp_path / "source", images=12, classes=2)
    for i in range(4):
        ingest_images.write(f"{source}/class_0/large{i}.jpg", ingest_images.encode(ingest_images.picture(i, 90, 80)))
    build(source, tmp_path / "set", "--shards=2", "--max_pixels=2000")
    assert set(refusals(tmp_path / "set").values()) == {"too_many_pixels"}
    build(source, tmp_path / "set", "--shards=2", "--retry_rejected")
    build(source, tmp_path / "fresh", "--shards=2")
    assert ingest_images.contents(tmp_path / "set") == ingest_images.contents(tmp_path / "fresh")
    build(source, tmp_path / "set", "--shards=2", "--retry_rejected", "--max_pixels=2000")
    build(source, tmp_path / "strict", "--shards=2", "--max_pixels=2000")
    assert ingest_images.contents(tmp_path / "set") == ingest_images.contents(tmp_path / "strict")


def test_the_report_shows_what_was_written_refused_and_found_twice(tmp_path):
    colours = {"red": (254, 0, 0), "blue": (0, 0, 254), "none": (245, 245, 245)}
    red, blue = (ingest_images.encode(Image.new("RGB", (side, side), c)) for side, c in ((200, "red"), (90, "blue")))
    for name, data in {"a": red, "small": blue, "words": b"words", "red again": red}.items():
        ingest_images.write(tmp_path / "source" / "c" / f"{name}.jpg", data)

    def shown(picture: str) -> list[str]:
        """The colour in the middle of each tile of a contact sheet of one row."""
        sheet = np.asarray(Image.open(tmp_path / "set" / picture)).astype(int)
        middles = sheet[68, 68::136]
        return [min(colours, key=lambda name: np.abs(middle - colours[name]).sum()) for middle in middles]

    flags = ["--duplicates=keep_first", "--shards=1", "--min_side=100"]
    build(tmp_path / "source", tmp_path / "set", *flags)
    assert shown("report_images.jpg") == ["red"] and shown("report_duplicates.jpg") == ["red", "red"]
    reasons = list(refusals(tmp_path / "set").values())
    assert dict(zip(reasons, shown("report_rejected.jpg"), strict=True)) == {
        "duplicate": "red",
        "too_small": "blue",
        "undecodable": "none",
    }
    os.remove(tmp_path / "source" / "c" / "red again.jpg")
    build(tmp_path / "source", tmp_path / "set", *flags)
    assert not (tmp_path / "set" / "report_duplicates.jpg").exists()


def test_the_report_of_thirty_thousand_classes(tree, tmp_path):
    names = [f"class_{i}" for i in range(30_000)]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    build(tree, tmp_path / "set", f"--classes={tmp_path}/classes.txt")
    assert "30,000 classes, 29,996 of them without an image" in (tmp_path / "set" / "report.md").read_text()
    figure = np.asarray(Image.open(tmp_path / "set" / "report_classes.png").convert("L"))
    assert figure.shape == (400, 700) and figure.std() > 10


def test_shards_by_target_size(tmp_path):
    source = tmp_path / "source"
    noise = np.random.default_rng(0)
    for i in range(24):
        pixels = noise.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        ingest_images.write(source / f"c{i % 2}" / f"{i}.png", ingest_images.encode(Image.fromarray(pixels), "PNG"))
    made = build(source, tmp_path / "set", "--shard_mib=1", "--validation_fraction=0.25")
    size = sum(part.bytes for split in made.splits.values() for part in split.shards) / 2**20
    assert len(made.split("train").shards) == round(size * 0.75)
    assert len(made.split("validation").shards) == 1


def test_dry_run_plans_from_a_sample_and_writes_nothing(tree, tmp_path, capsys):
    flags = ["--dry_run", "--dry_run_images=4000000000", "--shard_mib=200"]
    assert launch.main([f"--input={tree}", f"--output_dir={tmp_path}/set", *flags]) == 0
    shown = capsys.readouterr().out
    assert "Measured on 43 images" in shown and "4,000,000,000" in shown and "core hours" in shown
    assert not (tmp_path / "set").exists()


def test_the_plan_is_arithmetic():
    measured = costs.Measured(
        sample=100,
        written=0.5,
        listing=1000,
        writing=100,
        hashing=50,
        name_bytes=80,
        row_bytes=200,
        record_bytes=1 << 20,
    )
    flags = options.parse(["--input=x", "--output_dir=y", "--shard_mib=256"]).view_as(options.BuildOptions)
    planned = costs.plan(measured, 3_600_000, flags)
    assert planned["shards"] == round(1_800_000 / 256)
    assert planned["bytes a shard"] == pytest.approx(256 << 20, rel=1e-3)
    assert planned["index bytes"] == 8 * (1_800_000 + planned["shards"])
    assert planned["shuffle bytes"] == 3_600_000 * 80
    assert planned["core hours"] == pytest.approx(1 + 10)
    both = ["--input=x", "--output_dir=y", "--duplicates=drop", "--duplicate_distance=3", "--shards=90"]
    planned = costs.plan(measured, 3_600_000, options.parse(both).view_as(options.BuildOptions))
    assert planned["shuffle bytes"] == 2 * 3_600_000 * 80 + 1_800_000 * 200 * 11, "five bands make ten tables"
    assert (planned["shards"], planned["bytes a shard"]) == (90, 20_000 << 20)
    assert planned["core hours"] == pytest.approx(1 + 10 + 20)
