"""Splits as people have them: folders, other inputs, a column of a list, names of tars, those of TFDS."""

import csv
import io
import json
import os
import re
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam import launch
from beam.errors import BuildError
from beam.sources import registry
from pipeline.data import manifest
from tests import ingest_images
from tests.ingest_builds import build, failure, records, refusals
from tests.source_listing import picture

FOLDERS = {"train": 20, "val": 4, "test": 6}


def class_folders(root, images: int, first: int = 0, classes: int = 2) -> str:
    for number in range(images):
        ingest_images.write(f"{root}/class_{number % classes}/{number}.jpg", picture(first + number))
    return str(root)


@pytest.fixture
def tree(tmp_path):
    """`train`, `val` and `test`, each with class folders of its own, whose file names repeat."""
    first = 0
    for name, images in FOLDERS.items():
        class_folders(tmp_path / "images" / name, images, first)
        first += images
    return str(tmp_path / "images")


def sizes(record_set: manifest.Manifest) -> dict[str, int]:
    return {name: split.written for name, split in record_set.splits.items()}


def test_folders_named_as_splits_are_splits_and_it_says_so(tree, tmp_path, capsys):
    ingest_images.write(f"{tree}/README.txt", b"hello")
    record_set = build(tree, tmp_path / "set", "--shards=4")
    assert sizes(record_set) == {"train": 20, "validation": 4, "test": 6}
    assert {name: len(split.shards) for name, split in record_set.splits.items()} == {
        "train": 4,
        "validation": 1,
        "test": 1,
    }
    assert record_set.classes == ("class_0", "class_1")
    assert refusals(tmp_path / "set") == {"README.txt": "no_label"}
    for split, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        for row in records(tmp_path / "set", split):
            key = row["key"].decode()
            assert key.startswith(f"{folder}/class_{row['label']}/")
            with open(os.path.join(tree, key), "rb") as file:
                assert row["image"] == file.read()
    shown = capsys.readouterr().out
    assert "val is validation" in shown and "--splits=none" in shown
    assert "train: 20 images of 2 classes; 1 of 21 refused (1 no_label)" in shown
    assert "validation: 4 images of 2 classes\ntest: 6 images of 2 classes" in shown


def test_no_splits_if_so_asked_and_a_part_held_out_of_train(tree, tmp_path):
    assert build(tree, tmp_path / "none", "--splits=none").classes == ("test", "train", "val")
    held = build(f"{tree}/train", tmp_path / "held", f"--test_input={tree}/test", "--validation_examples=5")
    assert sizes(held) == {"train": 15, "validation": 5, "test": 6}


def test_a_split_held_out_twice_is_refused(tree, tmp_path, capsys):
    ours = [f"--output_dir={tmp_path}/set", "--shards=2"]
    message = failure(capsys, f"--input={tree}", *ours, "--validation_fraction=0.1")
    assert "--validation_fraction=0.1" in message and "4 images" in message and "remove" in message
    message = failure(capsys, f"--input={tree}", *ours, f"--test_input={tree}/val")
    assert "--test_input=" in message and "test split of its own" in message
    message = failure(capsys, f"--test_input={tree}/test", *ours, "--validation_examples=1")
    assert "no train split" in message


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (["raw/c/x.jpg"], ["'raw'", "splits", "--splits=none"]),
        (["validation/c/x.jpg"], ["two of them for one split"]),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_a_question(tree, tmp_path, capsys, others, words):
    for name in others:
        ingest_images.write(f"{tree}/{name}", picture(1))
    message = failure(capsys, f"--input={tree}", f"--output_dir={tmp_path}/set")
    assert all(word in message for word in (*words, tree)), message
    assert not (tmp_path / "set").exists()


def test_a_test_folder_without_class_folders_is_named(tmp_path, capsys):
    class_folders(tmp_path / "images" / "train", 4)
    ingest_images.write(tmp_path / "images" / "test" / "0.jpg", picture(9))
    message = failure(capsys, f"--input={tmp_path}/images", f"--output_dir={tmp_path}/set")
    assert "test/ has no class folders" in message and "/test/CLASS/IMAGE.jpg" in message


