"""Records by number, in the files of TFDS's formats that are no TFRecords.

An image in such a record has a location like any other: `path` names the format and the file, and `offset` holds the
record's number and where the image begins in it.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from beam import files

_START_BITS = 32  # of an offset: where the image begins; the record's number is above
_FILES_OPEN = 32  # of each format, by a process
_GROUPS_CACHED = 8


def path_of(file_format: str, path: str) -> str:
    """The path that names a file and its format."""
    return f"{file_format}:{path}"


def offset_of(number: int, start: int) -> int:
    """The offset that stands for `start` within a record."""
    return number << _START_BITS | start


def payloads(file_format: str, path: str, count: int) -> Iterator[bytes]:
    """The `count` records of a file, in order.

    Raises:
      OSError: it cannot be read, or holds another number of them: TFDS 4.9 leaves out some where it writes Parquet.
    """
    payload, found = _FORMATS[file_format](path)
    if found != count:
        raise OSError(f"it holds {found} records; expected {count}")
    return map(payload, range(count))


def read(path: str, offset: int, size: int, limit: int) -> bytes:
    """The bytes of an image: as `files.read`, also where `path` and `offset` are those of a record."""
    file_format, _, file = path.partition(":")
    if file_format not in _FORMATS or files.exists(path):
        return files.read(path, offset, size, limit)
    if size > limit:
        raise files.TooLarge(f"{size} bytes; at most {limit}")
    payload, _ = _FORMATS[file_format](file)
    start = offset & (1 << _START_BITS) - 1
    return payload(offset >> _START_BITS)[start : start + size]


# Each opens a file, and returns what reads a record by its number, and how many there are.
Opened = tuple[Callable[[int], bytes], int]


@functools.lru_cache(_FILES_OPEN)
def _array_record(path: str) -> Opened:
    from array_record.python import array_record_module  # here and below: other sources do not need them

    reader = array_record_module.ArrayRecordReader(path)
    if not reader.ok():  # which is all that tells a damaged file from an empty one
        raise OSError(f"{path} is not a whole ArrayRecord file on a disk of this machine")

    def payload(number: int) -> bytes:
        try:
            (record,) = reader.read([number])
        except RuntimeError as error:
            raise OSError(f"record {number} of {path}: {error}") from error
        return record

    return payload, reader.num_records()


@functools.lru_cache(_FILES_OPEN)
def _parquet(path: str) -> Opened:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_to_read(path) as file:
            metadata = pq.ParquetFile(file).metadata
    except pa.ArrowException as error:
        raise OSError(f"{path}: {error}") from error
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])

    def payload(number: int) -> bytes:
        group = int(np.searchsorted(ends, number, side="right"))
        return _parquet_group(path, group)[number - int(ends[group])].as_py()  # from the group's end

    return payload, metadata.num_rows


@functools.lru_cache(_GROUPS_CACHED)
def _parquet_group(path: str, group: int) -> Sequence[Any]:
    """The records of a row group, decompressed as a whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_to_read(path) as file:
            (column,) = pq.ParquetFile(file).read_row_group(group).columns
    except pa.ArrowException as error:
        raise OSError(f"{path}, row group {group}: {error}") from error
    return column


_FORMATS: dict[str, Callable[[str], Opened]] = {"array_record": _array_record, "parquet": _parquet}
NAMES = tuple(_FORMATS)
