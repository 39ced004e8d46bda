"""A finished record set is never lost: refused, replaced, and killed while it is replaced."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from beam import launch, options, output_folder
from beam.errors import BuildError
from pipeline.data import manifest
from tests import ingest_images
from tests.ingest_builds import build, failure, records


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return ingest_images.folder_tree(tmp_path_factory.mktemp("tree"), images=24)


@pytest.fixture(scope="module")
def other_tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("other")
    for number in range(30):
        ingest_images.write(
            root / f"kind_{number % 2}" / f"{number}.jpg", ingest_images.encode(ingest_images.picture(number))
        )
    return root


def state(folder) -> dict[str, tuple[int, bytes]]:
    """File name to inode and content."""
    return {
        name: (os.stat(os.path.join(folder, name)).st_ino, data)
        for name, data in ingest_images.contents(folder).items()
    }


def test_a_set_of_another_command_is_refused_before_anything_is_touched(tree, other_tree, tmp_path, capsys):
    output = tmp_path / "set"
    build(tree, output, "--name=birds", "--validation_fraction=0.25")
    before = state(output)
    (tmp_path / "classes.txt").write_text("class_3\nclass_2\nclass_1\nclass_0\n")
    same = [f"--input={tree}", "--name=birds", "--validation_fraction=0.25", "--shards=2"]
    for changed, words in (
        ([f"--input={other_tree}"], [f"--input was {tree}, and is {other_tree}"]),
        (["--name=fish"], ["--name was birds, and is fish"]),
        ([f"--classes={tmp_path}/classes.txt"], ["--classes was not given"]),
        (["--resize=16"], ["--resize was not given, and is 16"]),
        (["--validation_fraction=0.5"], ["--validation_fraction was 0.25, and is 0.5"]),
        (["--shards=3"], ["--shards was 2, and is 3"]),
    ):
        message = failure(capsys, *same, *changed, f"--output_dir={output}")
        for word in (*words, "'birds'", "4 classes", "train ", "validation ", "--replace", str(output)):
            assert word in message
        assert state(output) == before
        assert sorted(os.listdir(tmp_path)) == ["classes.txt", "set"]
    assert launch.main([*same, f"--output_dir={output}"]) == 0, "the same command is welcome"


def test_a_set_that_does_not_say_how_it_was_built_is_refused(tree, tmp_path, capsys):
    build(tree, tmp_path / "set")
    (tmp_path / "set" / "build.json").unlink()
    assert "no build.json" in failure(capsys, f"--input={tree}", f"--output_dir={tmp_path}/set", "--shards=2")
    (tmp_path / "set" / "manifest.json").write_text("{")
    assert "damaged" in failure(capsys, f"--input={tree}", f"--output_dir={tmp_path}/set", "--shards=2")
    build(tree, tmp_path / "set", "--replace")


def test_replace_leaves_the_bytes_of_a_fresh_build_and_the_files_of_others(tree, other_tree, tmp_path):
    output = tmp_path / "set"
    build(tree, output, "--name=birds")
    ingest_images.write(output / "notes.txt", b"mine")
    ingest_images.write(output / "runs" / "1" / "log", b"mine too")
    os.symlink("set", tmp_path / "link")
    build(other_tree, tmp_path / "link", "--name=fish", "--replace")
    assert (output / "notes.txt").read_bytes() == b"mine"
    assert (output / "runs" / "1" / "log").read_bytes() == b"mine too"
    os.remove(output / "notes.txt")
    os.remove(output / "runs" / "1" / "log")
    os.removedirs(output / "runs" / "1")
    build(other_tree, tmp_path / "fresh", "--name=fish")
    assert ingest_images.contents(output) == ingest_images.contents(tmp_path / "fresh")
    assert sorted(os.listdir(tmp_path)) == ["fresh", "link", "set"]


def test_a_replacement_that_fails_leaves_the_set(tree, tmp_path, capsys):
    output = tmp_path / "set"
    build(tree, output)
    before = state(output)
    ingest_images.write(tmp_path / "source" / "class_0" / "a.jpg", b"no image")
    message = failure(capsys, f"--input={tmp_path}/source", f"--output_dir={output}", "--replace")
    assert "has no image" in message and "is unchanged" in message
    assert state(output) == before


def test_the_same_build_of_more_images_updates_and_of_more_classes_is_refused(tmp_path, capsys):
    source, output = ingest_images.folder_tree(tmp_path / "source", images=12, classes=2), tmp_path / "set"
    build(source, output)
    ingest_images.write(f"{source}/class_1/new.jpg", ingest_images.encode(ingest_images.picture(50)))
    assert build(source, output).split("train").written == 13
    before = state(output)
    ingest_images.write(f"{source}/class_00/new.jpg", ingest_images.encode(ingest_images.picture(51)))
    message = failure(capsys, f"--input={source}", f"--output_dir={output}", "--shards=2")
    assert "1 new: class_00" in message and "--replace" in message
    assert state(output) == before
    assert build(source, output, "--replace").classes == ("class_0", "class_00", "class_1")


def test_an_exchange_in_two_steps_ends_after_a_kill(tree, other_tree, tmp_path, monkeypatch):
    """Where the system cannot exchange two folders at once."""
    output = tmp_path / "set"
    build(tree, output)
    monkeypatch.setattr(output_folder.ctypes, "CDLL", lambda *_, **__: object())
    rename, steps = os.rename, []

    def killed(source, target):
        if len(steps) == 1:
            raise KeyboardInterrupt
        steps.append(source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        launch.main([f"--input={other_tree}", f"--output_dir={output}", "--shards=2", "--replace"])
    assert not output.exists()
    monkeypatch.setattr(os, "rename", rename)
    build(other_tree, output, "--replace")
    assert manifest.read(str(output)).classes == ("kind_0", "kind_1")
    assert sorted(os.listdir(tmp_path)) == ["set"]


def test_a_users_folders_of_these_names_stay(tree, other_tree, tmp_path, capsys):
    output = tmp_path / "set"
    build(tree, output)
    for name in ("set.replaced", "set.replacement"):
        ingest_images.write(tmp_path / name / "mine.txt", b"mine")
    before = state(output)
    message = failure(capsys, f"--input={other_tree}", f"--output_dir={output}", "--replace")
    assert f"{output}.replacement, which exists and was not made by a build: rename it" in message
    assert state(output) == before
    (tmp_path / "set.replacement").rename(tmp_path / "mine")
    build(other_tree, output, "--replace")
    assert sorted(os.listdir(tmp_path)) == ["mine", "set", "set.replaced"]
    assert (tmp_path / "set.replaced" / "mine.txt").read_bytes() == b"mine"
    output.rename(tmp_path / "elsewhere")
    build(tree, output)
    assert (tmp_path / "set.replaced" / "mine.txt").exists()


def test_where_folders_cannot_be_exchanged_another_set_is_refused_with_replace_too(tree):
    """TensorFlow's file system in memory stands for an object store."""
    folder = "ram://set"
    flags = [f"--input={tree}", f"--output_dir={folder}", "--replace"]
    chosen = options.parse(flags).view_as(options.BuildOptions)
    assert output_folder.choose(chosen) == folder, "there is no set"
    output_folder.begin(chosen, folder)
    manifest.write(manifest.Manifest("images", ("a",), "single", {}), folder)
    assert output_folder.choose(chosen) == folder, "the same command"
    other = options.parse([*flags, "--resize=9"]).view_as(options.BuildOptions)
    with pytest.raises(BuildError, match=r"--replace: ram://set .*another --output_dir"):
        output_folder.choose(other)