def test_classes_may_be_called_train_and_an_empty_split_is_refused(tmp_path, capsys):
    for name in ("train", "bus", "car"):
        ingest_images.write(tmp_path / "vehicles" / name / "old" / "0.jpg", picture(len(name)))
    assert build(tmp_path / "vehicles", tmp_path / "set").classes == ("bus", "car", "train")
    class_folders(tmp_path / "images" / "train", 4)
    (tmp_path / "images" / "test" / "class_0").mkdir(parents=True)
    message = failure(capsys, f"--input={tmp_path}/images", f"--output_dir={tmp_path}/other")
    assert f"{tmp_path}/images/test" in message and "hold no image" in message


def test_inputs_of_several_kinds_with_the_same_names(tmp_path):
    """Class folders for training; a list for validation, another folder with the same file names for testing."""
    train, test = class_folders(tmp_path / "a", 8), class_folders(tmp_path / "b", 4, first=8)
    (tmp_path / "list.csv").write_text(f"path,label\n{test}/class_1/1.jpg,class_1\n")
    flags = [f"--validation_input={tmp_path}/list.csv", f"--test_input={test}"]
    record_set = build(train, tmp_path / "set", *flags)
    assert sizes(record_set) == {"train": 8, "validation": 1, "test": 4}
    keys = [row["key"] for split in record_set.splits for row in records(tmp_path / "set", split)]
    assert len(set(keys)) == 13 and b"class_0/0.jpg" in keys and b"test/class_0/0.jpg" in keys


def test_evaluation_sets_alone_with_the_classes_of_another_set(tree, tmp_path, capsys):
    build(f"{tree}/train", tmp_path / "train")
    ingest_images.write(f"{tree}/test/class_9/x.jpg", picture(77))
    flags = [f"--test_input={tree}/test", "--shards=2", f"--output_dir={tmp_path}/test"]
    message = failure(capsys, *flags, f"--classes_of={tmp_path}/nothing")
    assert f"--classes_of={tmp_path}/nothing" in message and "does not exist" in message
    assert "both given" in failure(capsys, *flags, f"--classes_of={tmp_path}/train", "--classes=x")
    capsys.readouterr()
    assert launch.main([*flags, f"--classes_of={tmp_path}/train"]) == 0
    command = f"--task=evaluate --split=test --gin_param='DATA_DIR=\"{tmp_path}/test\"'"
    assert command in capsys.readouterr().out
    record_set = manifest.read(str(tmp_path / "test"))
    assert sizes(record_set) == {"test": 6} and len(record_set.split("test").shards) == 2
    assert record_set.classes_digest == manifest.read(str(tmp_path / "train")).classes_digest
    assert refusals(tmp_path / "test") == {"test/class_9/x.jpg": "unknown_label"}
    message = failure(capsys, "--test_input=/nowhere", f"--output_dir={tmp_path}/other")
    assert "--test_input=/nowhere does not exist" in message


ROWS = [("0", "train"), ("1", ""), ("2", "Val"), ("3", "TEST"), ("4", "fold 3")]


def csv_list(path, rows) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([list(rows[0]), *(row.values() for row in rows)])


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("list.csv", csv_list),
        ("list.jsonl", lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows))),
        ("list.parquet", lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path)),
    ],
)
def test_a_column_of_a_list_names_the_split(tmp_path, name, write):
    class_folders(tmp_path / "images", 5, classes=1)
    write(tmp_path / name, [{"path": f"images/class_0/{n}.jpg", "label": "a", "split": s} for n, s in ROWS])
    source = registry.open_inputs({"train": str(tmp_path / name)})
    found = [(e.split, e.refusal and e.refusal[0]) for part in source.parts for e in source.examples(part)]
    assert found == [("train", None)] * 2 + [("validation", None), ("test", None), ("train", "bad_row")]
    for inputs, auto, split in (
        ({"train": str(tmp_path / name)}, False, "train"),
        ({"test": str(tmp_path / name)}, True, "test"),
    ):
        source = registry.open_inputs(inputs, {}, auto)
        assert {(e.split, e.refusal) for part in source.parts for e in source.examples(part)} == {(split, None)}


