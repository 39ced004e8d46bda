import hashlib
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.lib.io import tf_record

from pipeline.data import shard

RECORDS = [b"a" * n for n in (0, 1, 100, 5000)]


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "demo.tfrecord")
    shard.write_shard(path, RECORDS)
    return path


def test_tensorflow_reads_the_shard(path):
    assert [r.numpy() for r in tf.data.TFRecordDataset(path)] == RECORDS


def test_index_holds_the_offsets_that_tensorflow_takes(path):
    reader = tf_record.tf_record_random_reader(path)
    index = shard.read_index(path, len(RECORDS))
    assert [reader.read(int(offset)) for offset in index[:-1]] == list(zip(RECORDS, index[1:], strict=True))


def test_a_shard_of_several_writes_is_what_its_index_and_digest_say(tmp_path):
    path, records = str(tmp_path / "large.tfrecord"), [bytes([n]) * (300_000 * n) for n in range(9)]
    index, sha256 = shard.write_shard(path, iter(records))
    assert [r.numpy() for r in tf.data.TFRecordDataset(path)] == records
    assert sha256 == hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    assert index[-1] == pathlib.Path(path).stat().st_size
    assert shard.read_records(path, shard.read_index(path, 9), 0, 9) == records


def test_any_range_is_one_read(path):
    index = shard.read_index(path, len(RECORDS))
    for first in range(4):
        for count in range(1, 5 - first):
            assert shard.read_records(path, index, first, count) == RECORDS[first : first + count]


@pytest.mark.parametrize("where", [0, 8, 12, 40, -1])
def test_damage_is_found_and_stays_with_its_record(path, where):
    index = shard.read_index(path, len(RECORDS))
    data = bytearray(pathlib.Path(path).read_bytes())
    start, end = int(index[2]), int(index[3])
    data[(start if where >= 0 else end) + where] ^= 1
    with open(path, "wb") as file:
        file.write(data)
    assert shard.read_records(path, index, 0, 4) == [RECORDS[0], RECORDS[1], None, RECORDS[3]]


def test_a_truncated_shard_yields_what_is_left(path):
    index = shard.read_index(path, len(RECORDS))
    data = pathlib.Path(path).read_bytes()
    with open(path, "wb") as file:
        file.write(data[: int(index[3]) + 20])
    assert shard.read_records(path, index, 0, 4) == [*RECORDS[:3], None]


def test_a_missing_index_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="is missing: copy it beside its shard"):
        shard.read_index(str(tmp_path / "x.tfrecord"), 3)


@pytest.mark.parametrize("content", [b"123", np.arange(3).tobytes(), np.array([0, 50, 40, 90, 120]).tobytes()])
def test_an_index_of_something_else_is_refused(path, content):
    with open(shard.index_path(path), "wb") as file:
        file.write(content)
    with pytest.raises(ValueError, match="is not the index of 4 records"):
        shard.read_index(path, 4)


def test_a_piece_of_a_long_index_is_read_from_anywhere(tmp_path):
    examples, count = 100_000, 8
    index = np.arange(examples + 1, dtype="<i8") * 20
    shard.write_index(str(tmp_path / "long"), index)
    for first in (0, 40_000, examples - count):
        numbers = [tf.constant(number, tf.int64) for number in (examples, first, count)]
        (piece,) = shard.index_bytes(tf.constant(str(tmp_path / "long")), *numbers)
        np.testing.assert_array_equal(np.frombuffer(piece.numpy(), "<i8"), index[first : first + count + 1])