@pytest.mark.slow
def test_a_replacement_killed_at_any_moment_leaves_the_old_set_or_the_new_one(tmp_path):
    """Real processes, killed from their first file to the removal of the old set."""
    output = tmp_path / "set"
    for number in range(90):
        data = ingest_images.encode(ingest_images.picture(number, 200, 150))
        ingest_images.write(tmp_path / "images" / f"c{number % 3}" / f"{number}.jpg", data)
    build(tmp_path / "images", output, "--shards=8")
    old = manifest.read(str(output)).digest
    killed = []
    for size, changes in enumerate((1, 4, 12, 24, 30, 40, 48, 54, 60, 70), 60):
        command = [sys.executable, "beam/build_tfrecords.py", f"--input={tmp_path}/images", f"--output_dir={output}"]
        command += ["--shards=8", f"--resize={size}", "--replace"]
        before = progress_of(tmp_path)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(progress_of(tmp_path) ^ before) < changes:
            time.sleep(0.0005)
        process.kill()
        killed.append(process.wait() == -signal.SIGKILL)

        present = manifest.read(str(output))
        for split in present.splits:
            manifest.check_shards(present, str(output), split)
        images = records(output, "train")
        assert len(images) == 90
        if present.digest == old:
            continue
        build(tmp_path / "images", tmp_path / "fresh", "--shards=8", f"--resize={size}", "--replace")
        assert present.digest == manifest.read(str(tmp_path / "fresh")).digest
        old = present.digest
    assert sum(killed) >= 6
    build(tmp_path / "images", output, "--shards=8", "--resize=50", "--replace")
    assert "set.replacement" not in os.listdir(tmp_path)


def progress_of(folder) -> set[tuple[str, int]]:
    """The files of the set and of its replacement, with their inodes."""
    files = set()
    for name in ("set", "set.replacement"):
        with contextlib.suppress(FileNotFoundError):
            files |= {(f"{name}/{entry.name}", entry.inode()) for entry in os.scandir(folder / name)}
    return files
