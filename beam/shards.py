"""Names to shards: which shard a key belongs to, and one shard read, checked, written and committed.

Only names cross Beam's shuffle. A shard is three files, the same bytes whoever makes them: the TFRecord,
its index and its statistics; the statistics are renamed into place last and are the commit. A committed shard
that was made with the same settings from the same listing is skipped.
"""

import collections
import concurrent.futures
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import tensorflow as tf

from beam import duplicates, files, images, progress
from beam.items import text
from beam.options import ImageSettings
from pipeline.data import manifest, record, shard

TRAIN, VALIDATION = "train", "validation"
FORMAT = 1  # of the statistics and of how records are made: raise it when either changes
_CHUNK = 8  # images a thread takes at once


class Name(NamedTuple):
    """What of an image crosses the shuffle; labels are class indices. See `items.Item`."""

    key: bytes
    path: bytes
    offset: int
    size: int
    labels: tuple[int, ...]
    weights: tuple[float, ...]
    refusal: tuple[str, str] | None


def position(key: bytes) -> int:
    """The hash that gives a key its shard and its place in it, in [0, 2**64): the record id, unsigned."""
    return record.record_id(text(key)) % 2**64


def split_hash(key: bytes) -> int:
    """The hash that decides whether a key is held out, in [0, 2**64); independent of `position`."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, person=b"split").digest(), "big")


class Task(NamedTuple):
    """What is the same for all shards of a build."""

    name: str
    output_dir: str
    label_kind: str
    shards: dict[str, int]
    images: ImageSettings
    policy: str = "off"
    distance: int = duplicates.EXACT_ONLY


def stats_path(task: Task, split: str, index: int) -> str:
    """Where the statistics of a shard lie."""
    return os.path.join(task.output_dir, shard.shard_name(task.name, split, index, task.shards[split]) + ".json")


def in_order(names: Iterable[Name]) -> list[Name]:
    """The names of a shard in the order of its records."""
    return sorted(names, key=lambda name: (position(name.key), repr(name)))


def build(
    task: Task,
    split: str,
    index: int,
    names: Iterable[Name],
    pairs: Iterable[duplicates.Pair] = (),
    reference: duplicates.Reference | None = None,
) -> dict:
    """Writes one shard, unless it is committed already; returns its statistics.

    Args:
      task, split, index: the build and which of its shards.
      names: what is listed for this shard.
      pairs: those of them that are duplicates of others in the set.
      reference: the evaluation set whose images must not be written.

    Returns:
      file, listed, examples, bytes, sha256, id_checksum, passed (images whose bytes were kept), classes (class
      index to count), rejected (a list of key, reason and detail), pairs (duplicates found) and a fingerprint.
    """
    names = in_order(names)
    pairs = duplicates.best(pairs)
    made_from = fingerprint(task, names, pairs, reference)
    path = stats_path(task, split, index)
    if (stats := _committed(path, made_from)) is not None:
        progress.count("done", len(names))
        return stats
    if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)  # first of all: old statistics must not vouch for a new shard
    stats = _write(task, path.removesuffix(".json"), names, pairs, reference)
    stats |= {"format": FORMAT, "fingerprint": made_from}
    partial = f"{path}.partial-{uuid.uuid4().hex}"
    with tf.io.gfile.GFile(partial, "w") as file:
        file.write(json.dumps(stats, sort_keys=True) + "\n")
    tf.io.gfile.rename(partial, path, overwrite=True)
    return stats


def fingerprint(task: Task, names: list[Name], pairs: dict, reference: duplicates.Reference | None) -> str:
    """SHA-256 over all that decides the shard's bytes and statistics: settings, listing and duplicates."""
    made_by = [FORMAT, task.label_kind, task.policy, list(task.images.__dict__.items())]
    digest = hashlib.sha256(json.dumps(made_by).encode())
    for name in names:
        digest.update(repr(tuple(name)).encode())
    for key in sorted(pairs):
        digest.update(repr(pairs[key]).encode())
    digest.update(reference.digest.encode() if reference else b"")
    return digest.hexdigest()


def _committed(path: str, fingerprint: str) -> dict | None:
    """The statistics at `path` if they are of this very shard and its files are whole."""
    try:
        with tf.io.gfile.GFile(path) as file:
            stats = json.load(file)
        file = path.removesuffix(".json")
        whole = (
            stats["format"] == FORMAT
            and stats["fingerprint"] == fingerprint
            and tf.io.gfile.stat(file).length == stats["bytes"]
            and tf.io.gfile.stat(shard.index_path(file)).length == 8 * (stats["examples"] + 1)
        )
    except (tf.errors.OpError, ValueError, KeyError, TypeError):
        return None
    return stats if whole else None