def tar(path, names: list[str]) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, name in enumerate(names):
            for suffix, data in (("jpg", picture(number)), ("cls", b"a")):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def test_names_of_tars_and_of_their_members_say_the_split(tmp_path):
    for name in ("set-train-0", "set-train-1", "set_val_0"):
        tar(f"{tmp_path}/tars/{name}.tar", ["0", "1"])
    source = registry.open_inputs({"train": f"{tmp_path}/tars/set*.tar"})
    assert [e.split for part in source.parts for e in source.examples(part)] == ["train"] * 4 + ["validation"] * 2
    assert "2 of train, 1 of validation" in source.notes[0]
    source = registry.open_inputs({"train": f"{tmp_path}/tars/set*.tar"}, {}, auto=False)
    assert {e.split for part in source.parts for e in source.examples(part)} == {"train"}
    tar(f"{tmp_path}/all.tar", ["train/0", "./val/1", "test/cats/2", "other/3"])
    record_set = build(f"{tmp_path}/all.tar", tmp_path / "set", "--shards=1")
    assert sizes(record_set) == {"train": 2, "validation": 1, "test": 1}


def test_a_tfds_set_named_without_a_split_has_its_own(tree, tmp_path, capsys):
    build(tree, tmp_path / "first", "--name=first")
    assert sizes(build(f"tfds:{tmp_path}/first", tmp_path / "second")) == {"train": 20, "validation": 4, "test": 6}
    ids = [[row["image"] for row in records(tmp_path / name, "test")] for name in ("first", "second")]
    assert sorted(ids[0]) == sorted(ids[1])
    assert sizes(build(f"tfds:{tmp_path}/first/test", tmp_path / "third")) == {"train": 6}
    info = json.loads((tmp_path / "first" / "dataset_info.json").read_text())
    info["splits"][0]["name"] = "extra"
    (tmp_path / "first" / "dataset_info.json").write_text(json.dumps(info))
    message = failure(capsys, f"--input=tfds:{tmp_path}/first", f"--output_dir={tmp_path}/other")
    assert "extra" in message and "/SPLIT" in message


def test_images_in_both_parts_of_one_folder_are_told_how_to_be_removed(tmp_path, capsys):
    for number in range(20):
        ingest_images.write(tmp_path / f"images/class_{number % 2}/{number}.jpg", picture(number % 2))
    flags = ("--validation_fraction=0.3", "--shards=1")
    build(tmp_path / "images", tmp_path / "set", *flags)
    shown = capsys.readouterr().out
    assert "--duplicates=report names them" in shown and "again with --duplicates=keep_first --replace" in shown
    build(tmp_path / "images", tmp_path / "set", *flags, "--duplicates=report", "--replace")
    assert "duplicates.jsonl names them" in capsys.readouterr().out
    build(tmp_path / "images", tmp_path / "set", *flags, "--duplicates=keep_first", "--replace")
    assert "with the same bytes" not in capsys.readouterr().out


