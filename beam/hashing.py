"""The hashes of whole shards: of a listing before it is written, and of evaluation sets."""

import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import tensorflow as tf

from beam import checks, images, shards
from beam.duplicates import SUFFIX, HashedImage, Reference, read_csv, to_csv
from beam.errors import BuildError
from beam.examples import SourceExample, name_bytes
from pipeline import files
from pipeline.data import manifest, record, shard
from pipeline.errors import cause

_RECORDS_AT_ONCE = 16


def hash_shard(
    spec: shards.BuildSpec,
    split: str,
    index: int,
    examples: Iterable[SourceExample],
    reference: Reference | None,
) -> Iterator[HashedImage]:
    """The hashes of the usable images of one shard's listing.

    They are kept beside the shard, after a line with what they were computed from, and read from there on a re-run.
    """
    examples = shards.in_order(examples)
    listing, settings = (shards.fingerprint(spec, listed, {}, reference) for listed in (examples, ()))
    origin = {"fingerprint": listing, "settings": settings}
    path = shards.path_of(spec, split, index) + SUFFIX
    previous = _origin(path)
    if spec.retry_rejected or previous != origin:  # a repaired file may have the same size
        reusable = spec.retry_rejected and previous.get("settings") == settings
        hashes = {image.location: image for image in _read_file(path)} if reusable else {}
        computed = _compute(spec, examples, reference, hashes)
        lines = itertools.chain([json.dumps(origin).encode() + b"\n"], to_csv(computed))
        files.write_atomically(path, lines, several_writers=True)
    yield from _read_file(path)


def _origin(path: str) -> dict:
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return json.loads(file.readline())
    except (tf.errors.OpError, ValueError):
        return {}


def _compute(
    spec: shards.BuildSpec, examples: list[SourceExample], reference: Reference | None, hashes: dict
) -> Iterator[HashedImage]:
    def outcome(example: SourceExample) -> HashedImage | None:
        if example.location in hashes and not example.refusal:
            return hashes[example.location]
        encoded = checks.checked(example, spec.image_settings)
        if isinstance(encoded, images.Refused):
            return None
        image = HashedImage.of(example, encoded.data)
        return None if reference and reference.find(image) else image

    for _, result in checks.outcomes(examples, outcome):
        if isinstance(result, HashedImage):
            yield result


class EvaluationPart(NamedTuple):
    """A file of hashes, or a shard of a record set: then with the number of its `examples`."""

    path: str
    examples: int | None = None


def evaluation_parts(path: str) -> list[EvaluationPart]:
    """What holds the hashes of an evaluation set.

    Raises:
      BuildError: `path` is neither a record set nor a file of hashes.
    """
    if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
        with tf.io.gfile.GFile(path, "rb") as file:
            _skip_origin(file)
            header = file.readline().decode("utf-8", "replace")
        if {"key", "content", "perceptual"} <= set(next(csv.reader([header]), ())):
            return [EvaluationPart(path)]
        raise BuildError(
            f"--remove_duplicates_of={path}: found no columns key, content and perceptual; expected a record set's "
            "folder, or a file of hashes as a build with --duplicates writes it."
        )
    try:
        splits = manifest.read(path).splits
    except manifest.ManifestError as error:
        raise BuildError(f"--remove_duplicates_of={path}: {error}") from error
    shards = (part for split in splits.values() for part in split.shards)
    return [EvaluationPart(os.path.join(path, part.file), part.examples) for part in shards]


def hash_part(part: EvaluationPart) -> Iterator[tuple]:
    """The hashes of one of the `evaluation_parts`, each a `HashedImage` as a plain tuple.

    Raises:
      BuildError: it is damaged.
    """
    path, examples = part
    try:
        yield from map(tuple, _read_file(path) if examples is None else _hash_records(path, examples))
    except (ValueError, OSError, tf.errors.OpError) as error:
        raise BuildError(f"--remove_duplicates_of: {path}, {cause(error)}: repair it, or build it again.") from error


def _read_file(path: str) -> Iterator[HashedImage]:
    with tf.io.gfile.GFile(path, "rb") as file:
        _skip_origin(file)
        yield from read_csv(file)


def _skip_origin(file: BinaryIO) -> None:
    if not file.readline().startswith(b"{"):
        file.seek(0)


def _hash_records(path: str, examples: int) -> Iterator[HashedImage]:
    index = shard.read_index(path, examples)
    for first in range(0, examples, _RECORDS_AT_ONCE):
        payloads = shard.read_records(path, index, first, min(_RECORDS_AT_ONCE, examples - first))
        for number, payload in enumerate(payloads, first):
            if payload is None:
                raise ValueError(f"record {number} is damaged")
            values = record.decode(payload)
            image = values["image"]
            offset = shard.payload_offset(int(index[number])) + payload.find(image)
            yield HashedImage.of(SourceExample(values["key"], name_bytes(path), offset, len(image)), image)