def _write(task: Task, path: str, names: list[Name], pairs: dict, reference: duplicates.Reference | None) -> dict:
    digest, classes, ids, rejected, passed = hashlib.sha256(), collections.Counter(), [], [], 0
    found = list(pairs.values()) if task.policy == "report" else []

    def outcome(name: Name) -> images.Encoded | images.Refused:
        pair = pairs.get(name.key) if task.policy != "report" else None
        return duplicate(pair) if pair else checked(name, task, reference)

    def records() -> Iterator[bytes]:
        nonlocal passed
        for name, outcome_ in outcomes(names, outcome):
            progress.count("done", 1)
            key = text(name.key)
            if isinstance(outcome_, images.Refused):
                rejected.append({"key": key, "reason": outcome_.reason, "detail": outcome_.detail})
                if outcome_.pair:
                    found.append(outcome_.pair)
                continue
            values = {"image": outcome_.data, "key": name.key, "id": record.record_id(key)}
            if task.label_kind == record.SINGLE_LABEL:
                values["label"] = name.labels[0]
            else:
                values |= {"labels": name.labels, "label_weights": name.weights}
            data = record.serialize(values, task.label_kind)
            digest.update(shard.frame(data))
            classes.update(name.labels)
            ids.append(values["id"])
            passed += outcome_.passed
            yield data

    partial = f"{path}.partial-{uuid.uuid4().hex}"
    index = shard.write_shard(partial, records())
    tf.io.gfile.rename(shard.index_path(partial), shard.index_path(path), overwrite=True)
    tf.io.gfile.rename(partial, path, overwrite=True)
    return {
        "file": os.path.basename(path),
        "listed": len(names),
        "examples": len(ids),
        "bytes": int(index[-1]),
        "sha256": digest.hexdigest(),
        "id_checksum": manifest.checksum(ids),
        "passed": passed,
        "classes": {str(label): count for label, count in sorted(classes.items())},
        "rejected": rejected,
        "pairs": [pair.as_json() for pair in found],
    }


def outcomes(
    names: list[Name], function: Callable[[Name], images.Encoded | images.Refused]
) -> Iterator[tuple[Name, images.Encoded | images.Refused]]:
    """Each name of a shard, in order, with what `function` makes of it, a few ahead in threads.

    A key that is listed again is refused without a look.
    """

    def chunk(first: int) -> list:
        part = range(first, min(first + _CHUNK, len(names)))
        return [_AGAIN if i > 0 and names[i - 1].key == names[i].key else function(names[i]) for i in part]

    threads = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for first, found in _ahead(pool, chunk, range(0, len(names), _CHUNK), 2 * threads):
            yield from zip(names[first : first + _CHUNK], found, strict=True)


_AGAIN = images.Refused("duplicate_key", "listed more than once; another entry was taken")


def _ahead(pool, function: Callable, arguments: Iterable, depth: int) -> Iterator[tuple]:
    """(argument, function(argument)) in order, at most `depth` of them under way: bounded memory."""
    waiting = collections.deque()
    for argument in arguments:
        waiting.append((argument, pool.submit(function, argument)))
        if len(waiting) > depth:
            argument, future = waiting.popleft()
            yield argument, future.result()
    for argument, future in waiting:
        yield argument, future.result()


def checked(name: Name, task: Task, reference: duplicates.Reference | None) -> images.Encoded | images.Refused:
    """Reads and checks one image."""
    try:
        if name.refusal:
            raise images.Refused(*name.refusal)
        encoded = images.normalise(_read(name), task.images)
    except images.Refused as refused:
        return refused
    if reference and (pair := reference.find(row_of(name, encoded.data))):
        return duplicate(pair)
    return encoded


def row_of(name: Name, data: bytes) -> duplicates.Row:
    """The hashes of an image that was checked."""
    return duplicates.Row(name.key, name.path, name.offset, name.size, *duplicates.hashes(data))


def duplicate(pair: duplicates.Pair) -> images.Refused:
    """The refusal of the first image of a pair."""
    refused = images.Refused(pair.reason, pair.detail())
    refused.pair = pair
    return refused


def _read(name: Name) -> bytes:
    try:
        return files.read(text(name.path), name.offset, name.size)
    except (OSError, ValueError) as error:
        raise images.Refused("unreadable", getattr(error, "strerror", None) or str(error)) from error
