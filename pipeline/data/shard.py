"""One shard on disk: a TFRecord file with an index of byte offsets beside it.

The index `SHARD.index` holds little-endian int64: the offset of each record and, last, the file's size.
It makes any range of records one contiguous read; the TFRecord file stays what every other tool reads.

`index_bytes` and `payloads` read as part of a TensorFlow graph, on whatever host it runs; the rest is Python.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import IO

import google_crc32c
import numpy as np
import tensorflow as tf

from pipeline.files import opened

_HEADER = struct.Struct("<QI")  # length of the payload, masked CRC of those 8 bytes
_FOOTER = struct.Struct("<I")  # masked CRC of the payload
_LARGEST = 1 << 31  # bytes of a payload: a protocol buffer is smaller
FRAME_BYTES = _HEADER.size + _FOOTER.size  # beside the payload
_INDEX_BUFFER = 1 << 18  # bytes
_AT_ONCE = 1 << 20  # bytes to hash and write at once: for each, other threads take Python's lock


class DamagedRecordError(ValueError):
    """A record's bytes are not what was written; the message names shard, record and offset."""


def shard_name(name: str, split: str, shard: int, shards: int) -> str:
    """The file name that TFDS gives a shard: `NAME-SPLIT.tfrecord-00000-of-00008`."""
    return f"{name}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


def index_path(shard_path: str) -> str:
    """Where the index of a shard is stored; takes and returns a tensor, too."""
    return shard_path + ".index"


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(record: bytes) -> tuple[bytes, bytes, bytes]:
    """A record as it stands in a TFRecord file: length and its CRC, payload, CRC of the payload."""
    length = struct.pack("<Q", len(record))
    return length + _FOOTER.pack(_masked_crc(length)), record, _FOOTER.pack(_masked_crc(record))


def payload_offset(offset: int) -> int:
    """Where the payload of the record at `offset` begins."""
    return offset + _HEADER.size


