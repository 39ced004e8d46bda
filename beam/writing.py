"""One shard: its images read, checked and written, in the order of their keys' hashes."""

import base64
import collections
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import tensorflow as tf

from beam import checks, duplicates, images, progress, shards
from beam.examples import SourceExample, name_bytes, text, to_record
from beam.options import ImageSettings
from beam.shards import BuildSpec
from pipeline import files
from pipeline.data import manifest, record, shard, statistics


class _Entry(NamedTuple):
    """A record of a shard, and what its statistics need of it.

    Attributes:
      frame: the pieces of its bytes in the file.
      id: of the record.
      side: the image's shorter side, in pixels.
      passed: whether the image is the source's own bytes.
      content: 8 bytes that stand for the image; empty in a set of one split.
    """

    frame: tuple[bytes, ...]
    id: int
    side: int
    passed: bool
    content: bytes


def commit_shard(
    spec: BuildSpec,
    split: str,
    index: int,
    examples: Iterable[SourceExample],
    pairs: Iterable[duplicates.Pair],
    reference: duplicates.Reference | None,
) -> dict:
    """Writes and commits one shard, unless it is committed already.

    `examples` are what is listed for it, and `pairs` those of them that are duplicates of others in the set.

    Returns:
      file, listed, examples, bytes, sha256, id_checksum, passed (images whose bytes were kept), classes (class
      index to count), sides (see `statistics.py`), rejected (rows of `rejected.jsonl`), pairs (duplicates found), in
      a set of several splits contents (hashes of the images, 8 bytes each, in base64), and what it was written from:
      fingerprint, kept (the fingerprint of what was not refused) and settings.
    """
    ordered, best, path = shards.in_order(examples), duplicates.best(pairs), shards.path_of(spec, split, index)
    fingerprint = shards.fingerprint(spec, ordered, best, reference)
    old = shards.committed(path)
    if old and old["fingerprint"] == fingerprint and not (spec.retry_rejected and old["rejected"]):
        progress.count("done", len(ordered))
        return old
    kept = _kept_images(spec, path, old, ordered, best, reference) if old and spec.retry_rejected else {}
    stats = _write(spec, path, ordered, best, reference, kept)
    if old and kept:
        stats["passed"] += old["passed"]
    stats["fingerprint"] = fingerprint
    stats["kept"] = _fingerprint_of_kept(spec, stats, ordered, reference)
    shards.commit(path, stats)
    return stats


def _fingerprint_of_kept(
    spec: BuildSpec, stats: dict, examples: list[SourceExample], reference: duplicates.Reference | None
) -> str:
    rejected = _rejected_keys(stats)
    kept = (example for example in examples if example.key not in rejected)
    return shards.fingerprint(spec, kept, {}, reference, limits=False)


def _rejected_keys(stats: dict) -> set[bytes]:
    return {name_bytes(row["key"]) for row in stats["rejected"] if row["reason"] != checks.DUPLICATE_KEY.reason}


def _kept_images(
    spec: BuildSpec,
    path: str,
    old: dict,
    examples: list[SourceExample],
    pairs: dict[bytes, duplicates.Pair],
    reference: duplicates.Reference | None,
) -> dict[bytes, bytes]:
    """The images of the old shard, by key, if they would be written just the same now; else nothing."""
    settings, before = spec.image_settings, ImageSettings(**old["settings"])
    looser = (
        settings.min_side <= before.min_side
        and settings.max_pixels >= before.max_pixels
        and settings.max_bytes >= before.max_bytes
        and (settings.animated == before.animated or before.animated == "refuse")
    )
    same = old["kept"] == _fingerprint_of_kept(spec, old, examples, reference)
    if not looser or not same or pairs.keys() - _rejected_keys(old):
        return {}
    try:
        index = shard.read_index(path, old["examples"])
        records = [record.decode(payload or b"") for payload in shard.read_records(path, index, 0, old["examples"])]
    except ValueError:
        return {}  # a damaged record or index: write the whole shard again
    return {values["key"]: values["image"] for values in records}


def _write(
    spec: BuildSpec,
    path: str,
    examples: list[SourceExample],
    pairs: dict[bytes, duplicates.Pair],
    reference: duplicates.Reference | None,
    kept: dict[bytes, bytes],
) -> dict:
    """Writes the shard and its index, and removes the statistics of an older one; returns its statistics."""
    ids, passed = [], 0
    classes: collections.Counter[int] = collections.Counter()
    sides: collections.Counter[int] = collections.Counter()
    rejected: list[dict] = []
    contents: list[bytes] = []
    report_only = spec.duplicate_policy == "report"
    reported = list(pairs.values()) if report_only else []

    def image(example: SourceExample) -> images.Encoded | images.Refused:
        if example.key in kept:
            return images.as_written(kept[example.key])
        if example.key in pairs and not report_only:
            pair = pairs[example.key]
            return images.Refused(pair.reason, pair.detail(), pair)
        return checks.checked(example, spec.image_settings, reference)

    def entry(example: SourceExample) -> _Entry | images.Refused:
        result = image(example)
        if isinstance(result, images.Refused):
            return result
        frame = shard.frame(to_record(example, result.data, spec.label_kind))
        content = hashlib.blake2b(result.data, digest_size=8).digest() if spec.compares_splits else b""
        return _Entry(
            frame, record.record_id(text(example.key)), min(result.width, result.height), result.passed, content
        )

    def frames() -> Iterator[tuple[bytes, ...]]:
        nonlocal passed
        for example, result in checks.outcomes(examples, entry):
            progress.count("done", 1)
            if isinstance(result, images.Refused):
                rejected.append(_rejection(example, result))
                if result.pair:
                    reported.append(result.pair)
                continue
            contents.append(result.content)
            ids.append(result.id)
            classes.update(example.labels)
            sides[statistics.side_bucket(result.side)] += 1
            passed += result.passed
            yield result.frame

    partial = f"{path}.partial-{uuid.uuid4().hex}"
    index, sha256 = shard.write_frames(partial, frames())
    if tf.io.gfile.exists(shards.stats_path(path)):
        tf.io.gfile.remove(shards.stats_path(path))  # before the shard: old statistics must not describe a new one
    files.put_in_place(shard.index_path(partial), shard.index_path(path))
    files.put_in_place(partial, path)
    return {
        "format": shards.FORMAT,
        "file": os.path.basename(path),
        "listed": len(examples),
        "examples": len(ids),
        "bytes": int(index[-1]),
        "sha256": sha256,
        "id_checksum": manifest.checksum(ids),
        "passed": passed,
        "classes": {str(label): count for label, count in sorted(classes.items())},
        "sides": {str(bucket): count for bucket, count in sorted(sides.items())},
        "rejected": rejected,
        "pairs": [pair.as_json() for pair in reported],
        "settings": dict(vars(spec.image_settings)),
        **({"contents": base64.b64encode(b"".join(contents)).decode()} if spec.compares_splits else {}),
    }


def _rejection(example: SourceExample, refused: images.Refused) -> dict:
    """A row of `rejected.jsonl`."""
    return {
        "key": text(example.key),
        "reason": refused.reason,
        "detail": refused.detail,
        "path": text(example.path),
        "offset": example.offset,
        "size": example.size,
    }
