"""Files that are written whole or not at all."""

import pytest
import tensorflow as tf

from pipeline import files


@pytest.fixture(params=["local", "remote"])
def path(request, tmp_path):
    return str(tmp_path / "file") if request.param == "local" else f"ram://{tmp_path.name}/file"


def read(path):
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize(
    ("content", "expected"),
    [("words", b"words"), (b"bytes", b"bytes"), (["one", b" two"], b"one two"), ([], b""), ("", b"")],
)
def test_what_is_written_is_there(path, content, expected):
    files.write_atomically(path, "before")
    files.write_atomically(path, content)
    assert read(path) == expected
    assert not tf.io.gfile.exists(f"{path}.partial")


def test_an_empty_file_is_written_too(path):
    files.write_atomically(path, [])
    assert read(path) == b""


def test_what_cannot_be_made_leaves_what_was_there(path):
    def pieces():
        yield "half"
        raise ValueError("no more")

    files.write_atomically(path, "before")
    with pytest.raises(ValueError, match="no more"):
        files.write_atomically(path, pieces())
    assert read(path) == b"before"
