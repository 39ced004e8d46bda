"""Each listed image read and checked, several at a time."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from beam import duplicates, files, images, record_files
from beam.examples import SourceExample, text
from beam.options import ImageSettings

Outcome = TypeVar("Outcome")
_CHUNK = 8  # images that a thread takes at once
DUPLICATE_KEY = images.Refused("duplicate_key", "listed more than once; one entry is read, if possible a valid one")


def checked(
    example: SourceExample, settings: ImageSettings, reference: duplicates.Reference | None = None
) -> images.Encoded | images.Refused:
    """Reads and checks one image, and compares it with the evaluation sets of `reference`."""
    try:
        if example.refusal:
            raise images.Refused(*example.refusal)
        encoded = images.normalise(read(example, settings.max_bytes), settings)
    except images.Refused as refused:
        return refused
    if reference and (pair := reference.find(duplicates.HashedImage.of(example, encoded.data))):
        return images.Refused(pair.reason, pair.detail(), pair)
    return encoded


def read(example: SourceExample, limit: int) -> bytes:
    """The bytes of an image, at most `limit`.

    Raises:
      images.Refused: with reason too_many_bytes or unreadable.
    """
    try:
        return record_files.read(text(example.path), example.offset, example.size, limit)
    except files.TooLarge as error:
        raise images.Refused("too_many_bytes", str(error)) from error
    except (OSError, ValueError) as error:
        raise images.Refused("unreadable", getattr(error, "strerror", None) or str(error)) from error


def outcomes(
    examples: list[SourceExample], function: Callable[[SourceExample], Outcome]
) -> Iterator[tuple[SourceExample, Outcome | images.Refused]]:
    """Each example of a shard, in order, with what `function` returns for it; computed in threads, a few ahead.

    An example whose key came before is refused and not given to `function`.
    """

    def chunk(first: int) -> list[Outcome | images.Refused]:
        part = range(first, min(first + _CHUNK, len(examples)))
        repeated = (i > 0 and examples[i - 1].key == examples[i].key for i in part)
        return [DUPLICATE_KEY if again else function(examples[i]) for i, again in zip(part, repeated, strict=True)]

    threads = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for first, results in _ahead(pool, chunk, range(0, len(examples), _CHUNK), 2 * threads):
            yield from zip(examples[first : first + _CHUNK], results, strict=True)


def _ahead(
    pool: concurrent.futures.Executor, function: Callable[[int], Outcome], arguments: Iterable[int], depth: int
) -> Iterator[tuple[int, Outcome]]:
    """(argument, function(argument)) in order, at most `depth` of them under way: bounded memory."""
    waiting: collections.deque[tuple[int, concurrent.futures.Future[Outcome]]] = collections.deque()
    for argument in arguments:
        waiting.append((argument, pool.submit(function, argument)))
        if len(waiting) > depth:
            argument, future = waiting.popleft()
            yield argument, future.result()
    for argument, future in waiting:
        yield argument, future.result()