def scan(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(offset of the payload, payload) of each record of a TFRecord file, without an index and without its CRCs.

    What is cut off at the file's end is an empty payload.

    Args:
      file: opened to read bytes, at the beginning of a record.
    """
    offset = 0
    while header := file.read(_HEADER.size):
        length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else -1
        payload = file.read(length) if 0 <= length < _LARGEST else b""
        if len(payload) != length:
            yield payload_offset(offset), b""
            return
        yield payload_offset(offset), payload
        file.read(_FOOTER.size)
        offset += _HEADER.size + length + _FOOTER.size


def write_shard(path: str, records: Iterable[bytes]) -> tuple[np.ndarray, str]:
    """Writes `records` and their index.

    Returns:
      The index, int64 [records + 1], and the SHA-256 of the shard in hexadecimal digits.
    """
    return write_frames(path, map(frame, records))


def write_frames(path: str, frames: Iterable[tuple[bytes, ...]]) -> tuple[np.ndarray, str]:
    """As `write_shard`, for records that are framed already: each the pieces of its bytes in the file."""
    offsets, digest, size = [0], hashlib.sha256(), 0
    waiting: list[bytes] = []
    with opened(path, "wb") as file:

        def write():
            data = b"".join(waiting)
            digest.update(data)
            file.write(data)
            waiting.clear()

        for pieces in frames:
            waiting.extend(pieces)
            offsets.append(offsets[-1] + sum(map(len, pieces)))
            if offsets[-1] - size >= _AT_ONCE:
                write()
                size = offsets[-1]
        write()  # makes the file, also where there is no record
    index = np.asarray(offsets, "<i8")
    write_index(path, index)
    return index, digest.hexdigest()


def write_index(path: str, index: np.ndarray) -> None:
    """Writes the index of the shard at `path`: int64 [records + 1]."""
    with opened(index_path(path), "wb") as file:
        file.write(np.asarray(index, "<i8").tobytes())


def read_index(path: str, examples: int) -> np.ndarray:
    """The index of the shard at `path`, int64 [examples + 1].

    Raises:
      ValueError: the index is missing or does not fit `examples` records.
    """
    try:
        with tf.io.gfile.GFile(index_path(path), "rb") as file:
            data = file.read()
    except tf.errors.NotFoundError as error:
        raise ValueError(
            f"{index_path(path)} is missing: copy it beside its shard, or build the records again."
        ) from error
    index = np.frombuffer(data, "<i8") if len(data) % 8 == 0 else np.zeros(0, "<i8")
    if len(index) != examples + 1 or index[0] != 0 or np.any(np.diff(index) < _HEADER.size + _FOOTER.size):
        raise ValueError(
            f"{index_path(path)} is not the index of {examples} records ({len(data)} bytes found, "
            f"{8 * (examples + 1)} expected): restore it, or build the records again."
        )
    return index


def read_records(path: str, index: np.ndarray, first: int, count: int) -> list[bytes | None]:
    """Reads records [first, first + count) of the shard at `path` in one contiguous read.

    Returns:
      A payload for each record; None where its bytes are damaged or missing.
    """
    start, end = int(index[first]), int(index[first + count])
    with opened(path, "rb") as file:
        file.seek(start)
        data = memoryview(file.read(end - start))
    offsets = index[first : first + count + 1] - start
    return [_unframe(data[a:b]) for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def _unframe(data: memoryview) -> bytes | None:
    if len(data) < _HEADER.size + _FOOTER.size:
        return None
    length, length_crc = _HEADER.unpack_from(data)
    payload = bytes(data[_HEADER.size : -_FOOTER.size])
    (payload_crc,) = _FOOTER.unpack_from(data, len(data) - _FOOTER.size)
    if length != len(payload) or length_crc != _masked_crc(bytes(data[:8])) or payload_crc != _masked_crc(payload):
        return None
    return payload


def index_bytes(path: tf.Tensor, examples: tf.Tensor, first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
    """The index of records [first, first + count) of the shard at `path`, for use in a function of a data set.

    Args:
      path: string [].
      examples: int64 [], records of the shard.
      first, count: int64 [].

    Returns:
      A data set of one element: `count + 1` little-endian int64 in a string [].

    Raises:
      tf.errors.OpError: on iteration, where the index is missing or not one of `examples` records.
    """
    size, header = 8 * (count + 1), 8 * first
    return _file_bytes(index_path(path), header, size, 8 * (examples + 1) - header - size, _INDEX_BUFFER)


def first_byte(path: tf.Tensor) -> tf.data.Dataset:
    """A data set that starts with the first byte of the file at `path`, a string []: it shows that it can be read."""
    one, none = tf.constant(1, tf.int64), tf.constant(0, tf.int64)
    return _file_bytes(path, none, one, none, buffer_bytes=1).take(1)


def payloads(path: tf.Tensor, offset: tf.Tensor, count: tf.Tensor, buffer_bytes: tf.Tensor) -> tf.data.Dataset:
    """The payloads, string [], of `count` records of the shard at `path`, from `offset` on.

    For use in a function of a data set: TensorFlow 2.20 cannot serialise it as the outermost one.

    Args:
      path: string [].
      offset: int64 [], bytes.
      count: int64 [], records.
      buffer_bytes: int64 [], how much is read at a time; 0 for each record by itself.

    Raises:
      tf.errors.DataLossError: on iteration, where a record does not fit its CRCs.
    """
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[None], compression_type="", buffer_size=buffer_bytes, byte_offsets=offset[None]
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).take(count)


def _file_bytes(
    path: tf.Tensor, header: tf.Tensor, size: tf.Tensor, footer: tf.Tensor, buffer_bytes: int
) -> tf.data.Dataset:
    """What is between header and footer of a file, `size` bytes at a time; sizes are int64 [].

    The header is read too, `buffer_bytes` at a time: TensorFlow has no operation that seeks in a plain file.

    `tf.data.FixedLengthRecordDataset` does the same through one more data set, of file names, and takes longer.
    """
    variant = tf.raw_ops.FixedLengthRecordDatasetV2(
        filenames=path[None],
        header_bytes=header,
        record_bytes=size,
        footer_bytes=footer,
        buffer_size=tf.constant(buffer_bytes, tf.int64),
        compression_type="",
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