def test_the_end_says_what_one_should_know(tmp_path, capsys):
    """Class sets that differ, a class with one image, the same image in two splits, and why images were refused."""
    root = tmp_path / "images"
    for name, images in (("train", 12), ("test", 6)):
        class_folders(root / name, images, first=100 * len(name))
    same = picture(900)
    for name in ("train/class_0/same.jpg", "train/class_1/again.jpg", "test/class_1/copy.jpg", "train/lonely/0.jpg"):
        ingest_images.write(root / name, same if "lonely" not in name else picture(901))
    ingest_images.write(root / "test" / "new" / "0.jpg", picture(902))
    whole = picture(1)
    for name, data in (("a", b""), ("b", b""), ("c", b"words"), ("d", whole[:-100]), ("e", b"words"), ("f", b"")):
        ingest_images.write(root / "train" / "class_0" / f"bad_{name}.jpg", data)
    os.mkfifo(root / "train" / "class_0" / "pipe")
    build(root, tmp_path / "set")
    shown = capsys.readouterr().out
    assert (
        "train: 15 images of 3 classes; 7 of 22 refused (3 empty, 2 undecodable, 1 truncated, ...); rejected.jsonl"
        in shown
    )
    assert "smallest class of train is 'lonely' with 1 image" in shown
    assert "One image only: 1 class of train ('lonely')" in shown
    assert "1 class of train not in test ('lonely')" in shown and "1 class of test not in train ('new')" in shown
    assert "1 image with the same bytes in train and test" in shown and "--remove_duplicates_of" in shown
    assert shown.splitlines()[-1].startswith("Next: training needs a validation split")
    report = (tmp_path / "set" / "report.md").read_text()
    assert "1 image with the same bytes in train and test" in report
    inodes = {
        name: os.stat(tmp_path / "set" / name).st_ino for name in os.listdir(tmp_path / "set") if "tfrecord" in name
    }
    build(root, tmp_path / "set")
    again = capsys.readouterr().out
    timeless = [re.sub(r"[\d.]+ s\.$", "", text, flags=re.MULTILINE) for text in (again, shown)]
    assert timeless[0] == timeless[1]
    assert all(os.stat(tmp_path / "set" / name).st_ino == inode for name, inode in inodes.items())


def test_duplicates_are_removed_from_the_split_that_holds_them(tmp_path):
    class_folders(tmp_path / "a", 8), class_folders(tmp_path / "b", 4, first=20)
    ingest_images.write(tmp_path / "b" / "class_0" / "copy.jpg", picture(0))
    flags = [f"--test_input={tmp_path}/b", "--duplicates=keep_first", "--duplicate_distance=-1"]
    record_set = build(tmp_path / "a", tmp_path / "set", *flags)
    assert sizes(record_set) == {"train": 8, "test": 4}
    assert refusals(tmp_path / "set") == {"test/class_0/copy.jpg": "duplicate"}


def test_ten_thousand_classes(tmp_path, capsys):
    class_folders(tmp_path / "images", 4, classes=2)
    (tmp_path / "classes.txt").write_text("".join(f"class_{n}\n" for n in range(10_000)))
    record_set = build(tmp_path / "images", tmp_path / "set", f"--classes={tmp_path}/classes.txt")
    assert len(record_set.classes) == 10_000
    shown = capsys.readouterr().out
    assert "train: 4 images of 2 classes" in shown and "No image at all: 9,998 classes ('class_2', " in shown


def test_a_list_of_classes_names_them_as_the_source_does(tmp_path):
    """With a byte order mark and ends of lines as some editors write them, and in other scripts."""
    names = ["cat", "\u0646\u06cc\u0645\u200c\u0641\u0627\u0635\u0644\u0647", "no\u00a0break", "two\nlines"]
    for number, name in enumerate(names):
        ingest_images.write(tmp_path / "images" / name / "0.jpg", picture(number))
    written = [*names[:3], r"two\nlines"]
    (tmp_path / "classes.txt").write_bytes("\r\n".join(written).encode("utf-8-sig"))
    record_set = build(tmp_path / "images", tmp_path / "set", f"--classes={tmp_path}/classes.txt")
    assert record_set.classes == tuple(written) and sizes(record_set) == {"train": 4}


def test_inputs_that_do_not_fit_together_are_refused(tmp_path):
    train = class_folders(tmp_path / "a", 4)
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": "a/class_0/0.jpg", "labels": ["x", "y"]}) + "\n")
    with pytest.raises(BuildError, match=r"one label per image.*list\.jsonl several"):
        registry.open_inputs({"train": train, "test": f"{tmp_path}/list.jsonl"})
