"""Files on this machine's disk or on a file system of TensorFlow's (`gs://`), written whole or not at all."""

import hashlib
import os
import typing
import uuid
from collections.abc import Iterable

_ATTEMPTS = 5


def absolute(path: str) -> str:
    """A path that means the same in a TensorFlow server with another working directory."""
    return path if is_remote(path) else os.path.abspath(path)


def is_remote(path: str) -> bool:
    """Whether `path` has a scheme, such as `gs://`."""
    return "://" in path


def opened(path: str, mode: str) -> typing.IO:
    """The file at `path`, opened for text or bytes: through TensorFlow only where it is remote.

    TensorFlow reads half a megabyte at each place, needed or not, writes without letting other Python threads run, and
    takes seconds to import.
    """
    if not is_remote(path):
        return open(path, mode)
    import tensorflow as tf

    return tf.io.gfile.GFile(path, mode)


def digest(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """The digest of a file, in hexadecimal."""
    result = hashlib.new(algorithm)
    with opened(os.fspath(path), "rb") as file:
        while block := file.read(1 << 20):
            result.update(block)
    return result.hexdigest()


def make_folder(path: str) -> None:
    """Makes the folder at `path`, and those above it, where they do not exist."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)
        return
    import tensorflow as tf

    tf.io.gfile.makedirs(path)


def remove_folder(path: str) -> None:
    """Removes the folder at `path` with all that it holds.

    TensorFlow's client for `gs://` says that a folder does not exist where its own request for it failed in passing:
    what is still there is removed by another attempt.
    """
    import tensorflow as tf

    for attempt in reversed(range(_ATTEMPTS)):
        try:
            return tf.io.gfile.rmtree(path)
        except tf.errors.NotFoundError:
            if not tf.io.gfile.exists(path):
                return None
            if not attempt:
                raise


PARTIAL = r"\.partial(-[0-9a-f]{32}(\.index)?)?"  # what a killed writer may leave behind a name, also of a shard


def write_atomically(path: str, content: str | bytes | Iterable[str | bytes], several_writers: bool = False) -> None:
    """Writes a file, whole or not at all: what stood at `path` before stays until all of `content` is written.

    Args:
      path: where.
      content: bytes, or text that is written as UTF-8; or pieces of it, written as they come.
      several_writers: other processes may write the same file at the same time; the last one to finish wins.
    """
    partial = f"{path}.partial-{uuid.uuid4().hex}" if several_writers else f"{path}.partial"
    with opened(partial, "wb") as file:
        file.write(b"")  # on an object store a file that nothing is written to would not be there
        for piece in [content] if isinstance(content, str | bytes) else content:
            file.write(piece.encode() if isinstance(piece, str) else piece)
    put_in_place(partial, path)


def put_in_place(partial: str, path: str) -> None:
    """Renames a file that is written whole to its final name, over what stands there."""
    if not is_remote(path):
        os.replace(partial, path)
        return
    import tensorflow as tf

    tf.io.gfile.rename(partial, path, overwrite=True)
