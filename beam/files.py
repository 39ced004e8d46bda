"""Files by path, on this machine's disk or on any file system that Beam knows (`gs://`, `s3://`, `hdfs://`).

Every function that uses the file system raises an OSError where it cannot be reached or has no such file.
"""

import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from apache_beam.io.filesystem import CompressionTypes, FileSystem
from apache_beam.io.filesystems import FileSystems

from pipeline.files import is_remote


class TooLarge(OSError):
    """There are more bytes than may be read; nothing was read."""


def open_to_read(path: str) -> BinaryIO:
    """The file at `path`, opened to read bytes, never decompressed; an OSError if it is not a regular file."""
    if not is_remote(path):
        size_of(path)  # raises for a pipe or a device, which could block its reader for ever
        return open(path, "rb")
    return _file_system(path).open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def _file_system(path: str) -> FileSystem:
    try:
        return FileSystems.get_filesystem(path)
    except ValueError as error:  # an unknown scheme, or a flag of its file system is missing
        raise OSError(str(error)) from error


def read(path: str, offset: int, size: int, limit: int) -> bytes:
    """`size` bytes from `offset`; from a negative offset, the whole file.

    Raises:
      TooLarge: it is more than `limit` bytes.
    """
    with open_to_read(path) as file:
        if offset < 0:
            offset, size = 0, file.seek(0, os.SEEK_END)
        if size > limit:
            raise TooLarge(f"{size} bytes; at most {limit}")
        file.seek(offset)
        return file.read(size)


def exists(path: str) -> bool:
    """Whether there is a file or a folder at `path`."""
    if is_remote(path):
        return _file_system(path).exists(path) or next(walk(path), None) is not None
    return os.path.exists(path)


def match(pattern: str) -> tuple[str, ...]:
    """The files that a pattern (`*`, `?`, `[a-z]`) names, sorted; a path without these names itself.

    Raises:
      FileNotFoundError: there are none.
    """
    if not is_remote(pattern) and os.path.exists(pattern):
        return (pattern,)
    matched = _file_system(pattern).match([pattern])[0].metadata_list
    if not matched:
        raise FileNotFoundError(pattern)
    return tuple(sorted(metadata.path for metadata in matched))


def join(folder: str, name: str) -> str:
    """`name` below `folder`, or `name` itself if it is absolute or has a scheme."""
    if is_remote(name) or os.path.isabs(name):
        return name
    return FileSystems.join(folder, name) if is_remote(folder) else os.path.join(folder, name)


def common_folder(paths: Iterable[str]) -> str:
    """The deepest folder that holds all files at `paths`, with a slash at its end."""
    levels = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, levels)
    return "".join(f"{names[0]}/" for names in shared)


def folder_of(path: str) -> str:
    """The folder that holds the file at `path`."""
    return FileSystems.split(path)[0] if is_remote(path) else os.path.dirname(os.path.abspath(path))


def size_of(path: str) -> int:
    """Size in bytes; -1 where it would take a request over a network for each file.

    Raises:
      OSError: it is not a regular file.
      ValueError: the path cannot name a file.
    """
    if is_remote(path):
        return -1
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is not a regular file")
    return status.st_size


def walk(root: str) -> Iterator[tuple[str, int]]:
    """(path, size) of every file below a remote folder, as a stream; `lists_trees` says where this can be had."""
    prefix = root.rstrip("/") + "/"
    for metadata in _file_system(prefix)._list(prefix):  # the only listing that streams
        if not metadata.path.endswith("/"):  # an object that stands for a folder
            yield metadata.path, metadata.size_in_bytes


def lists_trees(path: str) -> bool:
    """Whether Beam lists a remote file system by prefix, at any depth, rather than one folder at a time."""
    return not _file_system(path).has_dirs()
