"""The hashes of whole shards: of a listing before it is written, and of record sets that stand already."""

import csv
import json
import os
import uuid
from collections.abc import Iterable, Iterator

import tensorflow as tf

from beam import duplicates, images, shards, writing
from beam.options import BuildError
from pipeline.data import manifest, shard


def of_listing(
    task: shards.Task,
    split: str,
    index: int,
    names: Iterable[shards.Name],
    reference: duplicates.Reference | None,
) -> Iterator[duplicates.Row]:
    """The hashes of the usable images of one shard's listing.

    They are kept beside the shard, after a line with what they were made from, and read from there on a re-run.
    """
    names = shards.in_order(names)
    listing, settings = (shards.fingerprint(task, listed, {}, reference) for listed in (names, ()))
    made_from = {"fingerprint": listing, "settings": settings}
    path = shards.path_of(task, split, index) + duplicates.SUFFIX
    old = _made_from(path)
    if task.retry or old != made_from:  # a mended file need not differ in size
        known = _of_file(path) if task.retry and old.get("settings") == settings else ()
        partial = f"{path}.partial-{uuid.uuid4().hex}"
        with tf.io.gfile.GFile(partial, "wb") as file:
            file.write(json.dumps(made_from).encode() + b"\n")
            duplicates.write_rows(file, _rows(task, names, reference, {row[:4]: row for row in known}))
        tf.io.gfile.rename(partial, path, overwrite=True)
    yield from _of_file(path)


def _made_from(path: str) -> dict:
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return json.loads(file.readline())
    except (tf.errors.OpError, ValueError):
        return {}


def _rows(task, names, reference, known: dict) -> Iterator[duplicates.Row]:
    def outcome(name: shards.Name) -> duplicates.Row | images.Refused:
        if name[:4] in known and not name.refusal:
            return known[name[:4]]
        checked = writing.checked(name, task, reference)
        return checked if isinstance(checked, images.Refused) else writing.row_of(name, checked.data)

    for _, row in writing.outcomes(names, outcome):
        if isinstance(row, duplicates.Row):
            yield row


def parts(path: str) -> list[tuple[str, str]]:
    """What holds the hashes of an evaluation set: ("shard" or "file", path) for each of its parts.

    Raises:
      BuildError: `path` is neither a record set nor a file of hashes.
    """
    if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
        with tf.io.gfile.GFile(path, "rb") as file:
            _skip_fingerprint(file)
            header = file.readline().decode("utf-8", "replace")
        if {"key", "content", "perceptual"} <= set(next(csv.reader([header]), ())):
            return [("file", path)]
        raise BuildError(
            f"--remove_duplicates_of={path}: found no columns key, content and perceptual; expected a record set's "
            "folder, or a file of hashes as a build with --duplicates leaves it."
        )
    try:
        made = manifest.read(path)
    except manifest.ManifestError as error:
        raise BuildError(f"--remove_duplicates_of={path}: {error}") from error
    return [("shard", os.path.join(path, part.file)) for split in made.splits.values() for part in split.shards]


def of_part(part: tuple[str, str]) -> Iterator[tuple]:
    """The hashes of one of the `parts`, each a `duplicates.Row` as a plain tuple (see `duplicates.Pair.plain`).

    Raises:
      BuildError: it is damaged.
    """
    kind, path = part
    try:
        yield from map(tuple, _of_records(path) if kind == "shard" else _of_file(path))
    except ValueError as error:
        raise BuildError(f"--remove_duplicates_of: {path}, {error}: mend it, or make it again.") from error


def _of_file(path: str) -> Iterator[duplicates.Row]:
    with tf.io.gfile.GFile(path, "rb") as file:
        _skip_fingerprint(file)
        yield from duplicates.read_rows(file)


def _skip_fingerprint(file) -> None:
    if not file.readline().startswith(b"{"):
        file.seek(0)


def _of_records(path: str) -> Iterator[duplicates.Row]:
    with tf.io.gfile.GFile(shard.index_path(path), "rb") as file:
        examples = len(file.read()) // 8 - 1
    index = shard.read_index(path, examples)
    for number in range(examples):
        (payload,) = shard.read_records(path, index, number, 1)
        if payload is None:
            raise ValueError(f"record {number} is damaged")
        features = tf.train.Example.FromString(payload).features.feature
        (image,), (key,) = features["image"].bytes_list.value, features["key"].bytes_list.value
        place = int(index[number]) + 12 + payload.find(image)
        yield duplicates.Row(key, os.fsencode(path), place, len(image), *duplicates.hashes(image))
