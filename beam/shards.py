"""Keys to shards: which shard a key belongs to, and when a shard on disk is committed.

A shard is three files, the same bytes whoever writes them: the TFRecord, its index and its statistics; the statistics
are renamed into place last and are the commit. A committed shard that was written with the same settings from the same
listing is not written again.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable

import tensorflow as tf

from beam import duplicates
from beam.examples import SourceExample, text
from beam.options import LIMITS, ImageSettings
from beam.splits import TRAIN, VALIDATION
from pipeline import files
from pipeline.data import record, shard

FORMAT = 1  # of the statistics and of how records are made: raise it when either changes
SHRUNK = "shrunk 2"  # how images are shrunk: another number when that changes, and with it the bytes of records
ShardResult = tuple[str, int, dict]  # (split, shard number, what the end of the build needs of its statistics)


@dataclasses.dataclass(frozen=True)
class BuildSpec:
    """What is the same for all shards of a build.

    Attributes:
      name, output_dir, label_kind: of the record set.
      image_settings: what is done to each image.
      shards: split to number of shards.
      held_out: keys of the train split whose `split_hash` is below it are validation.
      duplicate_policy, duplicate_distance, retry_rejected: see the flags.
    """

    name: str
    output_dir: str
    label_kind: str
    image_settings: ImageSettings
    shards: dict[str, int]
    held_out: int = 0
    duplicate_policy: str = "off"
    duplicate_distance: int = duplicates.EXACT_ONLY
    retry_rejected: bool = False

    @property
    def compares_splits(self) -> bool:
        """Whether statistics hold the contents of images, for images that are in two splits."""
        return len(self.shards) > 1


def position(key: bytes) -> int:
    """The hash that gives a key its shard and its place in it, in [0, 2**64): the record id, unsigned."""
    return record.record_id(text(key)) % 2**64


def split_hash(key: bytes) -> int:
    """The hash that decides whether a key is held out, in [0, 2**64); independent of `position`."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, person=b"split").digest(), "big")


def shard_of(key: bytes, split: str, spec: BuildSpec) -> tuple[str, int]:
    """(split, shard number) of a key that its source puts into `split`."""
    if split == TRAIN and split_hash(key) < spec.held_out:
        split = VALIDATION
    return split, position(key) % spec.shards[split]


def in_order(examples: Iterable[SourceExample]) -> list[SourceExample]:
    """The examples of a shard in the order of its records; of one key, those first that the listing accepts."""

    def order(example: SourceExample) -> tuple:
        return position(example.key), example.key, example.refusal is not None, repr(tuple(example))

    return sorted(examples, key=order)


def path_of(spec: BuildSpec, split: str, index: int) -> str:
    """The path of a shard."""
    return os.path.join(spec.output_dir, shard.shard_name(spec.name, split, index, spec.shards[split]))


def stats_path(path: str) -> str:
    """The path of the statistics of the shard at `path`."""
    return f"{path}.json"


def file_pattern(names: Iterable[str]) -> str:
    """Regular expression of the files of shards, as builds of record sets of these names leave them."""
    suffixes = "|".join(map(re.escape, (shard.index_path(""), stats_path(""), duplicates.SUFFIX)))
    return rf"({'|'.join(map(re.escape, sorted(names)))})-\w+\.tfrecord-\d{{5,}}-of-\d{{5,}}({suffixes})?"


def fingerprint(
    spec: BuildSpec,
    examples: Iterable[SourceExample],
    pairs: dict[bytes, duplicates.Pair],
    reference: duplicates.Reference | None,
    limits: bool = True,
) -> str:
    """SHA-256 over all that decides the shard's bytes and statistics: settings, listing and duplicates.

    Without `limits`: only what decides the bytes of those images that are within the limits.
    """
    settings = dataclasses.asdict(spec.image_settings)
    if not limits:
        settings = {name: value for name, value in settings.items() if name not in LIMITS}
    further = ["contents"] if spec.compares_splits else []
    further += [SHRUNK] if spec.image_settings.resize else []
    digest = hashlib.sha256(json.dumps([FORMAT, spec.label_kind, spec.duplicate_policy, settings, *further]).encode())
    for example in examples:
        digest.update(repr(tuple(example)[:-1]).encode())  # without the split, which the shard's name says
    for key in sorted(pairs):
        digest.update(json.dumps(pairs[key].as_json()).encode())
    digest.update(reference.digest.encode() if reference else b"")
    return digest.hexdigest()


def committed(path: str) -> dict | None:
    """The statistics of the shard at `path` if it is committed and its files have their sizes."""
    try:
        with files.opened(stats_path(path), "r") as file:
            stats = json.load(file)
        sizes = stats["bytes"], 8 * (stats["examples"] + 1)
        names = path, shard.index_path(path)
        if stats["format"] == FORMAT and sizes == tuple(tf.io.gfile.stat(name).length for name in names):
            return stats
    except (OSError, tf.errors.OpError, ValueError, KeyError, TypeError):
        pass
    return None


def commit(path: str, stats: dict) -> None:
    """Puts the statistics of the shard at `path` into place, which commits it."""
    files.write_atomically(stats_path(path), json.dumps(stats, sort_keys=True) + "\n", several_writers=True)
