"""Names to shards: which shard a key belongs to, and when a shard on disk is committed.

Only names cross Beam's shuffle. A shard is three files, the same bytes whoever makes them: the TFRecord, its
index and its statistics; the statistics are renamed into place last and are the commit. A committed shard that
was made with the same settings from the same listing is not made again.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from typing import NamedTuple

import tensorflow as tf

from beam import duplicates
from beam.items import text
from beam.options import ImageSettings
from pipeline import files
from pipeline.data import record, shard

TRAIN, VALIDATION = "train", "validation"
FORMAT = 1  # of the statistics and of how records are made: raise it when either changes


class Name(NamedTuple):
    """What of an image crosses the shuffle; labels are class indices. See `items.Item`."""

    key: bytes
    path: bytes
    offset: int
    size: int
    labels: tuple[int, ...]
    weights: tuple[float, ...]
    refusal: tuple[str, str] | None


class Task(NamedTuple):
    """What is the same for all shards of a build.

    shards: split to number of shards. held_out: keys whose `split_hash` is below it are validation. policy,
    distance: what to do with duplicates in the set, and what they are. retry: look at refused images only.
    """

    name: str
    output_dir: str
    label_kind: str
    images: ImageSettings
    shards: dict[str, int]
    held_out: int = 0
    policy: str = "off"
    distance: int = duplicates.EXACT_ONLY
    retry: bool = False


def position(key: bytes) -> int:
    """The hash that gives a key its shard and its place in it, in [0, 2**64): the record id, unsigned."""
    return record.record_id(text(key)) % 2**64


def split_hash(key: bytes) -> int:
    """The hash that decides whether a key is held out, in [0, 2**64); independent of `position`."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, person=b"split").digest(), "big")


def place(key: bytes, task: Task) -> tuple[str, int]:
    """(split, shard) of a key."""
    split = VALIDATION if split_hash(key) < task.held_out else TRAIN
    return split, position(key) % task.shards[split]


def in_order(names: Iterable[Name]) -> list[Name]:
    """The names of a shard in the order of its records; of one key, those first that the listing accepts."""
    return sorted(names, key=lambda name: (position(name.key), name.key, name.refusal is not None, repr(name)))


def path_of(task: Task, split: str, index: int) -> str:
    """Where a shard lies."""
    return os.path.join(task.output_dir, shard.shard_name(task.name, split, index, task.shards[split]))


def stats_path(path: str) -> str:
    """Where the statistics of the shard at `path` lie."""
    return f"{path}.json"


def fingerprint(
    task: Task, names: Iterable[Name], pairs: dict, reference: duplicates.Reference | None, limits: bool = True
) -> str:
    """SHA-256 over all that decides the shard's bytes and statistics: settings, listing and duplicates.

    Without `limits`: only what decides the bytes of those images that are within the limits.
    """
    settings = dataclasses.asdict(task.images)
    if not limits:
        settings = {name: value for name, value in settings.items() if name not in _LIMITS}
    digest = hashlib.sha256(json.dumps([FORMAT, task.label_kind, task.policy, settings]).encode())
    for name in names:
        digest.update(repr(tuple(name)).encode())
    for key in sorted(pairs):
        digest.update(repr(pairs[key]).encode())
    digest.update(reference.digest.encode() if reference else b"")
    return digest.hexdigest()


_LIMITS = ("min_side", "max_pixels", "max_bytes", "animated")


def whole(path: str) -> dict | None:
    """The statistics of the shard at `path` if it is committed and its files have their sizes."""
    try:
        with tf.io.gfile.GFile(stats_path(path)) as file:
            stats = json.load(file)
        sizes = stats["bytes"], 8 * (stats["examples"] + 1)
        names = path, shard.index_path(path)
        if stats["format"] == FORMAT and sizes == tuple(tf.io.gfile.stat(name).length for name in names):
            return stats
    except (tf.errors.OpError, ValueError, KeyError, TypeError):
        pass
    return None


def commit(path: str, stats: dict) -> None:
    """Puts the statistics of the shard at `path` into place, which commits it."""
    files.write_atomically(stats_path(path), json.dumps(stats, sort_keys=True) + "\n", several_writers=True)
